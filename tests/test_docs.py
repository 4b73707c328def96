"""The documentation is executed: every fenced block of README.md and docs/, in order.

```python FILE, ```yaml FILE: is written there.   ```python: is run as a script.
```console: lines after `$` are run, the rest is what they print; `...` stands for anything.
```bash setup: not here; .ci/run does just that.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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


def run_console(text, cwd):
    """Each command with its output; `cd` holds for the following ones."""
    for entry in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, *expected = entry.rstrip("\n").split("\n")
        if command.startswith("cd "):
            cwd = cwd / shlex.split(command)[1]
            continue
        done = run(["bash", "-c", command], cwd)
        printed = "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())
        assert as_pattern(expected).fullmatch(printed), f"$ {command}\n{done.stdout}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_block_of_the_page(page, tmp_path):
    (tmp_path / "pipelines").mkdir()
    for kind, info, text in BLOCK.findall(page.read_text()):
        if info == "setup":
            continue
        if kind == "console":
            run_console(text, tmp_path)
        elif info:
            (tmp_path / info).parent.mkdir(exist_ok=True)
            (tmp_path / info).write_text(text)
        elif kind == "python":
            (tmp_path / "snippet.py").write_text(text)
            done = run([sys.executable, "snippet.py"], tmp_path)
            assert done.returncode == 0, done.stdout
            for expected in re.findall(r"print\(.*\)  # (.*)", text):
                assert expected in done.stdout
        else:
            raise AssertionError(f"{page.name}: a block of an unknown kind: {kind}")


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target
