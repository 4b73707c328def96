"""Relative paths mean the project (B2): for the command from any folder, with --base-dir, for a
worker that was started elsewhere, inside an application, on an agent, through run-job.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from fp_async import WorkerSettings
from fp_async.values import paths

READS = """
    from pathlib import Path

    def text(source: Path) -> str:
        return source.read_text()

    def opened(source: Path) -> str:
        return open("data/x.txt").read()
"""
CONFIG = "run: {flow: {dev: {inputs: {source: data/x.txt}}}}"


@pytest.fixture
def project(make_project):
    made = make_project(CONFIG, flow=READS)
    (made.root / "data").mkdir()
    (made.root / "data" / "x.txt").write_text("of the project")
    (made.root / "deep" / "er").mkdir(parents=True)
    return made


def command(folder, *arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "fp_async", *map(str, arguments)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_b2_a_command_in_a_subfolder_and_with_base_dir(project, tmp_path):
    inside = command(project.root / "deep" / "er", "run", "flow", "-q")
    elsewhere = command(tmp_path, "run", "flow", "-q", "--base-dir", project.root)
    wanted = "opened  of the project\ntext    of the project\n"
    assert [inside.stdout, elsewhere.stdout] == [wanted] * 2, inside.stderr + elsewhere.stderr


def test_b2_files_of_the_command_mean_the_folder_of_the_shell(project):
    folder = project.root / "deep"
    (folder / "inputs.json").write_text('{"source": "data/x.txt"}')
    done = command(
        *(folder, "run", "flow", "-q", "--final-vars", "text"),
        *("--inputs", "@inputs.json", "--output", "out.json"),
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "out.json").read_text().strip() == '{\n  "text": "of the project"\n}'
    assert not (project.root / "out.json").exists()
    done = command(folder, "show", "flow", "-o", "flow.mmd")
    assert (done.returncode, (folder / "flow.mmd").exists()) == (0, True), done.stderr


def test_b2_a_path_of_the_shells_folder_is_refused_with_both(project):
    folder = project.root / "deep"
    (folder / "mine.txt").write_text("of the shell")
    done = command(folder, "run", "flow", "-q", "--inputs", "source=mine.txt")
    assert done.returncode == 2
    assert str(project.root / "mine.txt") in done.stderr
    assert str(folder / "mine.txt") in done.stderr
    whole = command(
        *(folder, "run", "flow", "-q", "--final-vars", "text"),
        *("--inputs", f"source={folder / 'mine.txt'}"),
    )
    assert whole.stdout == "text  of the shell\n"
    (project.root / "mine.txt").write_text("of the project")
    done = command(
        *(folder, "run", "flow", "-q", "--final-vars", "text", "--inputs", "source=mine.txt")
    )
    assert done.stdout == "text  of the project\n"


PARAMETERS = """
    from pathlib import Path
    from fp_async import load_params

    PARAMS = load_params(__file__)

    def text(where: Path = PARAMS.text.where) -> str:
        return where.read_text()
