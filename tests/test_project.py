"""Projects on disk: created, extended, reduced, found; and what `check` says of them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from unittest import mock

import pytest

import fp_async
from fp_async import Project
from fp_async.editing import edit
from fp_async.errors import (
    AlreadyExistsError,
    ConfigError,
    GraphError,
    NodeError,
    ProjectNotFoundError,
    UnknownNameError,
    UsageError,
)

ONE = "def one() -> int:\n    return 1\n"


def test_a_new_pipeline_runs_at_once(tmp_path, monkeypatch):
    project = fp_async.init(tmp_path / "shop")
    monkeypatch.chdir(project.root)
    path = fp_async.new("my_flow")
    assert path == project.root / "pipelines" / "my_flow.py"
    assert fp_async.list() == ["my_flow"]
    assert asyncio.run(fp_async.run("my_flow")) == {"total": 110}
    assert asyncio.run(fp_async.run("my_flow", environment="prod")) == {"total": 10100}
    assert fp_async.check().problems == []
    assert fp_async.delete("my_flow")
    assert fp_async.list() == []


def test_init_writes_every_file_and_overwrites_none(tmp_path):
    root = fp_async.init(tmp_path).root
    names = {".schema", "mqtt.yml", "pipelines.yml", "scheduler.yml", "tracker.yml"}
    assert {path.name for path in (root / "conf").iterdir()} == names
    assert (root / "pipelines").is_dir()
    with pytest.raises(AlreadyExistsError, match="--overwrite"):
        fp_async.init(tmp_path)
    (root / "conf" / "pipelines.yml").unlink()
    (root / "conf" / "tracker.yml").write_text("username: me\n")
    fp_async.init(tmp_path)
    assert (root / "conf" / "tracker.yml").read_text() == "username: me\n"
    fp_async.init(tmp_path, overwrite=True)
    assert "username: me\n" != (root / "conf" / "tracker.yml").read_text()


def test_a_second_new_keeps_the_first_ones_entries(tmp_path):
    project = fp_async.init(tmp_path)
    project.new("one")
    conf = project.root / "conf" / "pipelines.yml"
    conf.write_text(conf.read_text().replace("factor: 2", "factor: 7  # seven"))
    project.new("two")
    assert "factor: 7  # seven" in conf.read_text()
    assert project.list() == ["one", "two"]
    assert asyncio.run(project.run("one")) == {"total": 385}


def test_new_refuses_and_overwrites(tmp_path):
    project = fp_async.init(tmp_path)
    path = project.new("flow")
    path.write_text("def mine() -> int:\n    return 1\n")
    with pytest.raises(AlreadyExistsError, match="'flow' exists already"):
        project.new("flow")
    assert "mine" in path.read_text()
    project.new("flow", overwrite=True)
    assert "mine" not in path.read_text()
    for bad in ("my-flow", "1st", "class", "a b", "../x"):
        with pytest.raises(UsageError, match="cannot be a pipeline's name"):
            project.new(bad)


def test_new_refuses_the_names_of_what_its_file_imports(tmp_path):
    project = fp_async.init(tmp_path)
    imported = {"hamilton", "fp_async"}
    written = project.new("flow").read_text()
    assert all(f"from {name}" in written for name in imported)
    before = (project.root / "conf" / "pipelines.yml").read_text()
    for name in imported:
        with pytest.raises(UsageError, match=f"'{name}' cannot be a .* pipelines import {name}"):
            project.new(name, overwrite=True)
    assert project.list() == ["flow"]
    assert (project.root / "conf" / "pipelines.yml").read_text() == before


def test_a_pipeline_may_be_called_as_a_module_of_python(tmp_path):
    project = fp_async.init(tmp_path)
    for name in ("statistics", "json", "asyncio"):
        project.new(name)
    project.new("flow")
    for name in project.list():
        assert asyncio.run(project.run(name)) == {"total": 110}


def test_new_keeps_entries_written_before_the_pipeline(tmp_path):
    project = fp_async.init(tmp_path)
    conf = project.root / "conf" / "pipelines.yml"
    conf.write_text("run:\n  flow:\n    dev:\n      inputs: {count: 4}\n")
    project.new("flow")
    assert asyncio.run(project.run("flow", params={"scaled": {"factor": 1}})) == {"total": 10}


COMMENTED = """\
# top
params:
  # about a
  a:
    fn:
      x: 1  # eol
      l:
        - 1
        - 2   # two

  # about b
  b:
    fn: {y: "2"}

