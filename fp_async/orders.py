"""From what a user asks for to the rows that say it: jobs and schedules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypedDict, get_args

import msgspec

from fp_async import (
    arguments,
    codec,
    documents,
    executors,
    jobs,
    targets,
    tracing,
    tracked_places,
    triggers,
)
from fp_async import config as configs
from fp_async.config import ExecutorSettings, Retry, RunSettings
from fp_async.errors import FlowerPowerError, UnknownNameError, UsageError
from fp_async.flows import Flows
from fp_async.jobs import Find, Job, Schedule, Spec, Template
from fp_async.params import check_names
from fp_async.targets import LONGEST, seconds

FROM_CONF = "conf"


class JobOptions(TypedDict, total=False):
    """What can be said of a job beside its pipeline. See `Project.add_job`."""

    inputs: Mapping[str, Any] | None
    final_vars: Sequence[str] | str | None
    config: Mapping[str, Any] | None
    environment: str
    executor: str | Mapping[str, Any] | ExecutorSettings | None
    params: Mapping[str, Mapping[str, Any]] | None
    with_tracker: bool | None
    run_at: datetime | str | float | None
    delay: float | timedelta | None
    priority: int | None
    key: str | None
    timeout: float | None
    retry: Retry | Mapping[str, Any] | None
    on_crash: jobs.OnCrash | None
    max_crashes: int | None
    concurrency: int | None
    expires: float | timedelta | None
    queue: str | None
    result_ttl: float | timedelta | None
    on: str | None
    on_lost: jobs.OnLost | None
    lost_after: float | timedelta | None
    require_version: bool | None


class ScheduleOptions(JobOptions, total=False):
    """What can be said of a schedule beside its trigger. See `Project.schedule`."""

    id: str | None
    paused: bool
    overlap: str
    misfire_grace_time: float | timedelta | None
    coalesce: str
    max_catch_up: int
    max_jitter: float
    timezone: str | None
    offline: bool


_JOB = frozenset(JobOptions.__annotations__)
_ONLY_JOBS = frozenset({"run_at", "delay"})
_POLICY = ("misfire_grace_time", "coalesce", "max_catch_up", "max_jitter")
_OVERLAPS = ("allow", "skip", "queue")
_ON_CRASH = get_args(jobs.OnCrash)


def job(flows: Flows, name: str, options: Mapping[str, Any], now: float) -> Job:
    """The row of a new job. Raises UnknownNameError, UsageError, EncodingError, ConfigError."""
    for option in options:
        if option not in _JOB:
            raise UnknownNameError("option", option, _JOB, where=" of a job")
    template = _template(flows, name, options)
    run_at, delay = options.get("run_at"), options.get("delay")
    if run_at is not None and delay is not None:
        raise UsageError("give run_at or delay, not both")
    due = targets.moment(run_at) if run_at is not None else 0.0
    if delay is not None:
        due = now + seconds("delay", delay, least=0.0)
    made = from_template(template, jobs.new_id(), name, due, now)
    if (trace := tracing.current()) is None:
        return made
    spec = msgspec.structs.replace(template.spec, trace=trace)
    return msgspec.structs.replace(made, spec=msgspec.json.encode(spec))


def from_template(template: Template, id: str, name: str, run_at: float, now: float) -> Job:
    """A job as a template has it; `run_at` 0 means now."""
    expires = template.expires_in
    return Job(
        id=id,
        pipeline=name,
        queue=template.queue,
        priority=template.priority,
        target=template.target,
        run_at=run_at,
        expires_at=None if expires is None else max(run_at, now) + expires,
        key=template.key,
        concurrency=template.concurrency,
        result_ttl=template.result_ttl,
        spec=msgspec.json.encode(template.spec),
        inputs=template.inputs,
    )


def again(old: Job) -> Job:
    """A new job like one that has ended."""
    return Job(
        id=jobs.new_id(),
        pipeline=old.pipeline,
        queue=old.queue,
        priority=old.priority,
        target=old.target,
        key=old.key,
        concurrency=old.concurrency,
        result_ttl=old.result_ttl,
        spec=old.spec,
        inputs=old.inputs,
        retried_from=old.id,
    )


def _template(flows: Flows, name: str, options: Mapping[str, Any]) -> Template:
    flows.refresh(within=1.0)
    flows.require(name)
    given = {key: value for key, value in options.items() if value is not None}
    environment = given.get("environment", configs.DEFAULT_ENVIRONMENT)
    settings = flows.settings(name, environment)
    if _either(given, settings, "with_tracker", False):
        tracked_places.place(flows.root, name)
    target = None if "on" not in given else targets.targeted(given)
    if given.get("executor") is not None:
        executors.check_name(given["executor"])
    try:
        fields = {
            "spec": {
                **_spec(given, settings, environment),
                **targets.rules(flows.root, name, given),
            },
            "inputs": _encoded(given.get("inputs"), target),
            "target": target,
            "queue": _queue(_either(given, settings, "queue", jobs.DEFAULT_QUEUE)),
            "priority": _either(given, settings, "priority", 0),
            "key": None if "key" not in given else _name("key", given["key"]),
            "concurrency": _either(given, settings, "concurrency", None),
            "expires_in": _positive(_either(given, settings, "expires", None), "expires"),
            "result_ttl": _positive(
                _either(given, settings, "result_ttl", jobs.RESULT_TTL), "result_ttl"
            ),
        }
        template = targets.fitting(msgspec.convert(fields, Template))
    except msgspec.ValidationError as error:
        text = documents.explained(error, fields, Template).removeprefix("spec.")
        raise UsageError(f"options of a job of '{name}': {text}") from error
    if template.spec.params and target is None:
        _check_params(flows, name, template.spec)
    return template


def _check_params(flows: Flows, name: str, spec: Spec) -> None:
    """Raises UnknownNameError for params that the pipeline has no use for.

    Where it cannot be loaded, whoever runs it says so: its packages may be on that machine only.
    The pipeline without the params is loaded once for any number of jobs, and mostly knows.
    """
    load = partial(flows.flow, name, environment=spec.environment, config=spec.config)
    try:
        flow = load()
        check_names(spec.params or {}, flow.functions, flow.graph.modules, flow.namespace.params)
    except FlowerPowerError:
        try:
            load(params=spec.params)
        except UnknownNameError:
            raise
        except FlowerPowerError:
            return


def _encoded(inputs: Any, target: str | None) -> bytes:
    found = arguments.mapping("inputs", inputs)
    return codec.encode(found, limit=targets.INPUT_LIMITS[target is None], what="input")


def _spec(given: Mapping[str, Any], settings: RunSettings, environment: str) -> dict[str, Any]:
    """The fields of a `Spec`, not checked yet."""
    finals = given.get("final_vars")
    retry = _either(given, settings, "retry", None)
    if isinstance(retry, Retry):  # made by hand, so not checked yet
        retry = msgspec.to_builtins(retry)
    timeout = _either(given, settings, "timeout", None)
    return {
        "final_vars": [finals] if isinstance(finals, str) else finals,
        "config": _plain("config", arguments.mapping, given.get("config")),
        "environment": environment,
        "executor": _executor(given.get("executor")),
        "params": _plain("params", arguments.nested, given.get("params")),
        "with_tracker": _either(given, settings, "with_tracker", None) or None,
        "timeout": _positive(timeout, "timeout"),
        "retry": retry,
        "on_crash": targets.one_of(
            "on_crash", _either(given, settings, "on_crash", "retry"), _ON_CRASH
        ),
        "max_crashes": _either(given, settings, "max_crashes", jobs.MAX_CRASHES),
    }


def _executor(executor: Any) -> Any:
    """As it is stored; settings made by hand are not checked yet."""
    if isinstance(executor, Mapping):
        return dict(executor)
    return msgspec.to_builtins(executor) if isinstance(executor, ExecutorSettings) else executor


def _plain(what: str, checked: Callable[[str, Any], Any], values: Any) -> Any:
    """Config or params as the plain data that they will be for whoever runs the job."""
    if values is None:
        return None
    try:
        return msgspec.json.decode(msgspec.json.encode(checked(what, values), enc_hook=_as_dict))
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} of a job is stored as JSON: {error}") from error


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _either(given: Mapping[str, Any], settings: RunSettings, name: str, default: Any) -> Any:
    """What the caller says, else what the configuration says."""
    if name in given:
        return given[name]
    configured = getattr(settings, name)
    return default if configured is None else configured


def _name(what: str, text: Any) -> str:
    if not isinstance(text, str) or not text or len(text) > LONGEST or not text.isprintable():
        raise UsageError(f"{what} is a text of 1 to {LONGEST} printable characters, not {text!r}")
    return text


def _queue(text: Any) -> str:
    if "," in _name("queue", text):
        raise UsageError(f"queue is the name of one queue, without a comma, not {text!r}")
    return str(text)


def _positive(value: Any, what: str) -> float | None:
    return None if value is None else seconds(what, value, least=1e-9)


def find(query: Mapping[str, Any]) -> Find:
    """Which jobs to list. Raises UnknownNameError, UsageError."""
    known = Find.__struct_fields__
    for name in query:
        if name not in known:
            raise UnknownNameError("argument", name, known, where=" of list_jobs()")
    given = {name: value for name, value in query.items() if value is not None}
    states = arguments.names("states", given.get("states"))
    limit = arguments.limit(given.get("limit", Find().limit))
    return documents.converted({**given, "states": states, "limit": limit}, Find, "list_jobs()")


# Schedules ----------------------------------------------------------------------------------


def _overlap(options: Mapping[str, Any], template: Template) -> str:
    overlap: str = options.get("overlap") or "allow"
    targets.one_of("overlap", overlap, _OVERLAPS)
    if overlap != "allow" and template.key is not None:
        raise UsageError("key and overlap are two ways to say the same; give one of them")
    return overlap


def _offline(options: Mapping[str, Any], template: Template) -> bool:
    offline = bool(options.get("offline"))
    if offline and template.target is None:
        raise UsageError("offline: such a schedule is kept by agents; say which: on='agent:NAME'")
    return offline


def schedule(
    flows: Flows,
    name: str,
    trigger: Any,
    args: Sequence[Any],
    options: Mapping[str, Any],
    now: float,
    *,
    origin: str = "api",
) -> Schedule:
    """The row of a schedule: options are the job's, the schedule's own, or the trigger's."""
    own = frozenset(ScheduleOptions.__annotations__) - _JOB
    of_job = {key: value for key, value in options.items() if key in _JOB}
    of_trigger = {key: v for key, v in options.items() if key not in _JOB and key not in own}
    for option in _ONLY_JOBS & of_job.keys():
        raise UsageError(f"{option} is for single jobs; a schedule's trigger says when")
    of_kind = _arguments(trigger, args, of_trigger)
    spec = triggers.parse(trigger, of_kind, timezone=options.get("timezone"), now=now)
    policy = _policy(options)
    template = _template(flows, name, of_job)
    overlap, offline = _overlap(options, template), _offline(options, template)
    digest = _digest(
        trigger,
        of_kind,
        options.get("timezone"),
        policy,
        template,
        overlap,
        offline,
    )
    id = options.get("id")
    id = f"{name}-{_kind(spec)}-{digest[:6]}" if id is None else _name("id", id)
    template = msgspec.structs.replace(template, overlap=overlap, digest=digest, offline=offline)
    return Schedule(
        id=id,
        pipeline=name,
        trigger=msgspec.json.encode(spec),
        policy=msgspec.json.encode(policy),
        template=msgspec.json.encode(template),
        paused=bool(options.get("paused", False)),
        next_fire_time=None if offline else triggers.first_fire(spec, now),
        origin=origin,
    )


