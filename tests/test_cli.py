"""The `flowerpower` command as a person and as a script meets it: real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fp_async


def flowerpower(*arguments, cwd, check=True, env=None, **options):
    done = subprocess.run(
        [sys.executable, "-m", "fp_async", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=60,
        **options,
    )
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A project made with the command itself."""
    folder = tmp_path_factory.mktemp("shop")
    flowerpower("init", "shop", cwd=folder)
    flowerpower("new", "my_flow", cwd=folder / "shop")
    table = """
        import datetime
        from decimal import Decimal
        from pathlib import Path
        import pandas as pd

        def frame(rows: int) -> pd.DataFrame:
            return pd.DataFrame({"n": range(rows), "day": pd.Timestamp("2024-01-01")})
        def records(rows: int) -> list:
            return [{"n": n, "name": f"row {n}"} for n in range(rows)]
        def total(frame: pd.DataFrame) -> int:
            return frame["n"].sum()
        def echoed(
            flag: bool, day: datetime.date, path: Path, names: list[str], price: Decimal,
            ratio: float, anything: object, text: str, maybe: int | None = 3,
        ) -> dict:
            return {key: f"{type(v).__name__} {v}" for key, v in locals().items()}
    """
    import textwrap

    (folder / "shop" / "pipelines" / "table.py").write_text(textwrap.dedent(table))
    return folder / "shop"


def test_help_teaches(shop):
    text = flowerpower("--help", cwd=shop).stdout
    for command in ("init", "new", "add", "delete", "list", "show", "check", "run"):
        assert re.search(rf"^  {command} +\w", text, re.MULTILINE)
        assert "Usage:" in flowerpower(command, "--help", cwd=shop).stdout
    assert "Exit codes" in text
    assert (
        flowerpower("--version", cwd=shop).stdout
        == f"flowerpower, version {fp_async.__version__}\n"
    )


def test_shell_completion(shop):
    script = flowerpower(cwd=shop, env={"_FLOWERPOWER_COMPLETE": "bash_source"})
    assert "complete" in script.stdout
    done = subprocess.run(
        [str(Path(sys.executable).parent / "flowerpower")],
        cwd=shop,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_FLOWERPOWER_COMPLETE": "bash_complete",
            "COMP_WORDS": "flowerpower s",
            "COMP_CWORD": "1",
        },
    )
    assert "show" in done.stdout


@pytest.mark.parametrize(
    "line",
    [
        "run my_flow",
        "run my_flow --environment dev",
        "run my_flow --enviroment dev",
        "run my_flow -e dev --quiet",
        "run my_flow --executor local",
        "run my_flow --executor processpool",
        "run my_flow --executor hamilton",
        "run my_flow --no-tracker --timeout 30",
        "run my_flow --param scaled.factor=2",
        "run my_flow --inputs count=10",
        'run my_flow --inputs {"count":10}',
        "run my_flow --inputs @inputs.json",
    ],
)
def test_ways_to_run(shop, line):
    (shop / "inputs.json").write_text('{"count": 10}')
    assert flowerpower(*line.split(), cwd=shop).stdout == "total  110\n"


def test_base_dir(shop, tmp_path):
    assert flowerpower("run", "my_flow", "--base-dir", shop, cwd=tmp_path).stdout == "total  110\n"
    assert "my_flow" in flowerpower("list", "--base-dir", shop, cwd=tmp_path).stdout


def test_json_output_of_several_variables_in_order(shop):
    done = flowerpower(
        "run",
        "my_flow",
        "--inputs",
        "count=2",
        "--final-vars",
        "total,scaled",
        "--output",
        "json",
        cwd=shop,
    )
    assert json.loads(done.stdout) == {"total": 6, "scaled": [2, 4]}
    assert list(json.loads(done.stdout)) == ["total", "scaled"]


