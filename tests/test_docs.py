"""The documentation is executed: every fenced block of README.md, docs/ and an example, in order.

```python FILE, ```yaml FILE: is written there.   ```python: is run as a script.
```console: lines after `$` are run, the rest is what they print; `...` stands for anything. What
ends in `&` works in the background until the page ends, and has begun when it has logged a line.
```mermaid: not run. ```bash setup: not here; .ci/run does just that.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [Path("examples") / name for name in ("scheduled_report", "edge_sensors", "checkouts")]
BLOCK = re.compile(r"^```(\w+)[ ]?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENV = {
    **os.environ,
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "COLUMNS": "200",
}


def run(command, cwd):
    return subprocess.run(
        command,
        cwd=cwd,
        env=ENV,
        text=True,
        timeout=120,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def as_pattern(lines):
    parts = [r"(?:.*\n)*?" if line == "..." else f"{_line(line)}\n" for line in lines]
    return re.compile("".join(parts))


def _line(line):
    return ".*".join(re.escape(part) for part in line.split("..."))


@contextmanager
def in_background(command, cwd):
    """A daemon that logs to stderr, until the block ends."""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(shlex.split(command), cwd=cwd, env=ENV, text=True, **pipes)
    try:
        first = process.stderr.readline()
        assert " INFO " in first or '"level":"info"' in first, first
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0


def run_console(text, cwd, daemons):
    """Each command with its output; `cd` holds for the following ones."""
    for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = entry.rstrip("\n").split("\n")
        if command.startswith("cd "):
            cwd = cwd / shlex.split(command)[1]
            continue
        if command.endswith(" &"):
            daemons.enter_context(in_background(command.removesuffix(" &"), cwd))
            continue
        done = run(["bash", "-c", command], cwd)
        printed = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
        assert as_pattern(expected).fullmatch(printed), f"$ {command}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page(page, tmp_path):
    (tmp_path / "pipelines").mkdir()
    run_page(page, tmp_path)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_every_block_of_an_example(example, tmp_path):
    shutil.copytree(ROOT / example, tmp_path / example)
    begins_there = (ROOT / example / "README.md").read_text().count("from this folder")
    run_page(ROOT / example / "README.md", tmp_path / example if begins_there else tmp_path)


def run_page(page, folder):
    with ExitStack() as daemons:
        for kind, info, text in BLOCK.findall(page.read_text()):
            if info != "setup" and kind != "mermaid":
                run_block(page.name, kind, info, text, folder, daemons)


def run_block(name, kind, info, text, folder, daemons):
    if kind == "console":
        run_console(text, folder, daemons)
    elif info:
        (folder / info).parent.mkdir(exist_ok=True)
        (folder / info).write_text(text)
    elif kind == "python":
        (folder / "snippet.py").write_text(text)
        done = run([sys.executable, "snippet.py"], folder)
        assert done.returncode == 0, done.stdout
        for expected in re.findall(r"print\(.*\)  # (.*)", text):
            assert expected in done.stdout
    else:
        raise AssertionError(f"{name}: a block of an unknown kind: {kind}")


LINKING = [*PAGES, *ROOT.glob("*.md"), *(ROOT / each / "README.md" for each in EXAMPLES)]


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
