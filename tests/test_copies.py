"""Modules under plain names, further copies under names of their own, and pickles of both.

B3, B4, D4 and H2: as with plain Hamilton wherever a process has one project; refused with the reason
where a name would mean another copy.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fp_async import CopyError, PipelineImportError, copies, handing_on, modules

# Two projects, two sets of parameters and an edit, in one process: what becomes of each kind of
# pickle. A process of its own, so that the first project is the first.
APPLICATION = '''
import asyncio, json, sys
from pathlib import Path
from fp_async import Project

FLOW = """
import multiprocessing, pickle
from fp_async import load_params
from helpers import Model, NAME
PARAMS = load_params(__file__)

class Own:
    def __init__(self, k):
        self.k = k

def _told(x):
    return [NAME, PARAMS.f.k, x]

def f(k: int = 0) -> int:
    return k

def own() -> str:
    return type(pickle.loads(pickle.dumps(Own(1)))).__module__

def shared() -> str:
    return type(pickle.loads(pickle.dumps(Model(1)))).__module__

def spawned() -> list:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(_told, range(2))

def forked() -> list:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.map(_told, range(2))

def jobbed() -> list:
    from joblib import Parallel, delayed
    return Parallel(n_jobs=2)(delayed(_told)(i) for i in range(2))

def made() -> Own:
    return Own(PARAMS.f.k)

def same(made: Own) -> list:
    return [isinstance(made, Own), made.k]

def model() -> Model:
    return Model(PARAMS.f.k)

def alike(model: Model) -> list:
    return [isinstance(model, Model), model.k]
"""
HELPERS = "NAME = '{}'\\nclass Model:\\n    def __init__(self, k):\\n        self.k = k\\n"
CONFIG = "params: {flow: {f: {k: 1}}}\\nrun: {flow: {cached: {cache: kept}}}\\n"


async def tried(project, name, **options):
    try:
        return (await project.run("flow", final_vars=[name], **options))[name]
    except Exception as error:
        return f"{type(error.__cause__ or error).__name__}: {error.__cause__ or error}"


async def results(project, plain, options):
    found = {name: await tried(project, name, **options) for name in plain}
    for name in ("same", "alike"):
        found[f"pool {name}"] = await tried(project, name, executor="processpool", **options)
        cached = {"environment": "cached", **options}
        found[f"cache {name}"] = [await tried(project, name, **cached) for _ in range(2)]
    return found


async def main(root, *plain):
    projects = []
    for name in ("a", "b"):
        (root / name / "pipelines").mkdir(parents=True)
        (root / name / "conf").mkdir()
        (root / name / "conf" / "pipelines.yml").write_text(CONFIG)
        (root / name / "pipelines" / "flow.py").write_text(FLOW)
        (root / name / "pipelines" / "helpers.py").write_text(HELPERS.format(name))
        projects.append((name, Project(root / name)))
    found = {}
    for edit in ("", "'+'2"):
        for name, project in projects:
            if edit:
                helpers = project.root / "pipelines" / "helpers.py"
                helpers.write_text(HELPERS.format(name + edit))
                project.refresh()
            for k in (1, 2):
                options = {} if k == 1 else {"params": {"f": {"k": 2}}}
                found[f"{name}{edit[-1:]} {k}"] = await results(project, plain, options)
    print(json.dumps(found))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
'''


def test_two_projects_two_parameter_sets_and_an_edit_through_every_kind_of_pickle(tmp_path):
    """B3, H2: right, or refused with the reason; never another copy."""
    plain = ["own", "shared", "spawned", "forked"]
    if _has_joblib():
        plain.append("jobbed")
    script = tmp_path / "application.py"
    script.write_text(APPLICATION)
    done = subprocess.run(
        [sys.executable, script, tmp_path, *plain], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert list(found) == ["a 1", "a 2", "b 1", "b 2", "a2 1", "a2 2", "b2 1", "b2 2"]
    for which, results in found.items():
        name, k = which.split()
        told = [[name, int(k), 0], [name, int(k), 1]]
        first = which == "a 1"
        assert results["own"] == "flow" if first else _is_refused(results["own"], which)
        assert (
            results["shared"] == "helpers" if name == "a" else _is_refused(results["shared"], which)
        )
        for kind in plain[2:]:
            wanted = kind == "forked" or first
            assert results[kind] == told if wanted else _is_refused(results[kind], which), which
        for kind in ("pool same", "pool alike"):
            assert results[kind] == [True, int(k)], which
        for kind in ("cache same", "cache alike"):
            assert results[kind] == [[True, int(k)]] * 2, which


def _is_refused(text: str, which: str) -> bool:
    why = {"a 2": "other parameters", "a2 1": "edited", "a2 2": "edited"}.get(
        which, "another project"
    )
    return text.startswith("CopyError: ") and why in text


def _has_joblib() -> bool:
    try:
        import joblib  # noqa: F401
    except ImportError:
        return False
    return True


# The command: one project in a process ----------------------------------------------------------

HELPERS = "class Model:\n    def __init__(self, k):\n        self.k = k\n"
TRAIN = """
    import pickle
    from fp_async import load_params
    from helpers import Model
    PARAMS = load_params(__file__)

    class Own(Model):
        pass

    def f(k: int = 0) -> int:
        return k

    def saved(path: str) -> str:
        with open(path, "wb") as file:
            pickle.dump([Model(2), Own(PARAMS.f.k)], file)
        return "saved"
