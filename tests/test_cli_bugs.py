"""Errors of the command that nobody meant: none has a bare traceback (C6)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

BROKEN = """
import sys
from fp_async import flows
def broken(self, name):
    raise AttributeError("no such thing at postgresql://me:secret@host/db")
flows.Flows.require = broken
from {module} import main
main()
"""


def run(root, *arguments, **more):
    return subprocess.run(
        [sys.executable, "-m", "fp_async", *arguments],
        cwd=root,
        capture_output=True,
        check=False,
        **more,
    )


def test_c6_a_bug_says_so_and_leaves_its_traceback_in_a_file(make_project, tmp_path):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    code = BROKEN.format(module="fp_async.cli")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "flow"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 70
    assert "Traceback" not in done.stderr
    assert "a bug of FlowerPower: AttributeError: no such thing" in done.stderr
    assert "please report it" in done.stderr
    report = Path(re.search(r"traceback in (\S+)", done.stderr)[1])
    assert report.parent == tmp_path
    assert "in broken" in report.read_text()
    assert "command: run" in report.read_text()
    assert "secret" not in report.read_text() + done.stderr
    assert report.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("how", ["option", "variable"])
def test_c6_debug_prints_the_traceback(make_project, tmp_path, how):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    code = BROKEN.format(module="fp_async.cli")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    environment |= {"FLOWERPOWER_DEBUG": "1"} if how == "variable" else {}
    options = ["--debug"] if how == "option" else []
    done = subprocess.run(
        [sys.executable, "-c", code, *options, "run", "flow"],
        cwd=project.root,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert "in broken" in done.stderr
    assert not list(tmp_path.glob("flowerpower-bug-*"))


def test_c6_a_bug_of_the_agent_says_so(tmp_path):
    code = """
from edge_agent import __main__ as command, looking
import click
def broken(*_, **__):
    raise KeyError("no such thing")
for name in ("settings_of",):
    setattr(command, name, broken)
command.main()
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, "run"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 70
    assert "a bug of FlowerPower: KeyError: 'no such thing'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("final", ["x", "path"])
def test_c6_bytes_that_are_no_utf8_are_an_error_that_names_them(make_project, final):
    source = "import pathlib\ndef a(x: str = '') -> str:\n    return x\ndef b(path: pathlib.Path = None) -> str:\n    return str(path)\n"
    project = make_project(flow=source)
    for option in (b"--inputs", b"--config"):
        done = run(project.root, "run", "flow", option, f"{final}=".encode() + b"\xff")
        assert done.returncode == 2
        assert b"is no UTF-8, at byte" in done.stderr
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["true", "false", "null", "True", "NULL"])
def test_c6_names_that_yaml_takes_for_no_text_are_refused(make_project, name):
    project = make_project(flow="def a() -> int:\n    return 1\n")
    done = run(project.root, "new", name, text=True)
    assert done.returncode == 2
    assert f"'{name}' cannot be a pipeline's name" in done.stderr
    assert not (project.root / f"pipelines/{name}.py").exists()


CLOSES = """
    import os, sys
    def closes(n: int) -> int:
        sys.stdout.close()
        return n
    def closes_stderr(n: int) -> int:
        sys.stderr.close()
        return n
    def takes(n: int) -> int:
        sys.stdout = None
        return n
    def replaces(n: int) -> int:
        sys.stdout = sys.stderr = open(os.devnull, "w")
        return n
    def closes_file(n: int) -> int:
        os.close(1)
        return n
"""


@pytest.mark.parametrize("node", ["closes", "closes_stderr", "takes", "replaces", "closes_file"])
@pytest.mark.parametrize("output", ["table", "json"])
@pytest.mark.parametrize("quiet", [True, False])
def test_c6_what_a_node_does_to_the_streams_keeps_no_result_back(make_project, node, output, quiet):
    project = make_project(flow=CLOSES)
    options = [
        "--inputs",
        "n=1",
        "--final-vars",
        node,
        "--output",
        output,
        *(["--quiet"] if quiet else []),
    ]
    done = run(project.root, "run", "flow", *options, text=True)
    assert done.returncode == 0, done.stderr
    assert "".join(done.stdout.split()) == (f'{{"{node}":1}}' if output == "json" else f"{node}1")
    assert ("1 of 1 nodes" in done.stderr) is not quiet
    assert "Error" not in done.stderr
