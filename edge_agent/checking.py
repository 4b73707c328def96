"""Mistakes in a device's project, as `flowerpower check` finds them, and in agent.yml's triggers.

For a process of its own: it imports the pipelines. The doctor starts it and reads what it says.
"""

from __future__ import annotations

import os
import sys

import msgspec

from edge_agent.config import AgentSettings
from fp_async.checking import Problem, Report
from fp_async.errors import FlowerPowerError

COMMAND = (sys.executable, "-c", "from edge_agent.checking import main; main()")


def main() -> None:
    """Read settings from standard input, and write the report to standard output, as JSON; what
    pipelines print goes elsewhere.
    """
    settings = msgspec.json.decode(sys.stdin.buffer.read(), type=AgentSettings)
    said = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(said, "wb") as file:
        file.write(msgspec.json.encode(examined(settings)))


def examined(settings: AgentSettings) -> Report:
    """List the mistakes in the project, and in the calls that triggers make of its pipelines."""
    from fp_async import config_files, gateway_serving
    from fp_async.cli import entered

    config_files.own_process(lambda _: None)  # which is among what it finds
    try:
        project = entered(settings.project)
    except FlowerPowerError as error:
        return Report([], [Problem("error", settings.project, str(error))])
    report: Report = project.check()
    names = project.list()
    found = [
        Problem("error", f"triggers.{name}", f"{'.'.join(place)}: {text}")
        for name, trigger in settings.triggers.items()
        if trigger.pipeline in names
        for place, text in gateway_serving.unfit(project.flows, ("triggers", name), trigger)
    ]
    return Report(report.pipelines, [*report.problems, *found])