"""
PREDICT = """
    import pickle
    from helpers import Model

    def models(path: str) -> list:
        with open(path, "rb") as file:
            return pickle.load(file)

    def found(models: list) -> list:
        return [isinstance(each, Model) for each in models] + [each.k for each in models]
"""


def command(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "fp_async", *map(str, arguments)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def ran(folder, *arguments) -> str:
    done = command(folder, "run", *arguments, "-q", "--output", "json")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_h2_what_one_pipeline_pickles_is_found_by_others_in_other_folders_and_outside(
    make_project, tmp_path
):
    project = make_project(
        "params: {train: {f: {k: 3}}}", helpers=HELPERS, train=TRAIN, predict=PREDICT
    )
    given = ("--inputs", f"path={tmp_path}/m.pkl")
    ran(project.root, "train", "--final-vars", "saved", *given)
    wanted = {"found": [True, True, 2, 3]}
    final = ("--final-vars", "found")
    assert json.loads(ran(project.root, "predict", *final, *given)) == wanted
    moved = tmp_path / "moved"
    shutil.move(project.root, moved)
    assert json.loads(ran(moved, "predict", *final, *given)) == wanted
    ran(moved, "train", "--final-vars", "saved", *given, "--param", "f.k=7")
    code = f"import pickle; print([x.k for x in pickle.load(open('{tmp_path}/m.pkl', 'rb'))])"
    outside = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(moved / "pipelines")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert outside.stdout == "[2, 7]\n", outside.stderr


STARTED = """
    import concurrent.futures
    import multiprocessing
    from fp_async import load_params
    PARAMS = load_params(__file__)

    def _scaled(x):
        return x * PARAMS.f.k

    def f(k: int = 0) -> int:
        return k

    def pooled(how: str) -> list:
        with multiprocessing.get_context(how).Pool(2) as pool:
            return pool.map(_scaled, range(3))

    def executed(how: str) -> list:
        context = multiprocessing.get_context(how)
        with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
            return list(pool.map(_scaled, range(3)))

    def jobbed() -> list:
        from joblib import Parallel, delayed
        return Parallel(n_jobs=2)(delayed(_scaled)(i) for i in range(3))
"""
STARTED_CONFIG = """
    params: {flow: {f: {k: 2}}}
    run: {flow: {prod: {params: {f: {k: 5}}}}}
"""
RUNS = [((), 2), (("--param", "f.k=10"), 10), (("--environment", "prod"), 5)]


@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_h2_processes_that_a_node_starts_get_the_parameters_of_its_run(make_project, how):
    project = make_project(STARTED_CONFIG, flow=STARTED)
    for options, k in RUNS:
        final = ("--final-vars", "pooled,executed", "--inputs", f"how={how}")
        assert json.loads(ran(project.root, "flow", *final, *options)) == {
            "pooled": [0, k, 2 * k],
            "executed": [0, k, 2 * k],
        }


def test_h2_joblib_gets_the_parameters_of_the_run(make_project):
    pytest.importorskip("joblib")
    project = make_project(STARTED_CONFIG, flow=STARTED)
    for options, k in RUNS:
        result = json.loads(ran(project.root, "flow", "--final-vars", "jobbed", *options))
        assert result == {"jobbed": [0, k, 2 * k]}


CONCURRENT = """
import asyncio, json, sys
from fp_async import Project

