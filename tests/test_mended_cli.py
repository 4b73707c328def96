"""The command under stress: signals, closed streams, links, encodings, many at once."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fp_async
from fp_async import ConfigError, FileAccessError
from fp_async.cli.output import check_output, show_result
from fp_async.node_events import NodeEvent
from fp_async.params import Params, entries_read, was_read

COMMAND = [sys.executable, "-m", "fp_async"]
ROOT = Path(__file__).parent.parent
ONE = "def a() -> int:\n    return 1\n"


def run(*arguments, cwd, env=None):
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **(env or {})},
        timeout=60,
    )


def shell(line, cwd, **env):
    command = line.replace("flowerpower", shlex.join(COMMAND))
    return subprocess.run(
        ["bash", "-c", command],
        cwd=cwd,
        capture_output=True,
        env={**os.environ, **env},
        timeout=60,
    )


# PARAMS


@pytest.mark.parametrize("function", ["read", "was_read", "keys", "get", "items"])
async def test_params_of_a_function_of_any_name(make_project, function):
    project = make_project(
        f"params: {{flow: {{{function}: {{was_read: 2, read: 3, get: 4}}}}}}",
        flow=f"""
            from fp_async import load_params
            from hamilton.function_modifiers import parameterize
            PARAMS = load_params(__file__)
            GET = PARAMS.{function}.get
            @parameterize(**PARAMS.{function})
            def {function}(was_read: int, read: int, get: int) -> int:
                return was_read * read * get if GET == get else 0
        """,
    )
    assert await project.run("flow") == {function: 24}
    assert project.check().problems == []


def test_what_the_modules_have_read():
    params = Params("flow", {"read": {"x": 1, "y": 2}})
    assert params.read.x == 1
    assert entries_read(params) == {"read"}
    assert [was_read(params["read"], name) for name in ("x", "y")] == [True, False]


async def test_an_argument_that_params_cannot_give_is_named(make_project):
    project = make_project("params: {flow: {a: {keys: 2}}}", flow=ONE)
    with pytest.raises(ConfigError, match=r"params\.flow\.a\.keys: .* rename it"):
        await project.run("flow")
    assert any("params.flow.a.keys" in error.message for error in project.check().errors)


# JSON


def as_json(capsys, value):
    show_result({"value": value}, "json")
    return json.loads(capsys.readouterr().out)["value"]


def test_json_keeps_the_labels_of_pandas(capsys):
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame({"r": ["n", "s", "n"], "q": ["x", "x", "y"], "v": [1, 2, 3]})
    assert as_json(capsys, frame[["r", "v"]].groupby("r").sum()) == [
        {"r": "n", "v": 4},
        {"r": "s", "v": 2},
    ]
    assert as_json(capsys, frame.groupby("r")["v"].sum()) == {"n": 4, "s": 2}
    assert as_json(capsys, frame.groupby(["r", "q"])["v"].sum())[0] == {"r": "n", "q": "x", "v": 1}
    repeated = pd.Series([1, 2], index=["a", "a"])
    assert as_json(capsys, repeated) == [{"index": "a", "value": 1}, {"index": "a", "value": 2}]
    days = pd.Series([1], index=pd.to_datetime(["2024-01-01"]))
    assert as_json(capsys, days) == {"2024-01-01T00:00:00": 1}
    assert as_json(capsys, frame["v"]) == [1, 2, 3]
    assert as_json(capsys, frame[["v"]]) == [{"v": 1}, {"v": 2}, {"v": 3}]


def test_json_of_times(capsys):
    pd = pytest.importorskip("pandas")
    np = pytest.importorskip("numpy")
    day = np.datetime64("2024-01-01T00:00:00", "ns")
    text = "2024-01-01T00:00:00.000000000"
    assert (
        as_json(capsys, [pd.NaT, pd.NA, np.datetime64("NaT", "s"), np.timedelta64("NaT", "s")])
        == [None] * 4
    )
    assert as_json(capsys, {day: [day, np.array([[day]]), np.timedelta64(10**9, "ns")]}) == {
        text: [text, [[text]], "PT1S"]
    }
    frame = pd.DataFrame({"day": pd.to_datetime(["2024-01-01", None])})
    assert as_json(capsys, frame) == [{"day": "2024-01-01T00:00:00"}, {"day": None}]
    assert as_json(capsys, [np.int64(3), np.float64(0.5), np.array([1, 2]), np.bool_(True)]) == [
        3,
        0.5,
        [1, 2],
        True,
    ]


# Signals

SIGNALS = [(signal.SIGINT, b"interrupted"), (signal.SIGTERM, b"terminated")]
# A value that says on stderr that it is being written, and takes its time in Python code.
SLOW_TO_WRITE = """
    import os, time
    class Slow:
        def to_csv(self, part, index):
            part.touch()
            os.write(2, b"begun\\n")
            while True:
                time.sleep(0.01)
        index = ()
    def slow() -> object:
        return Slow()