def test_inputs_get_the_types_of_the_annotations(shop):
    inputs = (
        "flag=true,day=2024-02-29,path=a/b.csv,names=[x, y],price=1.10,ratio=2,"
        'anything={"k": [1, 2]},text=007,maybe='
    )
    done = flowerpower(
        "run", "table", "--inputs", inputs, "--final-vars", "echoed", "--output", "json", cwd=shop
    )
    assert json.loads(done.stdout)["echoed"] == {
        "flag": "bool True",
        "day": "date 2024-02-29",
        "path": "PosixPath a/b.csv",
        "names": "list ['x', 'y']",
        "price": "Decimal 1.10",
        "ratio": "float 2.0",
        "anything": "dict {'k': [1, 2]}",
        "text": "str 007",
        "maybe": "NoneType None",
    }


def test_quoted_commas_belong_to_the_value(shop):
    inputs = "flag=1,day=2024-02-29,path='a,b.csv',names=x,price=1,ratio=1,anything=1,text=\"a,b\""
    done = flowerpower(
        "run", "table", "--inputs", inputs, "--final-vars", "echoed", "--output", "json", cwd=shop
    )
    echoed = json.loads(done.stdout)["echoed"]
    assert (echoed["path"], echoed["text"]) == ("PosixPath a,b.csv", "str a,b")


@pytest.mark.parametrize("variable", ["frame", "records"])
@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_output_to_a_file(shop, tmp_path, variable, ending):
    pd = pytest.importorskip("pandas")
    file = tmp_path / f"out.{ending}"
    done = flowerpower(
        "run",
        "table",
        "--inputs",
        "rows=3",
        "--final-vars",
        variable,
        "--output",
        file,
        cwd=shop,
    )
    assert done.stdout == ""
    if ending == "json":
        assert [row["n"] for row in json.loads(file.read_text())[variable]] == [0, 1, 2]
    else:
        read = {"csv": pd.read_csv, "parquet": pd.read_parquet}[ending]
        assert list(read(file)["n"]) == [0, 1, 2]


def test_a_long_table_is_cut_and_says_so(shop):
    done = flowerpower("run", "table", "--inputs", "rows=50", "--final-vars", "frame", cwd=shop)
    assert done.stdout.startswith("frame\n")
    assert "(50 rows)" in done.stdout
    assert len(done.stdout.splitlines()) < 20


def test_progress_is_a_line_per_node_in_a_pipe(shop):
    done = flowerpower("run", "my_flow", cwd=shop)
    assert re.findall(r"✓ (\w+)  \d", done.stderr) == ["numbers", "scaled", "total"]
    assert re.search(r"✓ my_flow \[dev\]: 3 of 3 nodes in \d", done.stderr)
    assert "\x1b" not in done.stderr + done.stdout
    assert flowerpower("run", "my_flow", "-q", cwd=shop).stderr == ""


def test_progress_is_live_on_a_terminal(shop):
    slow = "import time\ndef slow() -> int:\n    time.sleep(0.5)\n    return 1\n"
    (shop / "pipelines" / "slow.py").write_text(slow)
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fp_async", "run", "slow"],
        cwd=shop,
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm-256color"},
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:
        pass  # the terminal's other end is closed: the process has ended
    os.close(master)
    assert process.communicate(timeout=30)[0] == b"slow  1\n"
    text = seen.decode()
    assert "0/1 nodes" in text
    assert "\x1b[" in text
    assert "1 of 1 nodes" in text


def test_e14_the_tree_shows_the_defaults_of_inputs(make_project):
    source = """
        def a(title: str = "Report", many: int = None, both: int = 1, needed: int = 2) -> str:
            return title
        def b(needed: int, both: int = 1) -> str:
            return ""
    """
    tree = make_project(flow=source).show("flow").splitlines()
    inputs = {line.strip("│├└─ ") for line in tree if "input" in line}
    assert inputs == {
        "title: str = 'Report' [input]",
        "many: int = None [input]",
        "both: int = 1 [input]",
        "needed: int [input]",
    }


@pytest.mark.parametrize("command", ["jobs", "schedules", "agents", "letters"])
def test_e15_list_after_a_list_is_the_list(command):
    from click import Context

    from fp_async.cli import cli

    for rest in ([], ["--output", "json"]):
        name, found, args = cli.resolve_command(Context(cli), [command, "list", *rest])
        assert (name, args) == (command, rest)
        assert found is not None


@pytest.mark.parametrize("form", ["tree", "mermaid", "dot"])
def test_show_as_text(shop, form):
    text = flowerpower("show", "my_flow", "--format", form, cwd=shop).stdout
    assert all(name in text for name in ("count", "numbers", "scaled", "total"))


