"""The options of a job, for every command that adds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from fp_async.cli.running import Seconds

_TIMES = ("delay", "run_at")
Decorator = Callable[[Callable[..., Any]], Any]


def _when(*, hidden: bool) -> tuple[Decorator, ...]:
    return (
        click.option(
            "--delay",
            type=Seconds(or_none=True),
            metavar="SECONDS",
            hidden=hidden,
            help="Start it that much later.",
        ),
        click.option(
            "--run-at",
            metavar="TIME",
            hidden=hidden,
            help="Start it then: 2027-01-31T08:00:00, local time, or with an offset (+01:00).",
        ),
    )


_WHO = (
    click.option("--queue", help="Which workers may take it. Default: default."),
    click.option("--priority", type=int, help="Higher is sooner. Default: 0."),
)
_RULES = (
    click.option("--key", help="At most one active job bears it: another gives that one's id."),
    click.option(
        "--expires", type=Seconds(), metavar="SECONDS", help="Drop it if it starts no sooner."
    ),
    click.option(
        "--retry",
        type=click.IntRange(1),
        metavar="N",
        help="Try it N times in all when the pipeline raises.",
    ),
    click.option(
        "--on-crash",
        type=click.Choice(["retry", "fail"]),
        help="When its process or machine dies. Default: retry.",
    ),
    click.option("--max-crashes", type=click.IntRange(1), metavar="N", help="Then it has failed."),
    click.option(
        "--concurrency",
        type=click.IntRange(1),
        metavar="N",
        help="How many jobs of this pipeline may run at once.",
    ),
    click.option(
        "--on",
        metavar="TARGET",
        help="Run it on an agent: agent:NAME, any:tag=value, all:tag=value.",
    ),
    click.option(
        "--on-lost",
        type=click.Choice(["wait", "reassign", "fail"]),
        help="When that agent stays away. Default: wait; reassign for any:.",
    ),
    click.option(
        "--lost-after",
        type=Seconds(),
        metavar="SECONDS",
        help="How long it has to be away for that. Default: 300.",
    ),
    click.option(
        "--require-version",
        is_flag=True,
        default=None,
        help="The agent must have the same version of the pipeline.",
    ),
    click.option(
        "--result-ttl", type=Seconds(), metavar="SECONDS", help="How long it is kept: 7 days."
    ),
)


def job_options(*, times: bool = True) -> Decorator:
    """The options of a job. Without `times`, those that say when it runs are only refused."""
    options = (*_WHO, *_when(hidden=not times), *_RULES)

    def decorate(function: Callable[..., Any]) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


_NAMES = (
    *("queue", "priority", "delay", "run_at", "key", "expires", "retry", "on_crash"),
    *("max_crashes", "concurrency", "result_ttl", "on", "on_lost", "lost_after"),
    "require_version",
)


def taken(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a job, taken out of all that a command was given; what is None is left out."""
    found = {name: options.pop(name) for name in _NAMES}
    if found["retry"] is not None:
        found["retry"] = {"max_attempts": found["retry"]}
    return {name: value for name, value in found.items() if value is not None}
