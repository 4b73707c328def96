"""Progress of a run on stderr: a live view on a terminal, a line per node in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import click

if TYPE_CHECKING:
    from fp_async.node_events import NodeEvent

MARKS = {"succeeded": "✓", "failed": "✗", "cancelled": "-", "retrying": "↻"}
STYLES = {"succeeded": "green", "failed": "red", "cancelled": "yellow", "retrying": "yellow"}
_FINISHED_SHOWN = 12


class Progress:
    """Use as a context manager, and as the `progress` callback of a run."""

    def __init__(self, title: str, nodes: Sequence[str]) -> None:
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
        if self._live is not None:
            self._live.stop()
            for event in self._shown():
                click.echo(self._line(event), err=True)
        seconds = time.perf_counter() - self._began
        done = len({event.node for event in self._finished if event.status == "succeeded"})
        mark, color = ("✓", "green") if error is None else ("✗", "red")
        summary = f"{mark} {self._title}: {done} of {self._total} nodes in {seconds:.2f} s"
        click.echo(click.style(summary, fg=color), err=True)

    def __call__(self, event: NodeEvent) -> None:
        if event.status == "started":
            self._running[event.node] = time.perf_counter()
            return
        if event.status != "retrying":
            self._running.pop(event.node, None)
            self._finished.append(event)
        if self._live is None:
            click.echo(self._line(event), err=True)

    def _shown(self) -> list[NodeEvent]:
        """The latest, and after them those that failed: nothing pushes them out of sight."""
        ordered = sorted(self._finished, key=lambda event: event.status == "failed")
        return ordered[-_FINISHED_SHOWN:]

    def _line(self, event: NodeEvent) -> str:
        mark = click.style(MARKS[event.status], fg=STYLES[event.status])
        error = f"  {event.error.partition(chr(10))[0]}" if event.error else ""
        place = f"  on {event.place}" if event.place else ""
        return f"  {mark} {event.node}  {event.seconds:.3f} s{place}{error}"

    def _view(self) -> Any:
        from rich.spinner import Spinner
        from rich.table import Table
        from rich.text import Text

        now = time.perf_counter()
        view = Table.grid(padding=(0, 1))
        finished = len({event.node for event in self._finished})
        title = f"{self._title}  {finished}/{self._total} nodes  {now - self._began:.1f} s"
        view.add_row(Text("●", style="cyan"), Text(title, style="bold"), "")
        for event in self._shown():
            mark = Text(MARKS[event.status], style=STYLES[event.status])
            view.add_row(mark, event.node, f"{event.seconds:.3f} s")
        for node, since in list(self._running.items())[:_FINISHED_SHOWN]:
            view.add_row(Spinner("dots", style="cyan"), node, f"{now - since:.1f} s")
        return view
