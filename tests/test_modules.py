"""Every pipeline gets its own modules, parameters and reloads; nobody ever gets another's."""

from __future__ import annotations

import asyncio
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

import fp_async
from fp_async import MissingParameterError, PipelineImportError, modules


def ours() -> set[str]:
    """The names in `sys.modules` of what is loaded of pipelines."""
    found = {name: getattr(each, "__spec__", None) for name, each in list(sys.modules.items())}
    return {
        name
        for name, spec in found.items()
        if isinstance(getattr(spec, "loader", None), modules._Loader)
    }


@pytest.fixture(autouse=True)
def _nothing_loaded():
    """As in a process of its own: the test's first project is the first that is loaded."""
    for library in list(modules._libraries.values()):
        library.unload()
    modules._libraries.clear()


async def test_two_projects_with_the_same_names(make_project):
    sources = {
        "flow": "from helpers import who\nimport helpers\ndef a() -> str:\n    return who() + helpers.NAME\n",
        "helpers": "NAME = '{0}'\ndef who() -> str:\n    return '{0}'\n",
    }
    projects = [
        make_project(folder=name, **{key: text.format(name) for key, text in sources.items()})
        for name in ("one", "two")
    ]
    results = await asyncio.gather(*(project.run("flow") for project in projects * 2))
    assert results == [{"a": "oneone"}, {"a": "twotwo"}] * 2
    assert sys.modules["helpers"].NAME == "one"  # the first project has the plain names


@pytest.mark.parametrize(
    "statement",
    [
        "import helpers",
        "import helpers as helpers",
        "from . import helpers",
        "from pipelines import helpers",
        "import pipelines.helpers\nhelpers = pipelines.helpers",
        "from pipelines.helpers import VALUE\nclass helpers:\n    VALUE = VALUE",
        "import package.inner\nhelpers = package.inner",
        "from package import inner as helpers",
    ],
)
async def test_ways_to_import_a_sibling(make_project, statement):
    project = make_project(
        flow=f"{statement}\ndef a() -> int:\n    return helpers.VALUE\n", helpers="VALUE = 7\n"
    )
    folder = project.root / "pipelines" / "package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "inner.py").write_text("VALUE = 7\n")
    assert await project.run("flow") == {"a": 7}


async def test_a_sibling_imported_late_is_still_the_projects_own(make_project):
    source = "def a() -> str:\n    import helpers\n    return helpers.NAME\n"
    projects = [
        make_project(folder=name, flow=source, helpers=f"NAME = '{name}'\n") for name in ("p", "q")
    ]
    assert [(await project.run("flow"))["a"] for project in projects] == ["p", "q"]


async def test_a_pipeline_named_like_an_installed_package_can_import_it(make_project):
    project = make_project(
        msgspec="import msgspec\ndef a() -> str:\n    return msgspec.json.encode(1).decode()\n"
    )
    assert await project.run("msgspec") == {"a": "1"}


async def test_reload_and_refresh_see_an_edit_at_once(make_project):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    path = project.root / "pipelines" / "flow.py"
    assert await fp_async.run("flow", project=project.root) == {"a": 1}
    assert await project.run("flow") == {"a": 1}
    before = path.stat()
    path.write_text("def a() -> int:\n    return 2\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))  # same size, same second
    assert await fp_async.run("flow", project=project.root) == {"a": 2}
    assert await project.run("flow") == {"a": 1}  # held open: until it is told
    project.reload()
    assert await project.run("flow") == {"a": 2}
    assert not list(project.root.rglob("*.pyc"))


async def test_refresh_sees_edited_configuration_and_helpers(make_project):
    project = make_project(
        "run: {flow: {dev: {inputs: {x: 1}}}}",
        flow="import helpers\ndef a(x: int) -> int:\n    return x + helpers.ONE\n",
        helpers="ONE = 1\n",
    )
    assert await fp_async.run("flow", project=project.root) == {"a": 2}
    (project.root / "conf" / "pipelines.yml").write_text("run: {flow: {dev: {inputs: {x: 10}}}}")
    assert await fp_async.run("flow", project=project.root) == {"a": 11}
    (project.root / "pipelines" / "helpers.py").write_text("ONE = 100 + 1\n")
    assert await fp_async.run("flow", project=project.root) == {"a": 111}


async def test_a_reload_during_a_run_leaves_the_run_alone(make_project):
    started, proceed = asyncio.Event(), asyncio.Event()
    project = make_project(
        flow="""
        async def a(started: object, proceed: object) -> int:
            started.set()
            await proceed.wait()
            import helpers
            return helpers.VALUE
        """,
        helpers="VALUE = 5\n",
    )
    inputs = {"started": started, "proceed": proceed}
    task = asyncio.create_task(project.run("flow", inputs))
    await started.wait()
    project.reload()
    proceed.set()
    assert await task == {"a": 5}


async def test_reloading_leaves_no_modules_behind(make_project):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="def"))
    project.reload()
    before = ours()
    for _ in range(5):
        await project.run("flow")
        project.reload()
    assert ours() == before


