"""conf/*.yml: what is read, how environments lie over each other, what a mistake says."""

from __future__ import annotations

import datetime

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from fp_async import config, config_files, documents
from fp_async.config import Pipelines, Retry, RunSettings, SchedulerFile
from fp_async.errors import ConfigError, UnknownNameError


def parse(text, **env):
    document = documents.parse(text, "conf/x.yml", env)
    return document.filled(document.data)


def pipelines(text, **env):
    return Pipelines(documents.parse(text, "conf/pipelines.yml", env))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("true", True),
        ("False", False),
        ("010", 10),
        ("0x1F", 31),
        ("12:30", "12:30"),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("-7", -7),
        ("1_000", "1_000"),
        ("2024-01-31", datetime.date(2024, 1, 31)),
        ("null", None),
        ("~", None),
        ("", None),
        ('"1"', "1"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    assert parse(f"a: {text}")["a"] == value


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), st.integers()
    )
)
def test_what_pyyaml_writes_is_read(data):
    assert parse(yaml.safe_dump(data)) == data


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${PORT}", "1883"),  # text, which has no type yet
        ('"${PORT}"', "1883"),
        ("${NONE:-1884}", "1884"),
        ("${NONE:-}", None),
        ("${EMPTY:-x}", "x"),
        ("mqtt://${HOST}:${PORT}/", "mqtt://localhost:1883/"),
        ("$${PORT}", "${PORT}"),
        ("$PORT", "$PORT"),
    ],
)
def test_variables(text, value):
    assert parse(f"a: {text}", PORT="1883", HOST="localhost", EMPTY="")["a"] == value


def test_an_unset_variable_names_file_line_and_key():
    with pytest.raises(ConfigError, match=r"conf/x.yml:2: a.b: .*NOPE is not set"):
        parse("a:\n  b: ${NOPE}")


def test_environments_overlay_dev():
    file = pipelines(
        """
        run:
          flow:
            dev:
              inputs: {a: 1, b: 2}
              final_vars: [x, y]
              config: {mode: fast}
              nodes: {n: {timeout: 5}}
              timeout: 10
              with_tracker: true
            prod:
              inputs: {b: 3, c: 4, a: null}
              final_vars: [x]
              config: {size: 1}
              nodes: {m: {timeout: 1}}
              with_tracker: false
            empty:
        """
    )
    prod = file.settings("flow", "prod")
    assert prod.inputs == {"a": 1, "b": 3, "c": 4}
    assert prod.final_vars == ["x"]
    assert prod.config == {"mode": "fast", "size": 1}
    assert prod.nodes is not None
    assert prod.nodes.keys() == {"n", "m"}
    assert (prod.timeout, prod.with_tracker) == (10, False)
    assert file.settings("flow", "empty") == file.settings("flow", "dev")
    assert file.settings("other", "dev") == RunSettings()


def test_an_unknown_environment_lists_those_of_the_pipeline():
    file = pipelines("run: {flow: {dev: , prod: , staging: }}")
    with pytest.raises(UnknownNameError, match="'prd'.*did you mean 'prod'.*dev, prod, staging"):
        file.settings("flow", "prd")


@pytest.mark.parametrize("file", config.FILES)
def test_an_empty_or_absent_file_means_the_defaults(tmp_path, file):
    assert config_files.read(tmp_path, file) == config.FILES[file]()
    (tmp_path / "conf").mkdir()
    for text in ("", "# only a comment\n", "{}"):
        (tmp_path / "conf" / file).write_text(text)
        assert config_files.read(tmp_path, file) == config.FILES[file]()


def test_the_documents_own_configuration_is_accepted():
    file = pipelines(
        """
        params:
          my_flow:
            add_int_col:
              col_name: foo
              values: bar
        run:
          my_flow:
            dev:
              inputs:
                data_path: path/to/data.csv
                fs_profile:
                fs_prtocol: local
              final_vars:
                [
                    add_int_col,
                    final_df
                ]
              with_tracker: false
        """
    )
    settings = file.settings("my_flow", "dev")
    assert settings.final_vars == ["add_int_col", "final_df"]
    assert config.given(settings.inputs) == {"data_path": "path/to/data.csv", "fs_prtocol": "local"}