async def main():
    async with Project(sys.argv[1]) as project:
        options = {"inputs": {"how": "spawn"}, "final_vars": ["executed"]}
        runs = [project.run("flow", params={"f": {"k": k}}, **options) for k in (3, 4)]
        both = await asyncio.gather(*runs, return_exceptions=True)
        alone = await project.run("flow", params={"f": {"k": 3}}, **options)
        return [str(each) if isinstance(each, Exception) else each for each in (*both, alone)]

if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
"""


def test_h2_two_concurrent_runs_never_get_each_others_parameters_nor_the_files(
    make_project, tmp_path
):
    project = make_project(STARTED_CONFIG, flow=STARTED)
    script = tmp_path / "application.py"
    script.write_text(CONCURRENT)
    done = subprocess.run(
        [sys.executable, script, project.root], capture_output=True, text=True, check=True
    )
    first, second, alone = json.loads(done.stdout)
    assert first == {"executed": [0, 3, 6]} or "NodeError" in first or "raised" in first
    assert "'flow._scaled' belongs to a copy of its module" in second
    assert alone == {"executed": [0, 3, 6]}


HELD = """
    from typing import Any

    async def held(gate: Any) -> None:
        began, done = gate
        began.set()
        await done.wait()
"""
BESIDE = """
import asyncio, json, sys
from fp_async import Project

async def failed(project, name, **inputs):
    try:
        options = {"inputs": inputs, "final_vars": [name]}
        return str(await project.run("flow", params={"f": {"k": 3}}, **options))
    except Exception as error:
        return str(error)

async def main():
    async with Project(sys.argv[1]) as project:
        await project.run("flow", params={"f": {"k": 3}}, final_vars=["f"])
        gate = asyncio.Event(), asyncio.Event()
        options = {"inputs": {"gate": gate}, "final_vars": ["held"]}
        other = asyncio.create_task(project.run("flow", params={"f": {"k": 4}}, **options))
        await gate[0].wait()
        found = [await failed(project, "executed", how="spawn")]
        found += [await failed(project, name) for name in sys.argv[2:]]
        gate[1].set()
        await other
        return [*found, await failed(project, "broken")]

if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))
"""
BROKEN = """
    def broken() -> None:
        from concurrent.futures import BrokenExecutor
        raise BrokenExecutor("for a reason of its own")
"""


def test_h2_a_pool_that_breaks_for_want_of_parameters_says_so(make_project, tmp_path):
    """A library's BrokenProcessPool alone says nothing of the reason."""
    project = make_project(STARTED_CONFIG, flow=STARTED + HELD + BROKEN)
    script = tmp_path / "application.py"
    script.write_text(BESIDE)
    names = ["jobbed"] if _has_joblib() else []
    done = subprocess.run(
        [sys.executable, script, project.root, *names], capture_output=True, text=True, check=True
    )
    spawned, *jobbed, broken = json.loads(done.stdout)
    assert "cannot know the parameters of the run (other runs went on at the same" in spawned
    for text in jobbed:
        assert "several runs with other parameters went on when it was started" in text
        assert "hand the values over as arguments" in text
    assert broken.startswith("node 'broken' of pipeline 'flow' raised BrokenExecutor")
    assert "parameters" not in broken


# Loaded once ------------------------------------------------------------------------------------

COUNTED = """
    from prometheus_client import Counter
    SEEN = Counter("fp_test_{name}", "x")
    VALUE = {value}
"""


async def test_b4_a_module_that_no_parameters_reach_is_loaded_once(make_project):
    """In every parameter set, for every pipeline, and for each project at the folder."""
    pytest.importorskip("prometheus_client")
    config = "params: {one: {f: {k: 1}}}"
    source = """
        from fp_async import load_params
        import helpers
        PARAMS = load_params(__file__)
        def f(k: int = 0) -> int:
            return k
        def value() -> int:
            return helpers.VALUE * PARAMS.f.k
    """
    project = make_project(
        config,
        one=source,
        two="import helpers\ndef a() -> int:\n    return helpers.VALUE\n",
        helpers=COUNTED.format(name="once", value=3),
    )
    assert (await project.run("one"))["value"] == 3
    assert (await project.run("one", params={"f": {"k": 2}}))["value"] == 6
    assert await project.run("two") == {"a": 3}
    project.reload()
    assert await project.run("two") == {"a": 3}
    assert await type(project)(project.root).run("two") == {"a": 3}