# about run
run:   # here
  a:
    dev:
      inputs:
        p: 'q'
  # b runs
  b:
    dev:
      final_vars: [z]
# the end
"""


def test_editing_nothing_changes_nothing():
    assert edit(COMMENTED, "x.yml", lambda data: None) == COMMENTED


def test_new_and_delete_leave_every_other_line(tmp_path):
    project = fp_async.init(tmp_path)
    conf = project.root / "conf" / "pipelines.yml"
    conf.write_text(COMMENTED)
    project.new("c")
    with_c = conf.read_text().splitlines()
    lines = iter(with_c)
    assert all(line in lines for line in COMMENTED.splitlines())
    project.delete("c")
    assert conf.read_text() == COMMENTED
    project.delete("a")
    kept = conf.read_text()
    for comment in ("# top", "# about b", "# about run", "# here", "# b runs", "# the end"):
        assert comment in kept
    assert "x: 1" not in kept


def test_delete_removes_tracker_entries_too(tmp_path):
    project = fp_async.init(tmp_path)
    project.new("flow")
    tracker = project.root / "conf" / "tracker.yml"
    tracker.write_text(
        "username: me\npipeline:\n  flow: {project_id: 1}\n  other: {project_id: 2}\n"
    )
    project.delete("flow")
    assert tracker.read_text() == "username: me\npipeline:\n  other: {project_id: 2}\n"
    with pytest.raises(UnknownNameError, match="unknown pipeline 'flow'"):
        project.delete("flow")


def test_writes_keep_permissions_and_leave_no_temporary_file(tmp_path):
    project = fp_async.init(tmp_path)
    conf = project.root / "conf" / "pipelines.yml"
    conf.chmod(0o640)
    project.new("flow")
    assert conf.stat().st_mode & 0o777 == 0o640
    assert {path.name for path in conf.parent.iterdir()} == {
        ".schema",
        ".schema",
        "mqtt.yml",
        "pipelines.yml",
        "scheduler.yml",
        "tracker.yml",
    }


def test_a_project_is_found_from_below_but_not_from_a_given_path(tmp_path, monkeypatch):
    root = fp_async.init(tmp_path / "p").root
    below = root / "pipelines" / "deep"
    below.mkdir()
    monkeypatch.chdir(below)
    assert Project().root == root
    with pytest.raises(ProjectNotFoundError, match="flowerpower init"):
        Project(tmp_path)


async def test_a_held_project_ends_its_children(make_project):
    import psutil

    source = "import os\ndef pid() -> int:\n    return os.getpid()\n"
    async with make_project(flow=source) as project:
        pids = {(await project.run("flow", executor="processpool"))["pid"] for _ in range(3)}
        assert len(pids) == 1  # kept warm
        assert pids != {os.getpid()}
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert not any(psutil.pid_exists(pid) for pid in pids)


def messages(report, level):
    return [f"{p.where}: {p.message}" for p in report.problems if p.level == level]


def test_check_warns_of_what_a_run_would_tolerate(make_project):
    project = make_project(
        """
        params:
          flow:
            scaled: {factor: bar, unknown: 1}
            nothing: {x: 1}
          ghost: {f: {x: 1}}
        run:
          flow:
            dev:
              inputs: {fs_prtocol: local, x: 1}
        """,
        flow="""
        def scaled(x: int, factor: int = 1, fs_protocol: str = "local") -> int:
            return x * factor
        def other(needed: float) -> float:
            return needed
        """,
    )
    warnings = messages(project.check(), "warning")
    assert project.check().errors == []
    for fragment in (
        "run.flow.dev: pipeline 'flow' needs inputs that were not given:\n  needed: float",
        "run.flow.dev.inputs.fs_prtocol: no node reads this input; did you mean 'fs_protocol'",
        "params.flow.scaled.factor: the function says int, the value is str",
        "params.flow.scaled.unknown: no such argument",
        "params.flow.nothing: the pipeline has no such function",
        "params.ghost: there is no pipelines/ghost.py",
    ):
        assert any(fragment in warning for warning in warnings), fragment
    assert len(warnings) == 6


def test_check_reports_errors_of_every_pipeline_and_environment(make_project):
    project = make_project(
        """
        run:
          good: {dev: {executor: threads}, prod: {executor: local, final_vars: [b]}}
        """,
        good="def a() -> int:\n    return 1\n",
        broken="import no_such_library\n",
        cyclic="def a(b: int) -> int:\n    return b\ndef b(a: int) -> int:\n    return a\n",
    )
    errors = messages(project.check(), "error")
    assert any("run.good.dev: unknown executor 'threads'" in error for error in errors)
    assert any("run.good.prod: unknown final variable 'b'" in error for error in errors)
    assert any("No module named 'no_such_library'" in error for error in errors)
    assert any("has a cycle: a -> b -> a" in error for error in errors)


async def test_executors_by_name_settings_and_configuration(make_project):
    from fp_async import ExecutorSettings

    source = "import threading\ndef thread() -> str:\n    return threading.current_thread().name\n"
    project = make_project("run: {flow: {dev: {executor: local}}}", flow=source)
    assert (await project.run("flow"))["thread"] == "MainThread"
    assert (await project.run("flow", executor="threadpool"))["thread"] == "fp-node"
    few = ExecutorSettings(type="threadpool", max_workers=2)
    assert (await project.run("flow", executor=few))["thread"] == "fp-node"


async def test_inputs_overrides_and_final_vars(make_project):
    project = make_project(
        "run: {flow: {dev: {inputs: {x: 1, path: data.csv, unused: 1}, final_vars: [b]}}}",
        flow="""
        from pathlib import Path
        def a(x: int, y: int = 10) -> int:
            return x + y
        def b(a: int) -> int:
            return a * 2
        def suffix(path: Path) -> str:
            return path.suffix
        """,
    )
    assert await project.run("flow") == {"b": 22}
    assert await project.run("flow", {"x": 5, "y": 0}) == {"b": 10}
    assert await project.run("flow", overrides={"a": 100}) == {"b": 200}
    assert await project.run("flow", final_vars=["suffix", "x", "b"]) == {
        "suffix": ".csv",
        "x": 1,
        "b": 22,
    }
    assert list(await project.run("flow", final_vars=["b", "x", "suffix"])) == ["b", "x", "suffix"]
    assert await project.run("flow", {"x": 2.0} | {"x": 2}, final_vars="a") == {"a": 12}


@pytest.mark.parametrize(
    "config",
    [
        """
        run:
          first: {dev: {schedule: {type: interval, params: {seconds: 30}, id: same}}}
          second:
            dev:
              schedule:
                - {type: interval, params: {seconds: 40}, id: same}
        """,
        """
        run:
          second:
            prod: {schedule: {type: interval, params: {seconds: 30}, id: same}}
            dev:
              schedule:
                - type: interval
                  params: {seconds: 40}
                  id: same
        """,
    ],
)
async def test_two_schedules_of_the_configuration_with_one_id_are_an_error(make_project, config):
    project = make_project(config, first=ONE, second=ONE)
    says = r"conf/pipelines.yml:\d+: run\.second\.dev\.schedule\.0\.id: .*'second' has the id 'same', as run\.\w+\.\w+\.schedule has"
    (problem,) = project.check().errors
    assert problem.where == "run.second.dev.schedule[0]"
    assert re.match(says, problem.message)
    with pytest.raises(ConfigError, match=says):
        await project.apply_schedules()
    assert len(await project.list_schedules()) == 1, "the first of them is put all the same"


@pytest.mark.parametrize(
    ("scheduler", "says"),
    [
        ('data_store: {type: sqlite, uri: "postgresql://h/d"}', "type 'sqlite' does not fit"),
        ("data_store: {type: sqlite, uri: foo.db}", "'foo.db' is no URI of a data store"),
        ('event_broker: {type: redis, uri: "foo://x"}', "event_broker.uri: not an address"),
        ('event_broker: {type: postgres, uri: "redis://x"}', "event_broker.uri: not an address"),
        ('event_broker: {type: mqtt, uri: "redis://x"}', "event_broker.uri: "),
        ('event_broker: {type: redis, uri: "redis://x:port"}', "event_broker.uri: "),
    ],
)
async def test_check_says_what_can_never_be_connected_to(make_project, scheduler, says):
    project = make_project(flow=ONE)
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text(scheduler)
    (problem,) = project.check().problems
    assert (problem.level, problem.where) == ("error", "conf/scheduler.yml")
    assert says in problem.message
    with pytest.raises(ConfigError, match=re.escape(says)):
        await project.add_job("flow")


@pytest.mark.parametrize(
    "scheduler",
    [
        "data_store: {type: memory}",
        'data_store: {type: sqlite, uri: "sqlite+aiosqlite:///a.db"}',
        'data_store: {type: postgres, uri: "postgresql+asyncpg://h:1/d"}\nevent_broker: {type: postgres}',
        'data_store: {type: mysql, uri: "mysql+aiomysql://h:1/d"}\nevent_broker: {type: redis}',
        'data_store: {type: mongodb, uri: "mongodb://h:1/d"}\nevent_broker: {type: mqtt, host: h}',
    ],
)
def test_check_connects_to_nothing(make_project, scheduler):
    project = make_project(flow=ONE)
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text(scheduler)
    assert project.check().errors == []
    assert {path.name for path in project.root.iterdir()} == {"pipelines", "conf"}


def test_check_warns_of_an_extra_that_may_be_elsewhere(make_project, monkeypatch):
    project = make_project(flow=ONE)
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text("event_broker: {type: redis}")
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    (problem,) = project.check().problems
    assert (problem.level, problem.where) == ("warning", "conf/scheduler.yml")
    assert "fp-async[redis]" in problem.message


# Modules that are no pipelines ------------------------------------------------------------------

HELPED = {
    "flow": """
        from helpers import RATE, Model

        def scaled(count: int = 2) -> int:
            return Model(count).k * RATE

        def told(scaled: int) -> None:
            from late import tell
            tell(scaled)
    """,
    "helpers": """
        from deep import RATE

        class Model:
            def __init__(self, k):
                self.k = k

        def untyped(a, b=None):
            return a
    """,
    "deep": "RATE = 3\n",
    "late": "def tell(value):\n    pass\n",
    "hooks": "def tell(event):\n    print('told')\n",
    "parts": "def third(scaled: int) -> int:\n    return scaled + 1\n",
    "_private": "def untyped(a):\n    return a\n",
    "base": "def one() -> int:\n    return 1\n",
    "user": "from base import one as _one\n\ndef two(one: int) -> int:\n    return one + _one()\n",
}
HELPED_CONFIG = """
run:
  flow:
    dev: {modules: [flow, parts], on_success: "hooks:tell"}
  base: {dev: {final_vars: [one]}}
