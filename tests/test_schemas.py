"""JSON Schema of the configuration files: what editors are told is what is understood."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from edge_agent import writing
from edge_agent.config import AgentSettings
from fp_async import config, documents, scaffold, schemas
from fp_async.errors import ConfigError

ROOT = Path(__file__).parent.parent
SCHEMAS = schemas.schemas()


def faults(name, text):
    validator = jsonschema.Draft7Validator(SCHEMAS[name])
    data = documents.parse(text, name, {}).raw(())  # as YAML 1.2 has it
    return [error.message for error in validator.iter_errors(data)]


def understood(name, text):
    try:
        documents.parse(text, name, {"T": "5", "B": "true"}).at((), config.FILES[name])
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("name", config.FILES)
def test_d5_each_is_a_schema_that_describes_every_key(name):
    schema = SCHEMAS[name]
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == schemas.DRAFT
    for part in (schema, *schema["definitions"].values()):
        assert part["description"]
        assert all(each["description"] for each in part["properties"].values())
    used = set(re.findall(r'"#/definitions/(\w+)"', json.dumps(schema)))
    assert used == schema["definitions"].keys()


RIGHT = [
    ("pipelines.yml", "x-common: &c {a: 1}\nrun: {f: {dev: {inputs: *c}, prod: }}"),
    ("pipelines.yml", "run: {f: {dev: {timeout: '${T}', retry: {max_attempts: '${T}'}}}}"),
    ("pipelines.yml", "run: {f: {dev: {timeout: , retry: , executor: {type: ray, retries: 0}}}}"),
    ("pipelines.yml", "run: {f: {dev: {schedule: {type: interval, params: {hours: 1}}}}}"),
    ("pipelines.yml", "params: {f: {g: {a: [1, {b: 2}]}, h: }}\nrun:"),
    ("pipelines.yml", "run: {f: {dev: {cache: true, final_vars: a, on_failure: [m:f]}}}"),
    ("scheduler.yml", "worker: {queues: [a, b], schedules: '${B}', memory_limit: }"),
    ("scheduler.yml", "data_store: {type: postgres, uri: 'postgresql://h/d'}\nevent_broker:"),
    ("tracker.yml", "pipeline: {f: {project_id: 1, tags: {v: 1.0, e: dev, on: true}}}"),
    (
        "mqtt.yml",
        "broker: {port: 1883}\nrun: {f: {overrides: [inputs]}}\ntriggers: {t: {topic: a, pipeline: f}}",
    ),
]
WRONG = [
    ("pipelines.yml", "runs: {}"),
    ("pipelines.yml", "run: {f: {dev: {time_out: 5}}}"),
    ("pipelines.yml", "run: {f: {dev: {timeout: long}}}"),
    ("pipelines.yml", "run: {f: {dev: {timeout: -1}}}"),
    ("pipelines.yml", "run: {f: {dev: {on_crash: perhaps}}}"),
    ("pipelines.yml", "run: {f: {dev: {schedule: {params: {hours: 1}}}}}"),
    ("scheduler.yml", "worker: {queues: []}"),
    ("scheduler.yml", "data_store: {type: oracle}"),
    ("scheduler.yml", "event_broker: {port: 70000}"),
    ("tracker.yml", "pipeline: {f: {project_id: one}}"),
    ("mqtt.yml", "triggers: {t: {topic: a}}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), RIGHT)
def test_d5_what_is_right_has_no_fault(name, text):
    assert understood(name, text)
    assert faults(name, text) == []


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_d5_what_is_wrong_has_one(name, text):
    assert not understood(name, text)
    assert faults(name, text)


FOUND = [
    path
    for path in (*ROOT.glob("examples/**/conf/*.yml"), *ROOT.glob("fp_async/templates/*.yml"))
    if path.name in SCHEMAS
]


@pytest.mark.parametrize("path", FOUND, ids=lambda path: str(path.relative_to(ROOT)))
def test_d5_files_of_examples_and_templates_have_none(path):
    assert faults(path.name, path.read_text()) == []


@pytest.mark.parametrize("name", config.FILES)
def test_d5_a_file_of_comments_alone_has_none(name):
    """For an editor it is null, and so are all that `init` writes but for one."""
    jsonschema.Draft7Validator(SCHEMAS[name]).validate(None)


def test_d5_every_key_of_a_comment_in_a_template_is_known():
    """What the comments of a file offer can be used: without the marks it has no fault."""
    for name in ("scheduler.yml", "tracker.yml", "mqtt.yml"):
        keys = set(re.findall(r"^(?:# ?)? *([a-z_]+):", scaffold._template(name), re.MULTILINE))
        known = set(re.findall(r'"([a-z_]+)": \{"description"', json.dumps(SCHEMAS[name])))
        assert keys - known <= {"my_flow", "environment", "version"}


def test_d5_the_first_line_of_what_init_writes_names_a_file_that_is_there(tmp_path):
    scaffold.create_project(tmp_path)
    for name in config.FILES:
        path = tmp_path / "conf" / name
        found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", path.read_text())
        assert json.loads((path.parent / found[1]).read_text()) == SCHEMAS[name]
    (tmp_path / "conf" / ".schema" / "mqtt.json").unlink()
    written = scaffold.write_schemas(tmp_path)
    assert [path.name for path in written] == [f"{Path(name).stem}.json" for name in SCHEMAS]


def test_d5_a_first_pipeline_without_a_project_has_them_too(tmp_path):
    (tmp_path / "pipelines").mkdir()
    scaffold.create_pipeline(tmp_path, "flow")
    assert (tmp_path / "conf" / ".schema" / "pipelines.json").is_file()


def test_d5_the_agents_file(tmp_path):
    written = writing.project(tmp_path)
    text = written[0].read_text()
    found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", text)
    schema = json.loads((tmp_path / found[1]).read_text())
    assert schema["properties"].keys() == set(AgentSettings.__struct_fields__)
    validator = jsonschema.Draft7Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(text))) == []
    keys = "|".join(AgentSettings.__struct_fields__)
    everything = yaml.safe_load(re.sub(rf"^# (?=({keys}):|  )", "", text, flags=re.MULTILINE))
    assert list(validator.iter_errors(everything)) == []
    assert list(validator.iter_errors({"slots": 0, "brokr": "x"}))