async def test_b4_an_edited_module_is_loaded_again_with_those_that_import_it_and_no_other(
    make_project,
):
    pytest.importorskip("prometheus_client")
    project = make_project(
        flow="import edited, kept\ndef a() -> int:\n    return edited.VALUE + kept.VALUE\n",
        kept=COUNTED.format(name="kept", value=1),
        edited="VALUE = 1\n",
    )
    assert await project.run("flow") == {"a": 2}
    (project.root / "pipelines" / "edited.py").write_text("VALUE = 10\n")
    project.refresh()
    assert await project.run("flow") == {"a": 11}


async def test_b4_an_edited_module_is_loaded_by_a_fresh_process_of_a_pool(make_project):
    pytest.importorskip("prometheus_client")
    project = make_project(
        flow="def a() -> int:\n    import helpers\n    return helpers.VALUE\n",
        helpers=COUNTED.format(name="pool", value=1),
    )
    async with project:
        assert await project.run("flow", executor="processpool") == {"a": 1}
        helpers = project.root / "pipelines" / "helpers.py"
        helpers.write_text(helpers.read_text().replace("VALUE = 1", "VALUE = 20"))
        flow = project.root / "pipelines" / "flow.py"
        flow.write_text(flow.read_text() + "\n")
        project.refresh()
        assert await project.run("flow", executor="processpool") == {"a": 20}


async def test_b4_an_edited_module_is_loaded_by_a_fresh_process_of_a_worker(make_project):
    """D4: and loggers have the plain names there."""
    pytest.importorskip("prometheus_client")
    project = make_project(
        flow="""
        import logging
        import helpers
        log = logging.getLogger(__name__)
        def a() -> int:
            log.warning("said by %s", log.name)
            return helpers.VALUE
        """,
        helpers=COUNTED.format(name="worker", value=1),
    )
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf" / "scheduler.yml").write_text("data_store: {type: memory}")
    settings = {"runner": "process", "concurrency": 1}
    from fp_async import WorkerSettings

    async with type(project)(project.root, worker=WorkerSettings(**settings)) as held:
        assert await held.run_job("flow") == {"a": 1}
        helpers = project.root / "pipelines" / "helpers.py"
        helpers.write_text(helpers.read_text().replace("VALUE = 1", "VALUE = 20"))
        id = await held.add_job("flow")
        assert await held.get_result(id, wait=60) == {"a": 20}
        job = await held.get_job(id)
    assert "WARNING flow: said by flow" in job.log


# Names ------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _nothing_loaded():
    """As in a process of its own: the test's first project is the first that is loaded."""
    for library in list(modules._libraries.values()):
        library.unload()
    modules._libraries.clear()


async def test_names_of_other_packages_are_never_taken(make_project):
    import json as standard

    import msgspec as installed

    source = "import pickle\nclass Own: pass\ndef a() -> bytes:\n    return pickle.dumps(Own())\n"
    project = make_project(json=source, msgspec=source, own=source)
    for name in ("json", "msgspec"):
        with pytest.raises(Exception, match="the standard library, an installed package") as raised:
            await project.run(name)
        assert isinstance(raised.value.__cause__, CopyError)
    assert pickle.loads((await project.run("own"))["a"]).__class__.__module__ == "own"
    assert sys.modules["json"] is standard
    assert sys.modules["msgspec"] is installed


async def test_loggers_of_copies_have_the_plain_name(make_project):
    source = (
        "import logging\nlog = logging.getLogger(__name__)\ndef a() -> str:\n    return log.name\n"
    )
    projects = [make_project(folder=name, flow=source) for name in ("a", "b")]
    assert [(await project.run("flow"))["a"] for project in projects] == ["flow", "flow"]


async def test_a_pickle_of_another_project_is_not_read_as_ones_own(make_project):
    """Plain names mean the first project: a run of the second one is told so."""
    source = """
        import pickle
        class Own: pass
        def read(data: bytes) -> str:
            return type(pickle.loads(data)).__module__
        def written() -> bytes:
            return pickle.dumps(Own())
    """
    first, second = [make_project(folder=name, flow=source) for name in ("a", "b")]
    data = (await first.run("flow", final_vars="written"))["written"]
    inputs = {"data": data}
    assert await first.run("flow", inputs, "read") == {"read": "flow"}
    with pytest.raises(Exception, match="its process has another project"):
        await second.run("flow", inputs, "read")


