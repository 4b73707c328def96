"""What a node's execution needs to know of traces."""

from __future__ import annotations

from typing import Any, Protocol


class Spans(Protocol):
    """What makes a trace's span of a node; `begin` and `enter` are called where its code runs."""

    def begin(self, name: str) -> Any:
        """The span, begun and entered."""

    def enter(self, span: Any) -> None:
        """The calling context belongs to it from now on."""

    def end(self, span: Any, error: BaseException | None) -> None:
        """It has come to an end."""
