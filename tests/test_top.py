"""`flowerpower top` in a terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from terminal import Terminal

COMMAND = Path(sys.executable).parent / "flowerpower"


@pytest.mark.parametrize("columns", [80, 160])
def test_d13_q_ends_top_and_leaves_the_terminal_as_it_was(make_project, columns):
    root = make_project(flow="def one() -> int:\n    return 1\n").root
    script = f"{COMMAND} top; echo ended $?; stty -a"
    with Terminal("sh", "-c", script, cwd=root, columns=columns) as terminal:
        terminal.until("nothing runs")
        terminal.press("x")
        terminal.press("q")
        terminal.until("ended 0")
        shown = terminal.end()[1]
    assert " icanon" in shown
    assert max(map(len, shown.split("ended")[0].splitlines())) <= columns


def test_d13_top_without_a_terminal_to_read_from_goes_on_until_it_is_told(make_project):
    root = make_project(flow="def one() -> int:\n    return 1\n").root
    done = subprocess.run(
        [COMMAND, "top"], cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "no workers" in done.stdout