_FIRST = {"cron": "crontab", "crontab": "crontab", "date": "run_date"}


def _arguments(trigger: Any, args: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """A trigger's arguments by name: one may stand alone, as in `"crontab", "0 3 * * *"`."""
    if not args:
        return dict(named)
    first = _FIRST.get(trigger) if isinstance(trigger, str) else None
    if len(args) > 1 or first is None:
        raise UsageError("name the arguments of a trigger: 'interval', seconds=30")
    return {first: args[0], **named}


def _kind(spec: Any) -> str:
    return str(msgspec.to_builtins(spec)["type"])


def _policy(options: Mapping[str, Any]) -> triggers.Policy:
    given = {name: options[name] for name in _POLICY if options.get(name) is not None}
    if "misfire_grace_time" in given:
        what = "misfire_grace_time"
        given[what] = seconds(what, given[what], least=0.0)
    try:
        return msgspec.convert(given, triggers.Policy)
    except msgspec.ValidationError as error:
        text = documents.explained(error, given, triggers.Policy)
        raise UsageError(f"schedule: {text}") from error


def _digest(*parts: Any) -> str:
    return hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()


def same(old: Schedule, new: Schedule) -> bool:
    """Whether a schedule that is put again was not changed: its times then go on as they were."""
    return (
        template_of(old).digest == template_of(new).digest
        and (old.pipeline, old.origin) == (new.pipeline, new.origin)
        and (old.paused or not new.paused)
    )


def template_of(row: Schedule) -> Template:
    """The decoded template."""
    return _templates.decode(row.template)


_templates = msgspec.json.Decoder(Template)


def next_fire(row: Schedule, now: float) -> float | None:
    """When a schedule that is resumed fires next: never for a time that has passed."""
    if template_of(row).offline:
        return None  # the agents fire it
    return triggers.first_fire(triggers.decode(row.trigger), now)
