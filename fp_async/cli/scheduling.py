"""`schedule`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from fp_async.cli import completing
from fp_async.cli.following import output_option
from fp_async.cli.jobs import with_client
from fp_async.cli.ordering import job_options, taken
from fp_async.cli.running import Seconds, ask, assigned, run_options
from fp_async.cli.saying import echo, style
from fp_async.errors import UsageError
from fp_async.values.text import Text

if TYPE_CHECKING:
    from fp_async.client import JobClient
    from fp_async.jobs import Schedule
    from fp_async.project import Project

_SHORTEST = 28  # days of every month
_KINDS = ("interval", "cron", "date", "calendarinterval")
_OWN = (
    *("id", "timezone", "overlap", "misfire_grace_time", "coalesce", "max_catch_up"),
    *("max_jitter", "paused", "offline"),
)
_OF_ALL = ("everything", "output", "base_dir")
Row = tuple["Schedule", str | None]  # a schedule, and the id of the job that --now has added


def _schedule_options(function: Callable[..., Any]) -> Any:
    options = (
        click.option("--type", "kind", metavar="|".join(("crontab", *_KINDS))),
        click.option("--interval-params", multiple=True, metavar="K=V", help="seconds=30"),
        click.option(
            "--cron-params", multiple=True, metavar="K=V", help="hour=3,day_of_week=mon-fri"
        ),
        click.option("--crontab", metavar="TEXT", help='"0 3 * * 1-5"'),
        click.option(
            "--date-params", multiple=True, metavar="K=V", help="run_date=2027-01-31T08:00:00"
        ),
        click.option(
            "--calendarinterval-params", multiple=True, metavar="K=V", help="months=1,hour=3"
        ),
        click.option("--all", "everything", is_flag=True, help="Those of conf/pipelines.yml."),
        click.option("--now", is_flag=True, help="Add one job at once, too."),
        click.option("--id", help="Default: from the pipeline and the trigger."),
        click.option("--paused", is_flag=True, help="Fire only after `schedules resume`."),
        click.option(
            "--offline",
            is_flag=True,
            help="With --on: the agents keep it, and fire it without a network, too.",
        ),
        click.option(
            "--timezone",
            metavar="NAME",
            shell_complete=completing.zones,
            help="Europe/Berlin. Default: the machine's.",
        ),
        click.option(
            "--overlap",
            type=click.Choice(["allow", "skip", "queue"]),
            help="While the job before still runs. Default: allow.",
        ),
        click.option(
            "--misfire-grace-time",
            type=Seconds(or_none=True),
            metavar="SECONDS",
            help="Drop times missed by more. Default: none is dropped.",
        ),
        click.option(
            "--coalesce",
            type=click.Choice(["latest", "earliest", "all"]),
            help="Which of several missed times to run. Default: latest.",
        ),
        click.option("--max-catch-up", type=click.IntRange(1), metavar="N", help="With all: 100."),
        click.option(
            "--max-jitter",
            type=Seconds(or_none=True),
            metavar="SECONDS",
            help="Start each job up to that much later.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@click.command()
@click.argument("name", required=False, shell_complete=completing.pipelines)
@_schedule_options
@run_options
@job_options(times=False)
@output_option
def schedule(
    name: str | None, output: str, base_dir: str | None, *, everything: bool, **options: Any
) -> None:
    """Run pipeline NAME as a job at set times.

    \b
      flowerpower schedule my_flow --type interval --interval-params seconds=30
      flowerpower schedule my_flow --type cron --cron-params hour=3,day_of_week=mon-fri
      flowerpower schedule my_flow --type cron --crontab "0 3 * * 1-5"
      flowerpower schedule my_flow --type date --date-params year=2027,month=1,day=31,hour=8
      flowerpower schedule my_flow --type calendarinterval --calendarinterval-params months=1
      flowerpower schedule --all

    --crontab means what cron(5) says: days of the week are 0 (Sunday) to 6, 7 is Sunday again,
    and where day of month and day of week are both given, one of them is enough.
    --cron-params are APScheduler's: 0 is Monday, and all that is given must be true.

    The same schedule once more changes nothing; another one of the same --id replaces it.
    `start-worker` fires schedules, or `start-scheduler`.
    """  # noqa: D301
    if everything == (name is not None):
        raise UsageError("give the NAME of a pipeline, or --all for those of conf/pipelines.yml")
    if everything:
        _refuse_others()
        with_client(base_dir, _apply, lambda rows: _show(rows, output))
        return
    assert name is not None
    with_client(
        base_dir,
        lambda project, client: _put(project, client, name, options),
        lambda rows: _show(rows, output),
    )


def _refuse_others() -> None:
    """--all takes the rest from the configuration: what else is given would be ignored."""
    context = click.get_current_context()
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is ParameterSource.COMMANDLINE and parameter.name not in _OF_ALL:
            raise UsageError(
                f"{parameter.opts[0]} is not for --all, which takes all from conf/pipelines.yml"
            )


async def _apply(project: Project, client: JobClient) -> list[Row]:  # noqa: ARG001
    return [(row, None) for row in await client.apply_schedules()]


async def _put(
    project: Project, client: JobClient, name: str, options: dict[str, Any]
) -> list[Row]:
    now = options.pop("now")
    kind, arguments = _trigger(options)
    own = {option: options.pop(option) for option in _OWN}
    if own["timezone"] is not None and "timezone" in arguments:
        raise UsageError(f"--timezone and timezone in --{kind}-params are the same; give one")
    order = taken(options)
    job = {**ask(project, name, on=order.get("on"), **options).options, **order}
    given = {option: value for option, value in own.items() if value is not None}
    row = await client.schedule(name, kind, (), {**job, **given, **arguments})
    return [(row, await client.add(name, job) if now else None)]


def _trigger(options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The kind of trigger and its arguments, from --type and the options of its kind."""
    from fp_async import triggers

    kind, crontab = options.pop("kind"), options.pop("crontab")
    params = {name: assigned(options.pop(f"{name}_params"), f"--{name}-params") for name in _KINDS}
    used = [name for name, given in params.items() if given]
    if crontab is not None and "cron" not in used:
        used.append("cron")
    if kind is None and len(used) != 1:
        raise UsageError("say when: --type interval --interval-params seconds=30, for example")
    kind = kind or used[0]
    for name in used:
        if name != kind and (name, kind) != ("cron", "crontab"):
            option = f"--{name}-params" if params[name] else "--crontab"
            raise UsageError(f"{option} is not for --type {kind}")
    found = params.get("cron" if kind == "crontab" else kind, {})
    arguments = {key: str(v) if isinstance(v, Text) else v for key, v in found.items()}
    if crontab is not None:
        arguments["crontab"] = crontab
    triggers.parse(kind, arguments, timezone=options["timezone"])  # no option of a job among them
    return kind, arguments