"""
DEAF = """
    import os, time
    async def deaf() -> int:
        os.write(2, b"begun\\n")
        while True:
            time.sleep(0.01)
"""


def begun(root, *arguments):
    process = subprocess.Popen(
        [*COMMAND, "run", *arguments], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    assert process.stderr.readline() == b"begun\n"
    return process


@pytest.mark.parametrize(("number", "word"), SIGNALS)
def test_a_signal_while_the_result_is_written(make_project, number, word):
    root = make_project(flow=SLOW_TO_WRITE).root
    process = begun(root, "flow", "-q", "--output", "out.csv")
    process.send_signal(number)
    assert process.communicate(timeout=30) == (b"", b"error: %s\n" % word)
    assert process.returncode == 128 + number
    assert not list(root.glob("*.csv*")) + list(root.glob(".*.part"))


@pytest.mark.parametrize(("number", "word"), SIGNALS)
def test_a_signal_while_a_full_pipe_is_written(make_project, number, word):
    root = make_project(flow="def a() -> str:\n    return 'x' * 10**6\n").root
    process = subprocess.Popen(
        [*COMMAND, "run", "flow", "--output", "json"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the rest is more than the pipe holds
    process.send_signal(number)
    assert process.wait(timeout=2.5) == 128 + number
    assert process.communicate()[1].splitlines()[-1] == b"error: %s" % word


def test_a_second_signal_ends_at_once(make_project):
    process = begun(make_project(flow=DEAF).root, "flow", "-q")
    process.send_signal(signal.SIGINT)
    # Signals that are pending together are handled in the order of their numbers.
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=2.5) == (b"", b"error: terminated\n")  # less than the grace
    assert process.returncode == 143


def on_a_terminal(root, *arguments, until=b"", number=0):
    """All that a process writes to its terminal; it gets the signal after `until`."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
            if number and until in seen:
                process.send_signal(number)
                number = 0
    except OSError:
        pass  # the terminal's other end is closed: the process has ended
    os.close(master)
    return process.wait(timeout=30), seen


def test_the_forced_exit_gives_the_terminal_back(make_project):
    root = make_project(flow=DEAF).root
    code, seen = on_a_terminal(root, "run", "flow", until=b"begun", number=signal.SIGTERM)
    assert code == 143
    assert seen.rindex(b"\x1b[?25h") > seen.rindex(b"\x1b[?25l")
    assert re.search(rb"\r\n\x1b\[\?25h\S*error:\S* terminated\r*\n$", seen)


def test_failed_nodes_are_shown_last(make_project):
    waiting = "".join(
        f"async def n{i}() -> None:\n    await asyncio.sleep(60)\n" for i in range(20)
    )
    source = f"import asyncio\n{waiting}async def bad() -> None:\n    raise ValueError('no')\n"
    code, seen = on_a_terminal(make_project(flow=source).root, "run", "flow")
    assert code == 1
    lines = [line for line in seen.decode().split("\n") if re.search(r"\d\.\d{3} s", line)]
    assert "bad" in lines[-1]


def test_the_lines_that_are_shown_end_with_the_failed():
    from fp_async.cli.live import Progress

    progress = Progress("flow", ["bad"])
    progress._live = object()  # lines are shown at the end only
    for status in ("failed", *["cancelled"] * 30):
        progress(NodeEvent(node="bad", status=status, seconds=0.1))
    assert [event.status for event in progress._shown()][-2:] == ["cancelled", "failed"]


# Files


def test_many_at_once_lose_no_entry(tmp_path):
    fp_async.init(tmp_path)
    names = [f"flow_{number}" for number in range(12)]
    processes = [subprocess.Popen([*COMMAND, "new", name], cwd=tmp_path) for name in names]
    assert [process.wait(timeout=60) for process in processes] == [0] * 12
    project = fp_async.Project(tmp_path)
    assert sorted(project.configuration.run) == sorted(names)
    processes = [subprocess.Popen([*COMMAND, "delete", "-y", x], cwd=tmp_path) for x in names[1:]]
    assert [process.wait(timeout=60) for process in processes] == [0] * 11
    assert list(fp_async.Project(tmp_path).configuration.run) == names[:1]
    made = {"conf", "pipelines", ".gitignore"}
    assert {path.name for path in tmp_path.iterdir()} == made


