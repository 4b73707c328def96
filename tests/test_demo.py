"""`flowerpower demo` and `flowerpower up`, as a person starts them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import services
from fleet import make

from fp_async.errors import JobNotFinishedError

pytest.importorskip("iotcore")
COMMAND = str(Path(sys.executable).with_name("flowerpower"))


def processes_in(folder):
    """Those that still work somewhere below a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(folder)) or str(folder) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_the_demo_twice_in_a_row_leaves_nothing(tmp_path):
    for _ in range(2):
        began = time.monotonic()
        done = subprocess.run(
            [COMMAND, "demo"], cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert time.monotonic() - began < 60
        for text in ("succeeded on the device", '"outcome":"succeeded"', "nothing was lost"):
            assert text in done.stdout
        assert list(tmp_path.iterdir()) == []
        assert processes_in(tmp_path) == []


def test_an_interrupted_demo_ends_clean(tmp_path):
    process = subprocess.Popen(
        [COMMAND, "demo"], cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    while "run_job" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list(tmp_path.iterdir()) == []
    assert processes_in(tmp_path) == []


async def test_up_has_all_that_a_project_needs(tmp_path):
    project = make(tmp_path / "project", "data_store: {type: sqlite, uri: 'sqlite:///jobs.db'}\n")
    with services.Mosquitto() as server:
        port = server.port
        (project.root / "conf" / "mqtt.yml").write_text(
            f"broker: {{uri: 'mqtt://127.0.0.1:{port}'}}\n"
        )
        process = subprocess.Popen(
            [COMMAND, "up", "--agents", "2"], cwd=project.root, stderr=subprocess.PIPE, text=True
        )
        try:
            inputs = {"number": 4, "seconds": 0.0, "starts": str(tmp_path / "starts")}
            deadline = time.monotonic() + 30
            while True:
                try:
                    assert await project.run_job("work", on="agent:agent-2", inputs=inputs) == {
                        "value": 8
                    }
                    break
                except JobNotFinishedError:
                    assert time.monotonic() < deadline
            assert await project.run_job("work", inputs=inputs) == {"value": 8}
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=40)
    assert process.returncode == 130
    assert processes_in(project.root) == []
