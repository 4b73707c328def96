"""The user's functions that hear how a run or a job went: `on_success`, `on_failure`, `on_retry`.

They are told afterwards, and whatever becomes of them changes nothing of what they are told.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from fp_async.errors import UsageError, describe
from fp_async.jobs import Failure
from fp_async.threads import Threads, in_thread

if TYPE_CHECKING:
    from fp_async.config import RunSettings

log: logging.Logger = logging.getLogger("fp_async")
Kind = Literal["success", "failure", "retry"]
KINDS: tuple[Kind, ...] = ("success", "failure", "retry")
LIMIT = 30.0  # seconds for each function
_threads = Threads()


class RunEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a function of `on_success`, `on_failure` or `on_retry` is called with.

    `attempt` counts from 1 and took `seconds`. `job_id` is None for a run that is no job.
    `result` is what the run returned, None unless it succeeded; `error` is why it failed, and
    `retry_in` how many seconds later it is tried again.
    """

    kind: Kind
    pipeline: str
    environment: str = "dev"
    job_id: str | None = None
    attempt: int = 1
    seconds: float = 0.0
    inputs: dict[str, Any] = {}
    result: Any = None
    error: Failure | None = None
    retry_in: float | None = None

    def __str__(self) -> str:
        what = f"job {self.job_id} of" if self.job_id else "run of"
        return f"{what} '{self.pipeline}'"


Callback = Callable[[RunEvent], Any]
Given = Callback | Sequence[Callback] | None


class Callbacks(NamedTuple):
    """By what they hear of, in the order in which they are called."""

    success: tuple[Callback, ...] = ()
    failure: tuple[Callback, ...] = ()
    retry: tuple[Callback, ...] = ()

    def of(self, kind: Kind) -> tuple[Callback, ...]:
        """Those that hear of this."""
        found: tuple[Callback, ...] = getattr(self, kind)
        return found

    def then(self, others: Callbacks) -> Callbacks:
        """Both, the others after these."""
        if others is NONE:
            return self
        return Callbacks(*(mine + theirs for mine, theirs in zip(self, others, strict=True)))


NONE = Callbacks()


def heard(settings: RunSettings) -> list[Kind]:
    """Of what some configured function wants to hear."""
    told = (settings.on_success, settings.on_failure, settings.on_retry)
    return [kind for kind, names in zip(KINDS, told, strict=True) if names]


def given(success: Given, failure: Given, retry: Given) -> Callbacks:
    """As a caller gives them: a function, several, or none. Raises UsageError."""
    if success is failure is retry is None:
        return NONE
    return Callbacks(
        _functions("on_success", success),
        _functions("on_failure", failure),
        _functions("on_retry", retry),
    )


def _functions(name: str, value: Given) -> tuple[Callback, ...]:
    if value is None:
        return ()
    found = value if isinstance(value, list | tuple) else (value,)
    for each in found:
        if not callable(each):
            raise UsageError(f"{name} is a function of one argument, or several, not {each!r}")
    return tuple(found)


async def call(functions: Sequence[Callback], event: RunEvent) -> list[str]:
    """Call one after the other, sync ones in a thread, 30 s each; what went wrong.

    Cancelling cancels the coroutine that runs, or abandons the thread.
    """
    problems: list[str] = []
    for function in functions:
        try:
            async with asyncio.timeout(LIMIT) as scope:
                await _call(function, event)
        except TimeoutError as error:
            late = f"took longer than {LIMIT:g} s" if scope.expired() else describe(error)
            problems.append(_problem(function, event, late))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            problems.append(_problem(function, event, describe(error)))
        except (Exception, SystemExit) as error:
            problems.append(_problem(function, event, describe(error)))
    return problems


async def _call(function: Callback, event: RunEvent) -> None:
    if asyncio.iscoroutinefunction(function):
        await function(event)
        return
    value = await in_thread(_threads, partial(function, event))
    if inspect.isawaitable(value):
        await value


def _problem(function: Callback, event: RunEvent, text: str) -> str:
    name = getattr(function, "__qualname__", repr(function))
    return f"on_{event.kind} {name}, {event}: {text}"


async def tell(functions: Sequence[Callback], event: RunEvent) -> None:
    """`call`, with what went wrong in the log."""
    report(await call(functions, event))


def report(problems: Sequence[str]) -> None:
    """Say in the log what went wrong."""
    for problem in problems:
        log.warning("%s", problem)