def test_links_stay_links(make_project, tmp_path):
    project = make_project("run:\n", flow=ONE)
    conf, shared = project.root / "conf" / "pipelines.yml", tmp_path / "shared.yml"
    conf.rename(shared)
    conf.symlink_to(shared)
    project.new("other")
    assert conf.is_symlink()
    assert "other" in shared.read_text()
    project.delete("other")
    assert conf.is_symlink()
    assert "other" not in shared.read_text()

    (tmp_path / "data.json").write_text("old")
    (project.root / "out.json").symlink_to(tmp_path / "data.json")
    assert run("run", "flow", "--output", "out.json", cwd=project.root).returncode == 0
    assert (project.root / "out.json").is_symlink()
    assert json.loads((tmp_path / "data.json").read_text()) == {"a": 1}


def test_an_output_that_cannot_be_written_stops_the_run_before_it_starts(make_project, tmp_path):
    root = make_project(flow="open('ran', 'w')\n" + ONE).root
    (root / "folder.json").mkdir()
    (root / "null.json").symlink_to(os.devnull)
    for name in ("folder.json", "null.json", "no/x.json", f"{'x' * 300}.json"):
        done = run("run", "flow", "--output", name, cwd=root)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --output: cannot write {root / name}: ".encode())
    assert not (root / "ran").exists()


def test_a_folder_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(FileAccessError, match=f"folder {tmp_path} cannot be written"):
        check_output(str(tmp_path / "x.json"))


def test_the_error_of_a_write_is_the_one_that_is_shown(monkeypatch, tmp_path):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(FileAccessError, match=r"x\.json: full"):
        show_result({"a": 1}, str(tmp_path / "x.json"))


# Streams


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(make_project, closed):
    root = make_project(flow=ONE).root
    assert shell(f"flowerpower run flow --output out.json {closed}", root).returncode == 0
    assert json.loads((root / "out.json").read_text()) == {"a": 1}
    for command in ("run flow", "list", "show flow", "run flow --executor processpool"):
        assert shell(f"flowerpower {command} {closed}", root).returncode == 0


def test_characters_that_the_encoding_lacks(make_project):
    root = make_project(flow="def a() -> dict:\n    return {'k': '€ü'}\n").root
    latin = {"PYTHONIOENCODING": "latin-1"}
    for command in ("run flow", "show flow", "list", "check"):
        done = run(*command.split(), cwd=root, env=latin)
        assert done.returncode == 0, done.stderr
        assert b"Error" not in done.stderr
    assert b"?\xfc" in run("run", "flow", cwd=root, env=latin).stdout
    done = run("run", "flow", "--output", "json", cwd=root, env=latin)
    assert json.loads(done.stdout) == {"a": {"k": "€ü"}}


# Words for a shell


@pytest.mark.parametrize("base", [[], ["--base-dir", "b c"]])
def test_what_init_prints_can_be_pasted(tmp_path, base):
    done = run("init", "dir ü x/prö", *base, cwd=tmp_path)
    line = done.stdout.decode().split("next: ")[1].replace("&& flowerpower run my_flow", "")
    done = shell(line, tmp_path)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("my_flow.py"))


@pytest.mark.parametrize("absolute", [True, False])
def test_the_scripts_take_any_path_as_venv(tmp_path, absolute):
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "_venv").write_text((ROOT / "scripts" / "_venv").read_text())
    (tmp_path / "pyproject.toml").touch()
    binaries = tmp_path / "my venv" / "bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "demo.txt").touch()
    (tmp_path / "my venv" / ".installed-demo").touch()
    venv = str(tmp_path / "my venv") if absolute else "my venv"
    done = shell('source scripts/_venv; venv_with demo; echo "${PATH%%:*}"', tmp_path, VENV=venv)
    assert done.stdout.decode() == f"{binaries}\n", done.stderr


# Prints


@pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
@pytest.mark.parametrize("redirected", ["", " >&-", " 2>&-"])
def test_what_nodes_print_is_beside_the_json(make_project, executor, redirected):
    source = (
        "import os\n\n\n"
        "def a() -> int:\n"
        '    print("printed")\n'
        '    os.system("echo echoed")\n'
        "    return 1\n"
    )
    root = make_project(flow=source).root
    line = f"flowerpower run flow --quiet --output json --executor {executor}{redirected}"
    done = shell(line, root)
    if redirected != " >&-":
        assert json.loads(done.stdout) == {"a": 1}
    assert b"Traceback" not in done.stderr
    if not redirected:
        assert sorted(done.stderr.split()) == [b"echoed", b"printed"]
        table = shell(line.replace("--output json ", ""), root)
        said = sorted((table.stdout + table.stderr).split())  # child processes print to stderr
        assert said == [b"1", b"a", b"echoed", b"printed"]