PARAMS_SOURCE = """
    from hamilton.function_modifiers import parameterize
    from fp_async import load_params

    PARAMS = load_params(__file__)

    @parameterize(**PARAMS.scaled)
    {define} scaled(x: int, factor: int, offset: int = 0) -> int:
        return x * factor + offset

    def direct() -> int:
        return PARAMS.scaled.factor + PARAMS["scaled"].offset
"""
PARAMS_CONFIG = """
    params:
      flow:
        scaled: {factor: 2, offset: 1}
    run:
      flow:
        dev:
          inputs: {x: 10}
        prod:
          params: {scaled: {factor: 5}}
"""


@pytest.mark.parametrize("define", ["def", "async def"])
async def test_params_by_file_environment_and_run(make_project, define):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define=define))
    assert await project.run("flow") == {"scaled": 21, "direct": 3}
    assert await project.run("flow", environment="prod") == {"scaled": 51, "direct": 6}
    run = await project.run("flow", params={"scaled": {"offset": 7}}, environment="prod")
    assert run == {"scaled": 57, "direct": 12}
    assert await project.run("flow") == {"scaled": 21, "direct": 3}


async def test_concurrent_runs_with_different_params(make_project):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="async def"))
    runs = [project.run("flow", params={"scaled": {"factor": f}}) for f in range(20)]
    results = await asyncio.gather(*runs)
    assert [result["scaled"] for result in results] == [10 * f + 1 for f in range(20)]


async def test_a_missing_params_entry_is_a_clear_error(make_project):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="def"))
    (project.root / "conf" / "pipelines.yml").write_text("params: {flow: {scale: {factor: 1}}}")
    with pytest.raises(MissingParameterError, match=r"params\.flow\.scaled.*did you mean 'scale'"):
        await project.run("flow")
    (project.root / "conf" / "pipelines.yml").write_text("params: {flow: {scaled: {factr: 1}}}")
    project.reload()
    with pytest.raises(PipelineImportError, match="don't appear in the function itself: factr"):
        await project.run("flow", {"x": 1})


def test_params_of_a_module_imported_by_other_means(make_project, monkeypatch):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="def"))
    monkeypatch.syspath_prepend(str(project.root / "pipelines"))
    import flow  # type: ignore[import-not-found]

    assert flow.PARAMS.scaled.factor == 2
    assert flow.scaled(x=1, factor=2) == 2
    del sys.modules["flow"]


async def test_several_modules_make_one_pipeline(make_project):
    config = "run: {flow: {dev: {modules: [flow, features]}}}"
    project = make_project(
        config,
        flow="def a() -> int:\n    return 1\n",
        features="def b(a: int) -> int:\n    return a + 1\n",
    )
    assert await project.run("flow") == {"b": 2}


async def test_module_overrides(make_project):
    config = "run: {flow: {dev: {modules: [flow, special], module_overrides: %s}}}"
    sources = {
        "flow": "def a() -> int:\n    return 1\n",
        "special": "def a() -> int:\n    return 2\n",
    }
    assert await make_project(config % "true", **sources).run("flow") == {"a": 2}
    project = make_project(config % "false", folder="strict", **sources)
    with pytest.raises(fp_async.GraphError, match="Cannot define function a more than once"):
        await project.run("flow")


async def test_many_parameter_sets_are_bounded(make_project):
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="def"))
    for factor in range(100):
        await project.run("flow", params={"scaled": {"factor": factor}})
    assert len(project.flows._flows) <= 64


async def test_values_of_project_classes_cross_processes(make_project):
    project = make_project(
        flow="""
        from dataclasses import dataclass
        from helpers import Unit

        @dataclass
        class Reading:
            value: float
            unit: Unit

        def reading() -> Reading:
            return Reading(1.5, Unit("C"))

        def doubled(reading: Reading) -> Reading:
            return Reading(reading.value * 2, reading.unit)
        """,
        helpers="""
        from dataclasses import dataclass

        @dataclass
        class Unit:
            name: str
        """,
    )
    async with project:
        result = (await project.run("flow", executor="processpool"))["doubled"]
        assert (result.value, result.unit.name) == (3.0, "C")
        assert pickle.loads(pickle.dumps(result)) == result