async def test_our_own_pickles_name_the_copy(make_project):
    """An object of one copy that is handed to another one's run stays what it is."""
    source = """
        from fp_async import load_params
        PARAMS = load_params(__file__)
        class Own:
            k = PARAMS.f.k
        def f(k: int = 0) -> int:
            return k
        def own() -> Own:
            return Own()
        def k(given: object) -> int:
            return given.k
    """
    project = make_project("params: {flow: {f: {k: 1}}}", flow=source)
    async with project:
        own = (await project.run("flow", final_vars="own"))["own"]
        options = {"params": {"f": {"k": 2}}, "executor": "processpool"}
        assert await project.run("flow", {"given": own}, "k", **options) == {"k": 1}
        other = (await project.run("flow", final_vars="own", **options))["own"]
        assert (other.k, type(other) is type(own)) == (2, False)


async def test_load_params_is_noticed_where_no_text_says_it(make_project):
    """A module that reads parameters by other means is no shared one."""
    hidden = """
        import fp_async
        VALUE = getattr(fp_async, "load" + "_params")(__file__).f.k
    """
    project = make_project(
        "params: {flow: {f: {k: 1}}}",
        flow="import hidden\ndef f(k: int = 0) -> int:\n    return hidden.VALUE\n",
        hidden=hidden,
    )
    for k in (1, 2, 3, 2):
        assert await project.run("flow", params={"f": {"k": k}}) == {"f": k}


async def test_a_node_that_calls_load_params_gets_those_of_its_run(make_project):
    project = make_project(
        "params: {flow: {f: {k: 1}}}",
        flow="""
        from fp_async import load_params
        def f(k: int = 0) -> int:
            return load_params(__file__).f.k
        """,
    )
    assert await project.run("flow", params={"f": {"k": 2}}) == {"f": 2}


def test_a_copy_of_another_process_is_refused_with_the_reason():
    data = b"cfp_async.copies.flow_parameters_0a1b2c3d\nOwn\n."
    with pytest.raises(CopyError, match=r"'flow_?.*' belongs to a copy.*other parameters before"):
        pickle.loads(data)


# What child processes are told --------------------------------------------------------------------


def told(monkeypatch, path, *runs):
    descriptions = [handing_on.described(*run) for run in runs]
    monkeypatch.setenv(handing_on.VARIABLE, f"[{','.join(descriptions)}]")
    return handing_on.told(path)


def test_what_child_processes_are_told(monkeypatch, tmp_path):
    flow, other = tmp_path / "pipelines" / "flow.py", tmp_path / "pipelines" / "other.py"
    run = (tmp_path, "flow", "prod", ["flow"], {"f": {"k": 1}})
    assert told(monkeypatch, flow, run).values == {"f": {"k": 1}}
    assert told(monkeypatch, flow, run, run).values == {"f": {"k": 1}}
    assert told(monkeypatch, other, run) == (tmp_path, "other", "prod", None)
    assert told(monkeypatch, Path("/elsewhere/pipelines/flow.py"), run) is None
    second = (*run[:4], {"f": {"k": 2}})
    with pytest.raises(CopyError, match="several runs with other parameters"):
        told(monkeypatch, flow, run, second)
    with pytest.raises(CopyError, match="several environments"):
        told(monkeypatch, other, run, (tmp_path, "flow", "dev", ["flow"], {}))
    with pytest.raises(CopyError, match="no data that can be handed on"):
        told(monkeypatch, flow, (*run[:4], {"f": {"k": object()}}))
    monkeypatch.setenv(handing_on.VARIABLE, "?")
    with pytest.raises(CopyError, match="cannot be read"):
        handing_on.told(flow)


async def test_the_variable_is_there_while_a_run_goes_on_only(make_project):
    source = """
        import os
        from fp_async import load_params
        PARAMS = load_params(__file__)
        def a() -> bool:
            return "FLOWERPOWER_RUN" in os.environ
    """
    project = make_project(flow=source, plain="import os\n" + source.split("PARAMS")[1][30:])
    assert await project.run("flow") == {"a": True}
    assert handing_on.VARIABLE not in os.environ


def test_names_of_copies_are_shown_plainly():
    name = copies.name("flow", "parameters")
    assert copies.plainly(f"<class '{name}.Own'>") == "<class 'flow.Own'>"
    assert copies.reason(name) == "parameters"
    assert not copies.reason("flow")


async def test_an_import_error_names_modules_plainly(make_project):
    for folder in ("a", "b"):
        project = make_project(folder=folder, flow="from helpers import nothing\n", helpers="")
        with pytest.raises(PipelineImportError) as raised:
            await project.run("flow")
        assert "fp_async" not in str(raised.value)