# What has become of it ----------------------------------------------------------------------


def _show(rows: list[Row], output: str) -> None:
    from fp_async.cli.output import echo_json
    from fp_async.cli.shown import next_times, schedule_json, stamp

    if output == "json":
        entries = [
            {
                **schedule_json(row),
                "next_fire_times": [stamp(moment) for moment in next_times(row)],
                "job": job,
            }
            for row, job in rows
        ]
        echo_json(entries)
    elif not rows:
        echo("conf/pipelines.yml has no schedule: entries", err=True)
    else:
        for row, job in rows:
            _echo(row, job)


def _is_offline(row: Schedule) -> bool:
    from fp_async.job_values import template_of

    return template_of(row).offline


def _skipped(row: Schedule) -> str:
    """Return a hint at months that have no such day; empty where each has it."""
    from fp_async import triggers

    spec = triggers.decode(row.trigger)
    if not isinstance(spec, triggers.CalendarInterval) or not (spec.months or spec.years):
        return ""
    return (
        f"months without a day {spec.start.day} are left out" if spec.start.day > _SHORTEST else ""
    )


def _echo(row: Schedule, job: str | None) -> None:
    from fp_async.cli.shown import ago, in_zone, next_times, words

    echo(f"{style(row.id, bold=True)}  {row.pipeline}  {words(row)}")
    if row.paused:
        echo(f"  paused; to start it: flowerpower schedules resume {row.id}")
    elif _is_offline(row):
        echo("  agents keep it and fire it; its jobs: flowerpower jobs")
    elif row.next_fire_time is None:
        way = "" if job else " (--now runs it once)"
        color = {"fg": "yellow"}
        echo(style(f"  it will not fire: its time has passed{way}", **color))
    if note := _skipped(row):
        echo(f"  {note}")
    for moment in next_times(row):
        echo(f"  next  {in_zone(moment, row)}  {ago(moment)}")
    if job is not None:
        echo(f"  job   {job}")