"""


@pytest.fixture
def parameterized(make_project):
    made = make_project("params: {flow: {text: {where: none.txt}}}", flow=PARAMETERS)
    (made.root / "conf" / "scheduler.yml").write_text("data_store: {type: sqlite}")
    (made.root / "deep").mkdir()
    (made.root / "deep" / "mine.txt").write_text("of the shell")
    return made


@pytest.mark.parametrize("name", ["run", "run-job", "add-job", "schedule"])
def test_b2_a_parameter_of_the_shells_folder_is_refused_with_both(parameterized, name):
    folder = parameterized.root / "deep"
    more = ("--type", "interval", "--interval-params", "hours=1") if name == "schedule" else ()
    done = command(folder, name, "flow", *more, "--param", "text.where=mine.txt")
    assert done.returncode == 2, done.stdout
    assert "param text.where" in done.stderr
    assert str(parameterized.root / "mine.txt") in done.stderr
    assert str(folder / "mine.txt") in done.stderr
    assert asyncio.run(parameterized.list_jobs()) == []


def test_b2_a_parameter_means_the_project_and_a_whole_path_itself(parameterized):
    folder = parameterized.root / "deep"
    run = (folder, "run", "flow", "-q", "--param")
    assert command(*run, f"text.where={folder / 'mine.txt'}").stdout == "text  of the shell\n"
    assert command(*run, "text.where=deep/mine.txt").stdout == "text  of the shell\n"
    nowhere = command(*run, "text.where=other.txt")
    assert nowhere.returncode == 1  # the pipeline may make it
    assert "No such file or directory: 'other.txt'" in nowhere.stderr


@pytest.mark.parametrize("name", ["run-job", "add-job"])
def test_b2_a_job_with_a_path_of_the_shells_folder_is_refused_with_both(parameterized, name):
    (parameterized.root / "pipelines" / "flow.py").write_text(
        "from pathlib import Path\n\ndef text(source: Path) -> str:\n    return str(source)\n"
    )
    (parameterized.root / "conf" / "pipelines.yml").write_text("{}")
    folder = parameterized.root / "deep"
    done = command(folder, name, "flow", "--inputs", "source=mine.txt")
    assert done.returncode == 2, done.stdout
    assert f"no {parameterized.root / 'mine.txt'}" in done.stderr
    assert str(folder / "mine.txt") in done.stderr
    assert asyncio.run(parameterized.list_jobs()) == []


LOCATED = """
    from pathlib import Path

    def text(source: Path, default: Path = Path("data/x.txt")) -> str:
        return source.read_text() + " " + default.read_text()

    def several(sources: list[Path] | None, named: dict[str, Path]) -> list:
        return [path.is_absolute() for path in (*sources, *named.values())]

    def as_given(plain: str) -> str:
        return plain
"""


async def test_b2_inside_an_application_paths_are_resolved_and_the_folder_stays(
    make_project, tmp_path, monkeypatch
):
    config = 'run: {flow: {dev: {inputs: {source: data/x.txt, plain: "${PROJECT}/data"}}}}'
    project = make_project(config, flow=LOCATED)
    (project.root / "data").mkdir()
    (project.root / "data" / "x.txt").write_text("of the project")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PROJECT", raising=False)
    inputs = {"sources": [Path("a"), Path("/b")], "named": {"c": Path("c")}}
    for executor in ("threadpool", "local", "processpool", "hamilton"):
        result = await project.run("flow", inputs, executor=executor)
        assert result == {
            "text": "of the project of the project",
            "several": [True, True, True],
            "as_given": f"{project.root}/data",
        }
    assert Path.cwd() == tmp_path
    assert inputs["sources"] == [Path("a"), Path("/b")]


TYPED = """
    from pathlib import Path
    from hamilton.function_modifiers import parameterize
    from fp_async import load_params

    PARAMS = load_params(__file__)
    ROOT = Path(PARAMS.found.where)

    def found(where: Path = PARAMS.found.where) -> str:
        return where.read_text()

    @parameterize(**PARAMS.listed)
    def listed(places: list[Path], named: str) -> list:
        return [path.is_absolute() for path in places] + [named]

    def read_by_the_module() -> bool:
        return ROOT.is_absolute()

    def both(found: str, listed: list, read_by_the_module: bool) -> list:
        return [found, listed, read_by_the_module]
"""
TYPED_CONFIG = """
params:
  flow:
    found: {where: data/x.txt}
    listed: {places: [data/x.txt, /b], named: data/x.txt}
