"""The benchmark of the edge runs to its end; how fast anything is, is not asked here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import services

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("part", ["latency", "jobs", "swarm1000", "growth", "backlog"])
def test_the_edge_can_be_measured(part, tmp_path):
    services.program("mosquitto")
    figures = tmp_path / "figures.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "edge.py"), "--quick"]
    done = subprocess.run(
        [*command, "--only", part, "--folder", str(tmp_path), "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(figures.read_text()).keys() == {part}