def test_tracker_tags_take_any_scalar(tmp_path):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "tracker.yml").write_text(
        "username: me@example.com\napi_key:\npipeline:\n  my_flow:\n    project_id: 1\n"
        "    tags: {environment: dev, version: 1.0, on: true, n: 3}\n    dag_name: my_flow_123\n"
    )
    tracked = config_files.read(tmp_path, "tracker.yml").pipeline["my_flow"]
    assert tracked.tags == {"environment": "dev", "version": 1.0, "on": True, "n": 3}


def test_every_struct_refuses_unknown_keys():
    structs = [
        kind
        for kind in vars(config).values()
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
    ]
    for struct in structs:
        if struct is not msgspec.Struct:
            assert struct.__struct_config__.forbid_unknown_fields, struct
            assert struct.__struct_config__.frozen, struct


def test_retry_waits_longer_each_time_within_its_bounds():
    retry = Retry(max_attempts=5, backoff=1.0, max_backoff=3.0, jitter=0.5, on=["OSError"])
    assert [retry.delay(n, 0.5) for n in (1, 2, 3, 4)] == [1.0, 2.0, 3.0, 3.0]
    assert retry.delay(1, 0.0) == 0.5
    assert retry.wants(ConnectionError(), 4)
    assert not retry.wants(ConnectionError(), 5)
    assert not retry.wants(ValueError(), 1)


@pytest.mark.parametrize(
    ("file", "struct", "key"),
    [
        ("retry: {max_attempts: 99999999999999999999}", RunSettings, "retry.max_attempts"),
        ("retry: {backoff: .inf}", RunSettings, "retry.backoff"),
        ("retry: {max_backoff: 1e12}", RunSettings, "retry.max_backoff"),
        ("retry: {max_backoff: .nan}", RunSettings, "retry.max_backoff"),
        ("timeout: .inf", RunSettings, "timeout"),
        ("expires: .inf", RunSettings, "expires"),
        ("result_ttl: 1e300", RunSettings, "result_ttl"),
        ("priority: 40000", RunSettings, "priority"),
        ("max_crashes: 3000000000", RunSettings, "max_crashes"),
        ("concurrency: 3000000000", RunSettings, "concurrency"),
        ("executor: {type: local, max_workers: 3000000000}", RunSettings, "executor.max_workers"),
        ("schedule: {type: cron, max_jitter: .inf}", RunSettings, "schedule.max_jitter"),
        ("worker: {max_result_size: 99999999999999999999}", SchedulerFile, "max_result_size"),
        ("worker: {memory_limit: 99999999999999999999}", SchedulerFile, "memory_limit"),
        ("worker: {grace: .inf}", SchedulerFile, "worker.grace"),
    ],
)
def test_a_number_that_cannot_be_kept_is_refused(file, struct, key):
    with pytest.raises(ConfigError, match=rf"conf/x\.yml:1: .*{key}: expected \w+ [<>]"):
        documents.validate(documents.parse(file, "conf/x.yml", {}), struct)


@pytest.mark.parametrize(
    ("text", "struct", "key"),
    [
        ('worker: {queues: ["a,b"]}', SchedulerFile, "worker.queues.0: 'a,b'"),
        ('worker: {queues: [a, ""]}', SchedulerFile, "worker.queues.1: ''"),
        ('worker: {queues: ["a\\n"]}', SchedulerFile, r"worker.queues.0: 'a\n'"),
        ("queue: a,b", RunSettings, "queue: 'a,b'"),
        (f"queue: {'a' * 192}", RunSettings, "queue: 'aaa"),
        ("gateway: {queue: 'a,b'}", config.MqttFile, "gateway.queue: 'a,b'"),
    ],
)
def test_a_queue_is_named_as_on_the_command_line(text, struct, key):
    with pytest.raises(ConfigError) as caught:
        documents.validate(documents.parse(text, "conf/x.yml", {}), struct)
    says = "is not the name of one queue: 1 to 191 printable characters, without a comma"
    assert str(caught.value).startswith(f"conf/x.yml:1: {key}")
    assert says in str(caught.value)


def test_every_queue_that_a_job_may_have_may_be_in_the_configuration():
    text = f"worker: {{queues: [default, 'two words', größe, 'a.b/c:d', {'a' * 191}]}}"
    assert len(documents.validate(documents.parse(text, "x", {}), SchedulerFile).worker.queues) == 5