"""


def test_c1_a_module_that_is_not_configured_and_that_others_use_is_no_pipeline(make_project):
    project = make_project(HELPED_CONFIG, **HELPED)
    assert project.list() == ["base", "flow", "user"]
    report = project.check()
    assert report.pipelines == ["base", "flow", "user"]
    assert report.errors == []


def test_c1_the_commands_leave_helpers_alone(make_project):
    root = make_project(HELPED_CONFIG, **HELPED).root

    def ran(*arguments):
        command = [sys.executable, "-m", "fp_async", *arguments]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)

    checked = ran("check")
    assert checked.returncode == 0, checked.stdout
    assert "checked 3 pipelines: 0 errors" in checked.stdout
    rows = json.loads(ran("list", "--output", "json").stdout)
    assert [row["pipeline"] for row in rows] == ["base", "flow", "user"]
    helper = ran("run", "helpers", "-q")
    assert helper.returncode == 2
    assert "'helpers' is no pipeline, but a module that other ones use" in helper.stderr


@pytest.mark.parametrize("name", ["helpers", "late", "hooks"])
async def test_c1_run_of_a_helper_says_that_it_is_no_pipeline(make_project, name):
    project = make_project(HELPED_CONFIG, **HELPED)
    with pytest.raises(GraphError, match=f"^'{name}' is no pipeline, but a module that other"):
        await project.run(name)


async def test_c1_a_name_with_an_underscore_is_no_pipeline(make_project):
    project = make_project(HELPED_CONFIG, **HELPED)
    with pytest.raises(
        UnknownNameError, match="unknown pipeline '_private'.*valid: base, flow, user"
    ):
        await project.run("_private")


async def test_c1_a_configured_module_that_others_import_is_a_pipeline(make_project):
    project = make_project(HELPED_CONFIG, **HELPED)
    assert await project.run("base") == {"one": 1}
    assert await project.run("user", {"one": 2}) == {"two": 3}
    without = make_project("run: {flow: {dev: {}}}", folder="without", **HELPED)
    assert "base" not in without.list()
    assert await without.run("base") == {"one": 1}  # it runs all the same


async def test_c1_a_helper_that_nobody_uses_is_told_of(make_project):
    """Nothing says that it is a helper: `check` says what is wrong with it as a pipeline."""
    project = make_project(flow="def a() -> int:\n    return 1\n", lonely="VALUE = 1\n")
    assert project.list() == ["flow", "lonely"]
    assert [problem.where for problem in project.check().errors] == ["run.lonely.dev"]


async def test_observation_19_patched_builtins_reach_pipelines(make_project, monkeypatch):
    flow = """
        import helper
        def a() -> str:
            return open("nowhere")
        def b() -> str:
            return helper.text()
    """
    helper = "def text():\n    return _('text')\n"
    project = make_project(flow=flow, helper=helper)
    with pytest.raises(NodeError, match="FileNotFoundError"):
        await project.run("flow", final_vars="a")
    with mock.patch("builtins.open", lambda file: f"patched {file}"):
        assert await project.run("flow", final_vars="a") == {"a": "patched nowhere"}
    with pytest.raises(NodeError, match="FileNotFoundError"):
        await project.run("flow", final_vars="a")
    with mock.patch("builtins._", str.upper, create=True):  # as gettext.install does
        assert await project.run("flow", final_vars="b") == {"b": "TEXT"}
    with pytest.raises(NodeError, match="NameError"):
        await project.run("flow", final_vars="b")


def test_d13_new_says_when_it_has_changed_nothing(tmp_path):
    from click.testing import CliRunner

    from fp_async.cli import cli

    fp_async.init(tmp_path)

    def new(*more):
        arguments = ["new", "flow", *more, "--base-dir", str(tmp_path)]
        return CliRunner().invoke(cli, arguments, standalone_mode=False).output

    assert new().startswith("created ")
    assert new().startswith("unchanged: ")
    (tmp_path / "pipelines" / "flow.py").write_text("x = 1\n")
    assert new("--overwrite").startswith("created ")
