"""From what a user asks for to the rows that say it: jobs and schedules."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from types import ModuleType
from typing import Any, get_args

import msgspec

from fp_async import (
    codec,
    executors,
    jobs,
    targets,
    tracing,
    tracked_places,
    triggers,
    versions,
)
from fp_async import config as configs
from fp_async.config import ExecutorSettings, Retry, RunSettings
from fp_async.errors import FlowerPowerError, InputError, UnknownNameError, UsageError
from fp_async.flow import Flow
from fp_async.flows import Flows, Params
from fp_async.job_values import template_of
from fp_async.jobs import Find, Job, Schedule, Template
from fp_async.options import JobOptions, ScheduleOptions
from fp_async.param_types import as_data
from fp_async.targets import LONGEST, seconds
from fp_async.values import arguments, mismatch
from fp_async.values.coerce import plain

FROM_CONF = "conf"


_JOB = frozenset(JobOptions.__annotations__)
_ONLY_JOBS = frozenset({"run_at", "delay"})
_POLICY = ("misfire_grace_time", "coalesce", "max_catch_up", "max_jitter")
_OVERLAPS = ("allow", "skip", "queue")
_ON_CRASH = get_args(jobs.OnCrash)
_OF_PIPELINE = ("inputs", "config", "params")  # what has to fit the pipeline


def job(flows: Flows | None, name: str, options: Mapping[str, Any], now: float) -> Job:
    """The row of a new job. Raises UnknownNameError, UsageError, EncodingError, ConfigError.

    Without `flows` nothing is known of the project: whoever runs the job checks what it is given.
    """
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


def _template(flows: Flows | None, name: str, options: Mapping[str, Any]) -> Template:
    given = {key: value for key, value in options.items() if value is not None}
    environment = given.get("environment", configs.DEFAULT_ENVIRONMENT)
    settings, version = RunSettings(), None
    target = None if "on" not in given else targets.targeted(given)
    if flows is None:
        given = _unchecked(name, given)
    else:
        flows.refresh(within=1.0)
        flows.require(name)
        given = _typed(flows, name, given)
        settings = flows.settings(name, environment)
        if _either(given, settings, "with_tracker", False):
            tracked_places.place(flows.root, name)
        version = None if target is None else versions.version(flows.root, name)
    if given.get("executor") is not None:
        executors.check_name(given["executor"])
    try:
        fields = {
            "spec": {
                **_spec(given, settings, environment),
                **targets.rules(given, version),
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
        return targets.fitting(msgspec.convert(fields, Template))
    except msgspec.ValidationError as error:
        text = str(mismatch.explain(fields, Template)).removeprefix("spec.")
        raise UsageError(f"options of a job of '{name}': {text}") from error


def _unchecked(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options of a job whose project is elsewhere. Raises UsageError for those that need it."""
    _name("the name of a pipeline", name)
    if given.get("require_version"):
        raise UsageError("require_version: the version is that of a project's files; use Project")
    asked = {option: given[option] for option in _OF_PIPELINE if given.get(option)}
    if "params" in asked:
        asked["params"] = _data(arguments.nested("params", asked["params"]), (), {})
    return {**given, **asked}


def _typed(flows: Flows, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The options with inputs, parameters and configuration that fit the pipeline.

    Raises UnknownNameError and InputError for what does not, with the words of a run. Where the
    pipeline cannot be loaded, or an agent has it, whoever runs it says so: its packages may be on
    that machine only. What was text is read there, too.
    """
    asked = {option: given[option] for option in _OF_PIPELINE if given.get(option)}
    if not asked:
        return given
    inputs = arguments.mapping("inputs", given.get("inputs"))
    params = arguments.nested("params", given.get("params"))
    config = arguments.mapping("config", given.get("config"))
    environment = given.get("environment", configs.DEFAULT_ENVIRONMENT)
    known = flows.parameters(name, environment)
    made = {"inputs": inputs, "config": plain(dict(config)), "params": _data(params, (), known)}
    if not given.get("on") and (flow := _loaded(flows, name, environment, config, params)):
        made = {
            "inputs": _stored(flow, inputs),
            "config": {key: flow.graph.config[key] for key in config if key in flow.graph.config},
            "params": _data(params, flow.graph.modules, known),
        }
    return {**given, **{option: made[option] for option in asked}}


def _data(params: Params, modules: Sequence[ModuleType], known: Params) -> dict[str, Any]:
    """Parameters as JSON data. Raises InputError, UsageError."""
    try:
        return as_data(params, modules, known)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"params of a job is stored as JSON: {error}") from error


def _stored(flow: Flow, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as the job keeps them. Raises InputError, EncodingError."""
    try:
        return flow.stored(inputs)
    except InputError:
        codec.encode(inputs, what="input")  # what no job can have is told first
        raise


def _loaded(
    flows: Flows, name: str, environment: str, config: Mapping[str, Any], params: Params
) -> Flow | None:
    """The pipeline without the parameters, which is loaded once for any number of jobs, and mostly
    knows; else with them.
    """
    problem: FlowerPowerError | None = None
    for given in (None, params) if params else (None,):
        try:
            flow = flows.flow(name, environment=environment, config=config, params=given)
            flow.known.check(params)
        except FlowerPowerError as error:
            problem = error
        else:
            return flow
    if isinstance(problem, UnknownNameError | InputError):
        raise problem
    return None


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
        "cache": given.get("cache"),
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


def find(query: Mapping[str, Any], now: float) -> Find:
    """Which jobs to list. Raises UnknownNameError, UsageError."""
    known = Find.__struct_fields__
    for name in query:
        if name not in known:
            raise UnknownNameError("argument", name, known, where=" of list_jobs()")
    given = {name: value for name, value in query.items() if value is not None}
    states = arguments.names("states", given.get("states"))
    limit = arguments.limit(given.get("limit", Find().limit))
    since = _since(given.get("since"), now)
    fields = {**given, "states": states, "limit": limit, "since": since}
    return mismatch.converted(fields, Find, "list_jobs()")


def _since(since: Any, now: float) -> float | None:
    if since is None:
        return None
    if isinstance(since, timedelta):
        return now - seconds("since", since, least=0.0)
    # A datetime is rounded to microseconds: what was added at that very moment belongs to it.
    return targets.moment(since, "since") - 1e-6


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
    if offline and str(template.target).startswith("any:"):
        raise UsageError(
            f"offline: {template.target!r} is one agent of several, and without a network they "
            "cannot agree which; name one (agent:NAME), or let each of them fire it (all:tag=value)"
        )
    return offline


def schedule(
    flows: Flows | None,
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
    return mismatch.converted(given, triggers.Policy, "schedule")


def _digest(*parts: Any) -> str:
    # A field that came later only counts where it is set: ids and times of schedules are kept.
    text = repr(parts).replace(", cache=None", "")
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def same(old: Schedule, new: Schedule) -> bool:
    """Whether a schedule that is put again was not changed: its times then go on as they were."""
    return (
        template_of(old).digest == template_of(new).digest
        and (old.pipeline, old.origin) == (new.pipeline, new.origin)
        and (old.paused or not new.paused)
    )


def next_fire(row: Schedule, now: float) -> float | None:
    """When a schedule that is resumed fires next: never for a time that has passed."""
    if template_of(row).offline:
        return None  # the agents fire it
    return triggers.first_fire(triggers.decode(row.trigger), now)
