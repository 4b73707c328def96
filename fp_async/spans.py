"""What a node's execution needs to know of traces."""

from __future__ import annotations

from typing import Any, Protocol


class Spans(Protocol):
    """The maker of a trace's spans of nodes; `begin` is called in its context."""

    def begin(self, name: str, *, within: bool) -> Any:
        """The span, begun and entered; `within` what hooks have set in a context of its own."""

    def end(self, span: Any, error: BaseException | None) -> None:
        """It has come to an end."""
