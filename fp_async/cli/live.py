"""Progress of a run on stderr: a live view on a terminal, a line per node in a pipe."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fp_async.cli.saying import cell, echo, style
from fp_async.errors import FlowerPowerError, JobError, headline
from fp_async.node_events import Repeats

if TYPE_CHECKING:
    from fp_async.jobs import NodeTiming
    from fp_async.node_events import NodeEvent

MARKS = {"succeeded": "✓", "failed": "✗", "cancelled": "-", "retrying": "↻"}
STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "retrying": "yellow"}
_FINISHED_SHOWN = 12


def node_line(node: NodeEvent | NodeTiming) -> str:
    """A node that has come to an end, or all of its items that have ended alike, in one line."""
    mark = style(MARKS.get(node.status, "-"), fg=STYLES.get(node.status))
    error = f"  {headline(node.error)}" if node.error else ""
    place = f"  on {node.place}" if node.place and node.count == 1 else ""
    if (pause := getattr(node, "pause", None)) is not None:
        place += f"  again in {pause:.3g} s"
    return f"  {mark} {node_name(node)}  {_took(node)}{place}{error}"


def node_name(node: NodeEvent | NodeTiming) -> str:
    """The name of a node, with the number of the item, or how many there are."""
    if node.count > 1:
        return f"{node.node} \N{MULTIPLICATION SIGN}{node.count}"
    return node.node if node.item is None else f"{node.node}[{node.item}]"


def _took(node: NodeEvent | NodeTiming) -> str:
    if not node.cached:
        return f"{node.seconds:.3f} s"
    many = f"{node.cached} " if node.cached < node.count else ""
    return f"{node.seconds:.3f} s  {many}from the cache"


class Progress:
    """Use as a context manager, and as the `progress` callback of a run; or of a job that is
    watched, which `goes_on` without us.
    """

    def __init__(self, title: str, nodes: Sequence[str], *, goes_on: bool = False) -> None:
        self._goes_on = goes_on
        self._repeats = Repeats(self._tell)
        self._title = title
        self._total = len(nodes)
        self._began = time.perf_counter()
        self._running: dict[str, float] = {}
        self._finished: list[NodeEvent] = []
        self._live: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(stderr=True)
            self._live = Live(
                get_renderable=self._view, console=console, refresh_per_second=12, transient=True
            )
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._repeats.flush()
        if self._live is not None:
            from fp_async.cli.columns import one_line

            self._live.stop()
            for event in self._shown():
                echo(one_line(node_line(event), self._live.console.width), err=True)
        left = isinstance(error, asyncio.CancelledError | FlowerPowerError)
        if self._goes_on and left and not isinstance(error, JobError):
            return  # how the job ends is not known
        seconds = time.perf_counter() - self._began
        done = len({event.node for event in self._finished if event.status == "succeeded"})
        mark, color = ("✓", "green") if error is None else ("✗", "red")
        summary = f"{mark} {self._title}: {done} of {self._total} nodes in {seconds:.2f} s"
        echo(style(summary, fg=color), err=True)

    def __call__(self, event: NodeEvent) -> None:
        if event.status == "started":
            self._running[event.node] = time.perf_counter()
            return
        if event.status != "retrying":
            self._running.pop(event.node, None)
        self._repeats(event)

    def _tell(self, event: NodeEvent) -> None:
        if event.status != "retrying":
            self._finished.append(event)
        if self._live is None:
            echo(node_line(event), err=True)

    def _shown(self) -> list[NodeEvent]:
        """The latest, and after them those that failed: nothing pushes them out of sight."""
        ordered = sorted(self._finished, key=lambda event: event.status == "failed")
        return ordered[-_FINISHED_SHOWN:]

    def _view(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        now = time.perf_counter()
        view = Table.grid(padding=(0, 1))
        finished = len({event.node for event in self._finished})
        title = f"{self._title}  {finished}/{self._total} nodes  {now - self._began:.1f} s"
        view.add_row(Text("●", style="cyan"), cell(title, style="bold"), "")
        for event in self._shown():
            mark = Text(MARKS[event.status], style=STYLES[event.status])
            view.add_row(mark, cell(node_name(event)), _took(event))
        for node, since in list(self._running.items())[:_FINISHED_SHOWN]:
            view.add_row(Spinner("dots", style="cyan"), cell(node), f"{now - since:.1f} s")
        return view
