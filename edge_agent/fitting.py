"""What a job has left behind, cut so that telling it fits into one message. Pure.

Sizes are bytes as encoded: of a text in JSON one character may be six, of a name many thousand.
Together they leave 24 KiB of a packet to the topic and to everything that is small.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec.structs import replace

from fp_async import messages
from fp_async.jobs import Failure, NodeTiming, Record
from fp_async.messages import Progress, Rules

_LOG = 32_768
_NODES = 49_152
_NODE_TEXT = 1024
_WARNINGS = 4096
_MESSAGE = 8192
_TRACEBACK = 16_384
_KINDS = 2048
_RULES = 4096
_encode = msgspec.json.Encoder().encode


def head(text: str, most: int) -> str:
    """The beginning of a text, of so many bytes at most."""
    return _cut(text, most, at_end=True)


def tail(text: str, most: int) -> str:
    """The end of a text, of so many bytes at most."""
    return _cut(text, most, at_end=False)


def _cut(text: str, most: int, *, at_end: bool) -> str:
    """In a few steps: how many bytes a character has is known only when it is encoded."""
    text = text[:most] if at_end else text[-most:]
    while (size := len(_encode(text)) - 2) > most:
        keep = min(len(text) * most // size, len(text) - 1)
        text = text[:keep] if at_end else text[len(text) - keep :]
    return text


def failure(error: Failure, most: int | None = None) -> Failure:
    """An error whose message and traceback are cut: of a traceback the end says most."""
    return Failure(
        kind=head(error.kind, _NODE_TEXT),
        message=head(error.message, most or _MESSAGE),
        traceback=tail(error.traceback, most or _TRACEBACK),
        kinds=_fitting(error.kinds, _KINDS),
    )


def record(left: Record) -> Record:
    """The end of the log, and as many nodes as fit: those that failed before all others."""
    log = tail(left.log[-messages.LOG_CHARACTERS :], _LOG)
    nodes = _nodes(left.nodes)
    warnings = _fitting(left.warnings, _WARNINGS)
    if len(nodes) < len(left.nodes):
        warnings.append(f"{len(left.nodes) - len(nodes):,} nodes more are not told")
    return replace(left, nodes=nodes, log=log, warnings=warnings, worker=head(left.worker, 256))


def progress(news: Progress) -> Progress:
    """The end of the log, and as many nodes as fit; the outcome tells them all again."""
    return replace(
        news, nodes=_nodes(news.nodes), log=tail(news.log[-messages.LOG_CHARACTERS :], _LOG)
    )


def _nodes(nodes: list[NodeTiming]) -> list[NodeTiming]:
    if len(_encode(nodes)) <= _NODES:
        return nodes
    short = [_short(node) for node in nodes]
    left, chosen = _NODES, set[int]()
    for index in sorted(range(len(short)), key=lambda i: short[i].status == "succeeded"):
        left -= len(_encode(short[index])) + 1
        if left < 0:
            break
        chosen.add(index)
    return [short[index] for index in sorted(chosen)]


def _short(node: NodeTiming) -> NodeTiming:
    name, error = head(node.node, _NODE_TEXT), head(node.error, _NODE_TEXT)
    status, place = head(node.status, 64), head(node.place, 256)
    return replace(node, node=name, status=status, error=error, place=place)


def _fitting(texts: Iterable[str], most: int) -> list[str]:
    """The first of these, as many as fit."""
    found: list[str] = []
    for text in texts:
        most -= len(_encode(text)) + 1
        if most < 0:
            break
        found.append(text)
    return found


def rules(told: Rules) -> Rules:
    """The rules of a job that began here; the center only shows them."""
    if len(_encode(told)) <= _RULES:
        return told
    plain = replace(told, config=None, params=None, final_vars=None)
    return plain if len(_encode(plain)) <= _RULES else Rules(environment=head(told.environment, 64))
