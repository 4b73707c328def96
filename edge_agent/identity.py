"""Identity of an agent at the center: its store, the starts that it counts, its process. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, NamedTuple

from fp_async.messages import AgentState


class Identity(NamedTuple):
    """A store, how often a process has started on it, and a word for this process."""

    store: str
    starts: int
    life: str = ""


def is_overtaken(own: Identity, store: str, starts: int, life: str) -> bool:
    """Return whether that process has followed this one on the same store, which was restored from
    a backup, or is a copy: this one has to count on from there.
    """
    return store == own.store and life != own.life and starts >= own.starts


def answer(
    own: Identity, shown: Collection[tuple[int, str]], said: AgentState | None
) -> Literal["nothing", "show", "overtake"]:
    """Return what to do about a state that the broker has of this agent, None where it has none.

    Brokers deliver wills of connections long gone, and forget what they had retained: then the
    present state is shown again. `shown` are the states of this connection, as they echo.
    """
    if said is None or said.store != own.store:
        return "show"
    if said.life == own.life:
        return "nothing" if (said.n, said.status) in shown else "show"
    return "overtake" if is_overtaken(own, said.store, said.starts, said.life) else "show"
