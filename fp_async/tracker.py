"""The thread that tells the Hamilton UI of runs. Nothing waits for it but the end of the process.

Whoever runs something leaves news here and goes on: a call takes microseconds, never blocks and
never fails. A server that does not answer is left alone for a while, longer each time, and what
could not be told is kept up to a bound; then the oldest runs are dropped. Both are logged once.

One thread, a daemon: it must never hold a process up that has ended, and is given `_FLUSH` seconds
to tell the rest when that happens. A forked child has none, and begins anew.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from fp_async.attempt import Drawn, Template
from fp_async.errors import TrackerError
from fp_async.jobs import NodeTiming
from fp_async.node_events import NodeEvent
from fp_async.tracked_places import Place
from fp_async.tracking import Outcome, Run, crash_ending

if TYPE_CHECKING:
    from fp_async.tracking_server import Server

log: logging.Logger = logging.getLogger("fp_async")
_LIVE = 0.5  # seconds until news of a run that goes on are told
_ENDED = 0.03  # of one that is over: whoever waits for it goes on first, unhindered by this thread
_FLUSH = 2.0  # seconds that a process which ends waits for the rest to be told
_IDLE = 10.0
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds that a server is left alone
_RUNS, _NODES = 2000, 20_000  # that wait to be told
_TEMPLATES = 256
_TRIES = 3  # of a run that the server fails at
_NEVER = float("inf")


class TrackedRun:
    """One run, for whoever makes it."""

    def __init__(self, tracker: Tracker, run: Run) -> None:
        self._tracker = tracker
        self._run = run

    def tell(self, told: NodeTiming | Drawn) -> None:
        """What a run tells of itself."""
        if isinstance(told, Drawn):
            self.drawn(told)
        else:
            self.node(told)

    def drawn(self, drawn: Drawn) -> None:
        """What it is going to do is known."""
        with self._tracker.wake:
            template = self._tracker.shared(drawn.template)
            self._run.drawn(replace(drawn, template=template))
            self._tracker.heard(self._run, _LIVE)

    def node(self, timing: NodeTiming | NodeEvent) -> None:
        """Something happened to a node."""
        with self._tracker.wake:
            if not self._run.over:  # what was abandoned in a thread may end later
                self._run.node(timing, time.time())
                self._tracker.heard(self._run, _LIVE)

    def end(
        self, outcome: Outcome, error: str = "", traceback: str = "", *, at: float | None = None
    ) -> None:
        """How it ended, and when (epoch seconds)."""
        with self._tracker.wake:
            self._run.end(outcome, time.time() if at is None else at, error, traceback)
            self._tracker.heard(self._run, _ENDED)


class Tracker:
    """The runs of this process that have something to tell, and the thread that tells it.

    `wake` guards all of it; it is held only for moments, never while a server is asked.
    """

    def __init__(self) -> None:
        self.addresses: deque[tuple[str, str]] = deque(maxlen=100)  # (pipeline, page) of runs
        self._begin()
        atexit.register(self.flush)
        os.register_at_fork(after_in_child=self._begin)

    def _begin(self) -> None:
        self.wake = threading.Condition()
        self._due: dict[Run, float] = {}
        self._pauses: dict[str, tuple[float, float]] = {}  # of a server: until when, how long
        self._warned: set[str] = set()
        self._thread: threading.Thread | None = None
        self._templates: dict[tuple[str, str], Template] = {}
        self._template_ids: dict[tuple[Place, str, str], int] = {}

    # For those who run ----------------------------------------------------------------------

    def begin(self, run: Run) -> TrackedRun:
        """A run has begun. It is not told before it is `drawn`, or at its end."""
        with self.wake:
            self._bound()
        return TrackedRun(self, run)

    def shared(self, template: Template) -> Template:
        """One object for all that are alike. Under `wake`."""
        if len(self._templates) > _TEMPLATES:
            self._templates.clear()
        return self._templates.setdefault((template.dag_hash, template.code_hash), template)

    def heard(self, run: Run, within: float) -> None:
        """There is news of a run, which is to be told so many seconds from now. Under `wake`."""
        if run.dropped:
            return
        due = time.monotonic() + within
        if due < self._due.get(run, _NEVER):
            self._due[run] = due
            self._start()
            if not self._paused(run):
                self.wake.notify_all()

    def _start(self) -> None:
        if self._thread is not None:
            return
        thread = threading.Thread(target=self._work, name="fp-tracker", daemon=True)
        try:
            thread.start()
            self._thread = thread
        except RuntimeError:  # the interpreter is ending, or there are too many
            log.debug("tracking: no thread", exc_info=True)

    def _bound(self) -> None:
        """Drop the oldest run that is over, else the oldest, where too many wait."""
        looked = len(self._due) % 20 == 0
        nodes = sum(run.size for run in self._due) if looked else 0
        if not self._due or (len(self._due) < _RUNS and nodes < _NODES):
            return
        oldest = next((run for run in self._due if run.over), next(iter(self._due)))
        oldest.dropped = True
        del self._due[oldest]
        self._warn("dropped", "tracking: what cannot be told is dropped, the oldest runs first")

    def flush(self, timeout: float = _FLUSH) -> int:
        """Wait until all that is over has been told, or its server does not answer, or so many
        seconds have passed: for each run once. How many are left that were not told to their end.
        """
        deadline = time.monotonic() + timeout
        with self.wake:
            for run in self._due:
                self._due[run] = min(self._due[run], time.monotonic())
            self.wake.notify_all()
            while any(run.over and not run.overdue and not self._paused(run) for run in self._due):
                left = deadline - time.monotonic()
                if left <= 0 or self._thread is None:
                    self._give_up()
                    break
                self.wake.wait(left)
            return sum(run.over for run in self._due)

    def _give_up(self) -> None:
        for run in self._due:
            if run.over:
                run.overdue = True
                url = run.place.api_url
                self._warn(url, f"tracking: {url} has not answered in time; not all runs are shown")

    def _paused(self, run: Run) -> float:
        """Until when its server is left alone; 0 where it is not."""
        until, _ = self._pauses.get(run.place.api_url, (0.0, 0.0))
        return until if until > time.monotonic() else 0.0

    # In the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        while (run := self._next()) is not None:
            self._tell(run)
            with self.wake:
                self.wake.notify_all()

    def _next(self) -> Run | None:
        """The next run that is to be told; None after a while without any."""
        with self.wake:
            idle = time.monotonic() + _IDLE
            while True:
                run, at = self._earliest()
                now = time.monotonic()
                if run is not None and at <= now:
                    return run
                if at == _NEVER and now >= idle:
                    self._thread = None
                    return None
                self.wake.wait(min(at, idle) - now if at == _NEVER else at - now)

    def _earliest(self) -> tuple[Run | None, float]:
        """A run, and when its turn is: the first one whose turn has come, if one has."""
        now, best = time.monotonic(), (None, _NEVER)
        for run, due in self._due.items():
            at = max(due, self._paused(run))
            if at <= now:
                return run, at
            if at < best[1]:
                best = (run, at)  # type: ignore[assignment]
        return best

    def _tell(self, run: Run) -> None:
        from fp_async.tracking_server import Server

        server = Server.of(run.place)
        try:
            self._report(server, run)
        except TrackerError as error:
            self._failed(run, error, progress=server.answers > 0)
        except Exception:
            log.exception("tracking: a run of '%s' cannot be told", run.pipeline)
            self._forget(run)
        else:
            self._told(run)

    def _told(self, run: Run) -> None:
        url = run.place.api_url
        if url in self._warned:
            self._warned -= {url, "dropped"}
            log.warning("tracking: %s answers again", url)
        with self.wake:
            self._pauses.pop(url, None)
            if run.closed:
                self._due.pop(run, None)
            elif run in self._due:
                self._due[run] = time.monotonic() + _LIVE if run.news else _NEVER

    def _forget(self, run: Run) -> None:
        with self.wake:
            run.dropped = True
            self._due.pop(run, None)

    def _failed(self, run: Run, error: TrackerError, *, progress: bool) -> None:
        url = run.place.api_url
        run.tries += error.status > 0
        if error.refused or run.tries >= _TRIES:
            self._forget(run)
            self._warn(str(error), f"tracking: {error}; a run of '{run.pipeline}' is not shown")
            return
        with self.wake:
            before = 0.0 if progress else self._pauses.get(url, (0.0, 0.0))[1]
            pause = min(max(2 * before, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._pauses[url] = time.monotonic() + pause, pause
        self._warn(url, f"tracking: {error}; runs go on, and are told when it answers again")

    def _warn(self, what: str, text: str) -> None:
        if what in self._warned:
            return
        if len(self._warned) > _TEMPLATES:
            self._warned.clear()
        self._warned.add(what)
        log.warning(text)

    # One run --------------------------------------------------------------------------------

    def _report(self, server: Server, run: Run) -> None:
        """Tell what is new of it. Raises TrackerError."""
        if run.id is None:
            self._create(server, run)
        assert run.id is not None
        while True:
            with self.wake:
                over = run.over  # before the nodes are looked at: all of them are told by then
                names, body = run.batch()
            if names:
                self._update(server, run, names, body)
            elif over:
                server.end(run.id, run.ending())
                run.closed = True
                return
            else:
                return

    def _update(self, server: Server, run: Run, names: Sequence[str], body: dict[str, Any]) -> None:
        assert run.id is not None
        try:
            server.update(run.id, body)
        except TrackerError as error:
            with self.wake:
                run.untold(names, unclear=error.unclear)
            raise

    def _create(self, server: Server, run: Run) -> None:
        template = run.template
        key = (run.place, template.dag_hash, template.code_hash)
        template_id = self._template_ids.get(key)
        if template_id is None:
            template_id = server.template_id(run.place, template)
            if len(self._template_ids) > _TEMPLATES:
                self._template_ids.clear()
            self._template_ids[key] = template_id
        if run.follows_crash and run.job is not None:
            for crashed in server.unfinished(run.place, run.job):
                server.end(crashed, crash_ending(run.at))
        run.id = server.create(template_id, run)
        address = run.place.address(run.id)
        self.addresses.append((run.pipeline, address))
        log.info("tracking: run of '%s': %s", run.pipeline, address)


@functools.cache
def tracker() -> Tracker:
    """The one of this process."""
    return Tracker()
