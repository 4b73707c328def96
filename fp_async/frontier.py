"""What is next in a run: queues, counts and values, and nothing that waits. Sync, and pure but for
its own state; loop and threads use it at the same time.

Most slots wait for one other slot and are the only reader of their input: the plan says so, and
nothing is counted. What must be counted is a list of tokens: `pop` is atomic, and gives True to the
last who comes, and to nobody else. The queues are deques, whose operations are atomic too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from fp_async.plan import Plan


class Frontier:
    """`ready` holds slots to begin on the loop, `queued` those for threads.

    `complete(slot, value)` stores a value, drops those it was the last to use and queues what
    waited for it. `unfinished` turns false when the last slot is complete.

    As long as `alone` is true, one thread does all slots in the plan's order, by `advance`, and the
    queues and counts are not used.
    """

    def __init__(
        self, plan: Plan, values: list[Any], to_thread: Sequence[bool], *, alone: bool
    ) -> None:
        self.values = values
        self.ready: deque[int] = deque()
        self.queued: deque[int] = deque()
        self.unfinished: bool = bool(plan.order)
        self.alone: bool = alone
        self._plan = plan
        self._to_thread = to_thread
        self.done: list[int] = []  # what was done alone
        self.shared: int | None = None
        self.complete: Callable[[int, Any], None] = _ignore
        if not alone:
            self.complete = self._completer()
            for slot in plan.roots:
                self._enqueue(slot)

    def results(self) -> dict[str, Any]:
        """The final variables' values, in the order asked for."""
        return {name: self.values[slot] for name, slot in self._plan.finals}

    def end(self) -> None:
        """Let go of what would be a cycle; whoever comes late completes nothing."""
        self.complete = _ignore

    def advance(self, slot: int, value: Any) -> bool:
        """Complete the next slot in the plan's order, for the one thread that is alone.

        Whether it still is. `done` is appended to before `alone` is read, and `share` sets `alone`
        before it reads `done`: one of the two sees what the other did, and no lock is needed. A
        slot that `share` did not find done has to be completed by `complete`.
        """
        self.values[slot] = value
        self.done.append(slot)
        if not self.alone:
            return False
        for source in self._plan.last_uses[slot]:
            self.values[source] = None
        return True

    def share(self) -> None:
        """End being alone: queue what is not begun, and bring the counts to where they would be.

        Once only, by one caller at a time. `shared` is how many slots were found to be done; the
        next one in the order is left to the thread that was alone, as begun.
        """
        if self.shared is not None:
            return
        self.alone = False  # before `done` is read: see `advance`
        done = self.done[:]
        self.shared = len(done)
        if self.shared == len(self._plan.order):
            return
        self.complete = self._completer()
        begun = {*done, self._plan.order[self.shared]}
        self.queued.extend(self._plan.roots)
        for slot in done:
            self.complete(slot, self.values[slot])
        ready = [slot for slot in self.queued if slot not in begun]
        self.queued.clear()
        self.queued.extend(ready)

    def _enqueue(self, slot: int) -> None:
        if self._to_thread[slot]:
            self.queued.append(slot)
        elif self._plan.is_async[slot]:
            self.ready.appendleft(slot)  # what waits starts before what computes inline
        else:
            self.ready.append(slot)

    def _completer(self) -> Callable[[int, Any], None]:  # noqa: C901 - one call a node, no more
        """`complete`, with all that it needs in its cells."""
        plan, values, queued = self._plan, self.values, self.queued
        to_thread, enqueue, effects = self._to_thread, self._enqueue, plan.effects
        waiting = {slot: _tokens(number) for slot, number in plan.waiting}
        uses = {slot: _tokens(number) for slot, number in plan.uses}
        left = _tokens(plan.sinks)

        def complete(slot: int, value: Any) -> None:  # noqa: C901, PLR0912
            values[slot] = value
            sole_uses, shared_uses, follows, joins = effects[slot]
            if sole_uses:
                for source in sole_uses:
                    values[source] = None
            if shared_uses:
                for source in shared_uses:
                    if uses[source].pop():
                        values[source] = None
            if follows:
                for dependent in follows:
                    if to_thread[dependent]:
                        queued.append(dependent)
                    else:
                        enqueue(dependent)
            if joins:
                for dependent in joins:
                    if waiting[dependent].pop():
                        enqueue(dependent)
            elif not follows and left.pop():
                self.unfinished = False

        return complete


def _ignore(_slot: int, _value: Any) -> None:
    pass


def _tokens(number: int) -> list[bool]:
    return [True] + [False] * (number - 1)