"""


@pytest.mark.parametrize("executor", ["threadpool", "local", "processpool", "hamilton"])
async def test_b2_parameters_that_are_paths_mean_the_project(
    make_project, tmp_path, monkeypatch, executor
):
    project = make_project(TYPED_CONFIG, flow=TYPED)
    (project.root / "data").mkdir()
    (project.root / "data" / "x.txt").write_text("of the project")
    (project.root / "y.txt").write_text("given")
    monkeypatch.chdir(tmp_path)
    absolute = executor != "processpool"  # whose children are in the project's folder
    result = await project.run("flow", executor=executor, final_vars=["both"])
    assert result == {
        "both": ["of the project", [absolute, True, "data/x.txt"], absolute],
    }
    for given in ("y.txt", Path("y.txt"), project.root / "y.txt"):
        params = {"found": {"where": given}}
        result = await project.run("flow", executor=executor, params=params, final_vars=["found"])
        assert result == {"found": "given"}
    assert Path.cwd() == tmp_path


def test_b2_a_worker_that_was_started_elsewhere(project, tmp_path):
    """The row keeps the input as it was given; it means the project of the worker."""
    (project.root / "conf" / "scheduler.yml").write_text("data_store: {type: sqlite}")
    worker = subprocess.Popen(
        [sys.executable, "-m", "fp_async", "start-worker", "--base-dir", str(project.root)],
        cwd="/",
        stderr=subprocess.DEVNULL,
    )
    try:
        run = ("run-job", "flow", "--inputs", "source=data/x.txt", "--output", "json")
        done = command(tmp_path, *run, "--base-dir", project.root, "--timeout", "60")
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("of the project") == 2
    finally:
        worker.terminate()
        worker.wait(30)
    assert (project.root / "flowerpower.db").exists()
    listed = asyncio.run(project.list_jobs())
    job = asyncio.run(project.get_job(listed[0].id))
    assert str(project.root) not in repr(job.inputs)


async def test_b2_a_worker_inside_an_application(project, monkeypatch, tmp_path):
    (project.root / "conf" / "scheduler.yml").write_text("data_store: {type: memory}")
    monkeypatch.chdir(tmp_path)
    async with type(project)(project.root, worker=WorkerSettings(runner="inline")) as held:
        inputs = {"source": Path("data/x.txt")}
        result = await held.run_job("flow", inputs=inputs, final_vars=["text"])
    assert result == {"text": "of the project"}
    async with type(project)(project.root, worker=WorkerSettings(runner="process")) as held:
        assert (await held.run_job("flow"))["opened"] == "of the project"


@dataclass
class Place:
    folder: Path
    name: str = "x"


SERVER = """
import asyncio, json, sys
from fp_async import Project

async def main(root):
    async with Project(root) as project:
        async def answer(reader, writer):
            path = (await reader.readline()).decode().split()[1].lstrip("/")
            while (await reader.readline()).strip():
                pass
            options = {"inputs": {"source": path}, "final_vars": ["text"]}
            params = {"text": {"where": path}}
            result = await project.run("flow", params=params, **options)
            writer.write(b"HTTP/1.0 200 OK\\r\\n\\r\\n" + json.dumps(result).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

asyncio.run(main(sys.argv[1]))
"""
SERVED = """
    import os
    from pathlib import Path
    from fp_async import load_params

    PARAMS = load_params(__file__)

    def text(
        source: Path,
        where: Path = PARAMS.text.where,
        default: Path = Path("data/a.txt"),
    ) -> list:
        return [source.read_text(), where.read_text(), default.read_text(), os.getcwd()]
"""


async def test_b2_a_server_with_a_working_directory_of_its_own(make_project, tmp_path):
    """As under uvicorn: requests at once, and files of the same names where the server was
    started.
    """
    project = make_project("params: {flow: {text: {where: data/a.txt}}}", flow=SERVED)
    service = tmp_path / "service"
    for root, text in ((project.root, "project"), (service, "service")):
        (root / "data").mkdir(parents=True)
        for name in "ab":
            (root / "data" / f"{name}.txt").write_text(f"{name} of the {text}")
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SERVER, str(project.root)),
        cwd=service,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        port = int(await server.stdout.readline())

        async def get(path):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return json.loads(answer.partition(b"\r\n\r\n")[2])["text"]

        found = await asyncio.gather(*(get(f"data/{name}.txt") for name in "abab"))
    finally:
        server.kill()
        await server.wait()
    a, b = "a of the project", "b of the project"
    assert found == [[a, a, a, str(service)], [b, b, a, str(service)]] * 2


def test_paths_are_found_in_what_annotations_say():
    assert all(map(paths.mentions, (Path, Path | None, list[Path], dict[str, set[Path]], Place)))
    assert not any(map(paths.mentions, (str, int | None, list[str], dict)))
    root = Path("/root")
    value = [Path("a"), {"b": (Path("c"), Path("/d"))}, Place(Path("e"))]
    assert paths.below(value, root) == [
        root / "a",
        {"b": (root / "c", Path("/d"))},
        Place(root / "e"),
    ]
    same = [Path("/a"), {"b": 1}]
    assert paths.below(same, root) is same
