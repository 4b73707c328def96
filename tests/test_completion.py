"""Completion of names: what is offered, and that bash, zsh and fish do it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete
from terminal import Terminal

from fp_async.cli import cli
from fp_async.lifecycle import STATES

COMMAND = Path(sys.executable).parent / "flowerpower"
WITH_PATH = {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}
CONF = """
    run:
      my_flow:
        dev: {}
        prod: {inputs: {count: 2}}
"""
FLOW = """
    print("on stdout, where a shell would take it for a name")
    def scaled(count: int, factor: float = 2.0) -> float:
        return count * factor
"""


@pytest.fixture
def project(make_project):
    project = make_project(CONF, my_flow=FLOW, other="def one() -> int:\n    return 1\n")
    (project.root / "conf" / "scheduler.yml").write_text(
        "data_store: {type: sqlite, uri: 'sqlite:///jobs.db'}\n"
    )
    return project


@pytest.fixture
def complete(project):
    """Completes words in this process; the last one is at the cursor."""
    before, path = Path.cwd(), sys.path[:]
    os.chdir(project.root)

    def completed(*words):
        *args, incomplete = words
        found = ShellComplete(cli, {}, "flowerpower", "_TEST").get_completions(args, incomplete)
        return [item.value for item in found]

    yield completed
    os.chdir(before)
    sys.path[:] = path


def test_d7_names_of_the_project_are_offered(complete):
    for command in ("run", "run-job", "add-job", "show", "delete", "schedule"):
        assert complete(command, "") == ["my_flow", "other"]
    assert complete("run", "o") == ["other"]
    assert complete("jobs", "--pipeline", "my") == ["my_flow"]
    assert complete("run", "my_flow", "--environment", "") == ["dev", "prod"]
    assert complete("show", "other", "-e", "") == ["dev"]
    assert complete("run", "my_flow", "--inputs", "") == ["count=", "factor="]
    assert complete("run", "my_flow", "--inputs", "count=3,") == ["count=3,factor="]
    assert complete("add-job", "my_flow", "--final-vars", "sc") == ["scaled"]
    assert complete("schedule", "my_flow", "--timezone", "Europe/Ber") == ["Europe/Berlin"]
    assert complete("jobs", "--state", "") == sorted(STATES)
    assert complete("jobs", "--state", "failed,can") == ["failed,cancelled"]


def test_d7_the_misspelt_option_works_and_is_not_offered(complete):
    assert complete("run", "my_flow", "--env") == ["--environment", "--env-file"]
    told = complete("run", "my_flow", "--enviroment", "prod", "--inputs", "f")
    assert told == ["factor="]


def test_d7_what_is_broken_or_not_there_offers_nothing(complete, project):
    assert complete("job", "") == []
    assert complete("schedules", "show", "") == []
    assert not (project.root / "jobs.db").exists()
    assert complete("run", "nothing", "--inputs", "") == []
    (project.root / "conf" / "pipelines.yml").write_text("run: [")
    assert complete("run", "my_flow", "--environment", "") == []
    assert complete("run", "--base-dir", "/nowhere", "") == []


@pytest.fixture
async def ids(project):
    async with project:
        queued = await project.add_job("other")
        ended = await project.add_job("other", on=None)
        await project.cancel_job(ended)
        await project.schedule("other", "interval", hours=1, id="hourly")
    return queued, ended


async def test_d7_ids_are_offered_by_what_a_command_can_do(ids, complete, project):
    from anyio import to_thread

    queued, ended = ids
    assert await to_thread.run_sync(complete, "job", "") == [ended, queued]
    assert await to_thread.run_sync(complete, "job", queued[:25]) == [queued]
    assert await to_thread.run_sync(complete, "cancel", "") == [queued]
    assert await to_thread.run_sync(complete, "cancel", queued, "") == []
    assert await to_thread.run_sync(complete, "retry", "") == [ended]
    assert await to_thread.run_sync(complete, "schedules", "pause", "h") == ["hourly"]
    assert await to_thread.run_sync(complete, "jobs", "--schedule", "") == ["hourly"]


# The shells themselves --------------------------------------------------------------------------


def need(shell):
    if shutil.which(shell) is None:
        if os.environ.get("FP_REQUIRE_SERVICES"):
            pytest.fail(f"{shell} is not installed")
        pytest.skip(f"{shell} is not installed")


SHELLS = {
    "bash": (("bash", "--norc", "--noprofile", "-i"), "PS1='> '"),
    "zsh": (("zsh", "-f", "-i"), "PROMPT='> '; autoload -Uz compinit; compinit -D -u"),
}


@pytest.mark.parametrize("shell", SHELLS)
async def test_d7_a_tab_completes_names(shell, project, ids):
    need(shell)
    command, setup = SHELLS[shell]
    queued, _ = ids
    env = {**WITH_PATH, "HISTFILE": ""}
    with Terminal(*command, cwd=project.root, columns=400, env=env) as terminal:
        terminal.press(f'{setup}; eval "$(_FLOWERPOWER_COMPLETE={shell}_source flowerpower)"\n')
        terminal.press("echo re''ady\n")
        terminal.until("ready")
        for typed, completed in (
            ("run my\t", "run my_flow "),
            ("--enviro\t", "--environment "),
            ("pr\t", "prod "),
            ("--inputs co\t", "--inputs count="),
            ("3,fa\t", "count=3,factor="),
            ("2 ; flowerpower cancel \t", f"factor=2 ; flowerpower cancel {queued} "),
            ("; flowerpower schedules pause ho\t", "pause hourly "),
        ):
            terminal.press(f"flowerpower {typed}" if typed.startswith("run") else typed)
            terminal.until(completed.replace("+", r"\+"))


async def test_d7_fish_completes_names(project, ids):
    need("fish")
    queued, ended = ids
    lines = ["run m", "run my_flow --environment p", "run my_flow --inputs count=3,", "job "]
    asked = "; ".join(f"echo '{line}:'; complete -C 'flowerpower {line}'" for line in lines)
    script = f"_FLOWERPOWER_COMPLETE=fish_source flowerpower | source; {asked}"
    done = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=project.root,
        env={**os.environ, **WITH_PATH},
        capture_output=True,
        text=True,
        timeout=60,
    )
    found = [line.split("\t")[0] for line in done.stdout.splitlines()]
    assert [*found[:-2], *sorted(found[-2:])] == [  # fish sorts in its own way
        *("run m:", "my_flow"),
        *("run my_flow --environment p:", "prod"),
        *("run my_flow --inputs count=3,:", "count=3,factor="),
        *("job :", *sorted((ended, queued))),
    ], done.stderr