LATE = "from fp_async import load_params\nVALUE = load_params(__file__).late.value\n"


@pytest.mark.parametrize(
    "statement",
    ["import late", "from . import late", "from .late import VALUE", "from pipelines import late"],
)
async def test_a_sibling_imported_late_gets_the_pipelines_parameters(make_project, statement):
    config = """
        params: {flow: {late: {value: 1}}}
        run: {flow: {prod: {params: {late: {value: 2}}}}}
    """
    value = "VALUE" if "VALUE" in statement else "late.VALUE"
    source = f"def a() -> int:\n    {statement}\n    return {value}\n"
    project = make_project(config, flow=source, late=LATE)
    assert await project.run("flow", environment="prod") == {"a": 2}
    assert await project.run("flow") == {"a": 1}


async def test_two_nodes_that_import_at_once_do_not_deadlock(make_project):
    project = make_project(
        flow="""
        def one() -> int:
            import first
            return first.VALUE
        def two() -> int:
            from . import first
            return first.VALUE
        """,
        first="import time\ntime.sleep(0.05)\nimport second\nVALUE = second.VALUE\n",
        second="VALUE = 3\n",
    )
    for _ in range(5):
        project.reload()
        async with asyncio.timeout(30):
            assert await project.run("flow") == {"one": 3, "two": 3}


async def test_what_was_pickled_by_one_process_is_found_by_another(make_project, tmp_path):
    import subprocess

    project = make_project(
        flow="""
        from dataclasses import dataclass
        import pickle
        from pathlib import Path

        @dataclass
        class Reading:
            value: int

        def kept(path: Path) -> int:
            if path.exists():
                return pickle.loads(path.read_bytes()).value
            path.write_bytes(pickle.dumps(Reading(5)))
            return 0
        """,
        other="def a() -> int:\n    return 1\n",
    )
    command = [
        sys.executable,
        "-m",
        "fp_async",
        "run",
        "flow",
        "-q",
        "--inputs",
        f"path={tmp_path / 'x'}",
    ]
    assert subprocess.run(command, cwd=project.root, check=False).returncode == 0
    await project.run("other")
    assert await project.run("flow", {"path": tmp_path / "x"}) == {"kept": 5}


async def test_flows_that_are_not_kept_leave_no_modules(make_project):
    reads = "from fp_async import load_params\nPARAMS = load_params(__file__)\n"
    project = make_project(
        flow=f"{reads}def a(s: set = frozenset()) -> int:\n    return 1\n",
        cyclic=f"{reads}def a(a: int) -> int:\n    return a\n",
    )
    before = ours()
    for _ in range(3):
        assert await project.run("flow", config={"s": {1, 2}}) == {"a": 1}
        with pytest.raises(fp_async.GraphError):
            await project.run("cyclic")
    assert ours() == before


GONE = """
    import asyncio
    import gc
    import sys

    from fp_async import Project, modules

    def ours():
        loaders = [getattr(getattr(m, "__spec__", None), "loader", None) for m in list(sys.modules.values())]
        return sum(isinstance(each, modules._Loader) for each in loaders)

    project = Project()
    asyncio.run(project.run("flow", params={"scaled": {"factor": 3}}))
    asyncio.run(project.run("flow"))
    print(ours())
    del project
    gc.collect()
    print(ours())
"""


def test_a_project_that_is_gone_leaves_no_modules(make_project):
    """In a process of its own: what other tests have left there would be counted, too."""
    project = make_project(PARAMS_CONFIG, flow=PARAMS_SOURCE.format(define="def"))
    command = [sys.executable, "-c", textwrap.dedent(GONE)]
    done = subprocess.run(command, cwd=project.root, check=True, capture_output=True, text=True)
    assert done.stdout.split() == ["2", "0"]


async def test_a_data_library_that_only_an_installed_package_imports(
    make_project, monkeypatch, tmp_path
):
    pytest.importorskip("polars")
    (tmp_path / "mylib").mkdir()
    (tmp_path / "mylib" / "__init__.py").write_text("import polars\nFrame = polars.DataFrame\n")
    monkeypatch.syspath_prepend(tmp_path)
    project = make_project(
        flow="""
        from hamilton.function_modifiers import extract_columns
        from mylib import Frame

        @extract_columns("a")
        def frame() -> Frame:
            return Frame({"a": [1, 2]})
        """
    )
    for executor in ("threadpool", "processpool"):
        assert list((await project.run("flow", final_vars="a", executor=executor))["a"]) == [1, 2]