def test_the_tree_shows_results_inputs_and_repeats():
    from fp_async.pictures import tree
    from fp_async.plan import NodeSpec

    class Graph:
        nodes = {
            name: NodeSpec(name, tuple((p, True) for p in parents), call)
            for name, parents, call in (
                ("i", (), None),
                ("a", ("i",), int),
                ("b", ("a",), int),
                ("c", ("a", "b"), int),
            )
        }
        leaves = ["c"]
        config = {}
        type_name = staticmethod(lambda name: "int")
        doc = staticmethod(lambda name: "")

    assert tree(Graph()).splitlines() == [  # type: ignore[arg-type]
        "c: int",
        "├── a: int",
        "│   └── i: int [input]",
        "└── b: int",
        "    └── a: int (see above)",
    ]


@pytest.mark.parametrize(("form", "magic"), [("svg", b"<?xml"), ("png", b"\x89PNG")])
def test_show_as_picture(shop, tmp_path, form, magic):
    file = tmp_path / f"flow.{form}"
    flowerpower("show", "my_flow", "-o", file, cwd=shop)
    assert file.read_bytes().startswith(magic)


def test_show_without_a_renderer_names_the_extra(shop, monkeypatch):
    from fp_async import MissingExtraError, pictures

    monkeypatch.setattr(pictures.sysconfig, "get_path", lambda name: "/nonexistent")
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'pip install "fp-async\[viz\]"'):
        fp_async.Project(shop).show("my_flow", "svg")


def test_list_and_check_as_json(shop):
    rows = json.loads(flowerpower("list", "--output", "json", cwd=shop).stdout)
    mine = next(row for row in rows if row["pipeline"] == "my_flow")
    assert mine == {
        "pipeline": "my_flow",
        "environments": ["dev", "prod"],
        "file": "pipelines/my_flow.py",
    }
    report = json.loads(flowerpower("check", "--output", "json", cwd=shop).stdout)
    assert "my_flow" in report["pipelines"]
    assert all(problem["level"] == "warning" for problem in report["problems"])


def test_check_schema_is_json_schema_for_every_file(shop, tmp_path):
    printed = flowerpower("check", "--schema", "--output", "json", cwd=tmp_path).stdout
    schemas = json.loads(printed)
    assert set(schemas) == {"pipelines.yml", "scheduler.yml", "tracker.yml", "mqtt.yml"}
    assert all("$schema" in schema for schema in schemas.values())


def test_delete_asks_on_a_terminal(tmp_path):
    flowerpower("init", cwd=tmp_path)
    flowerpower("new", "a", cwd=tmp_path)
    flowerpower("new", "b", cwd=tmp_path)
    assert "removed" in flowerpower("delete", "a", "--yes", cwd=tmp_path).stdout
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "fp_async", "delete", "b"],
        cwd=tmp_path,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    os.write(master, b"n\n")
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert (tmp_path / "pipelines" / "b.py").exists()
    os.write(master, b"y\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "fp_async", "delete", "b"],
        cwd=tmp_path,
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not (tmp_path / "pipelines" / "b.py").exists()
    os.close(master)
    os.close(terminal)


def test_a_closed_pipe_is_no_error(shop):
    command = f"{sys.executable} -m fp_async check --schema --output json | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=shop, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_the_projects_own_packages_can_be_imported(tmp_path):
    flowerpower("init", cwd=tmp_path)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "__init__.py").write_text("VALUE = 3\n")
    (tmp_path / "pipelines" / "flow.py").write_text(
        "from shared import VALUE\ndef a() -> int:\n    return VALUE\n"
    )
    assert flowerpower("run", "flow", "-q", cwd=tmp_path).stdout == "a  3\n"


def test_the_console_scripts_are_installed(shop):
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        [scripts / "flowerpower", "run", "my_flow", "-q"], cwd=shop, capture_output=True, text=True
    )
    assert done.stdout == "total  110\n"
    done = subprocess.run([scripts / "fp-agent", "--version"], capture_output=True, text=True)
    assert done.stdout == f"fp-agent {fp_async.__version__}\n"
