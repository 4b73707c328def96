"""What the Hamilton UI is told of runs: the values, and the bodies of its REST API. Pure.

The API is that of `/api/openapi.json`: a **template** is a DAG with its code, registered once; a
**run** has a template; node runs and their attributes (a summary of the result, or an error) are
told in batches. It knows four statuses. Cancelled, timed out and crashed runs are failures there,
and say so in the tag `outcome`; a node that was cancelled with its run says it in its error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from fp_async.attempt import Drawn, Template, storable
from fp_async.jobs import NodeTiming
from fp_async.node_events import NodeEvent
from fp_async.tracked_places import Place

NODES_KEPT = 1000  # of one run
_TEXT = 1000  # characters of a tag
_ERROR = 4096
Outcome = Literal["succeeded", "failed", "cancelled", "timed out", "crashed", "interrupted"]


def moment(seconds: float) -> str:
    """Epoch seconds as the API has times."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()


# A run --------------------------------------------------------------------------------------

_STATUSES = {
    "started": "RUNNING",
    "retrying": "RUNNING",
    "succeeded": "SUCCESS",
    "failed": "FAILURE",
    "cancelled": "FAILURE",
    "skipped": "UNINITIALIZED",
}


class _Node:
    """What is known of one node of a run, and what of it has been told."""

    __slots__ = ("at", "end", "error", "news", "shown", "status", "summary")

    def __init__(self) -> None:
        self.status = ""
        self.at = 0.0
        self.end: float | None = None
        self.error = self.summary = ""
        self.news = True
        self.shown = False  # an attribute can be told once only

    def hear(self, timing: NodeTiming | NodeEvent, now: float) -> None:
        """A node that runs several times (Parallelizable) is one that takes all their time."""
        began = timing.at or now - timing.seconds
        self.at = min(self.at or began, began)
        self.news = True
        if timing.status not in ("started", "retrying"):
            self.end = max(self.end or 0.0, began + timing.seconds)
        if self.status not in ("failed", "cancelled"):
            self.status = timing.status
            self.error = storable(timing.error[:_ERROR]) or self.error
            self.summary = timing.summary or self.summary


class Run:
    """One run as it is told: what has been heard of it, and what of that the UI knows.

    `token` tells it from all others. `follows_crash`: earlier attempts of its `job` may have
    died untold.
    """

    def __init__(
        self,
        place: Place,
        pipeline: str,
        at: float,
        *,
        token: str,
        tags: Mapping[str, str],
        job: str | None = None,
        follows_crash: bool = False,
    ) -> None:
        self.place = place
        self.pipeline = pipeline
        self.at = at
        self.token = token
        self.id: int | None = None
        self.outcome: Outcome | None = None
        self.closed = False  # its outcome has been told
        self.dropped = False  # it is not told any more
        self.overdue = False  # somebody has waited for it to be told, in vain
        self.tries = 0
        self.unclear = False  # it may have been created
        self.job = job
        self.follows_crash = follows_crash
        self._tags = {"pipeline": pipeline, **tags, **dict(place.tags), "run": token}
        if job is not None:
            self._tags["job"] = job
        self._drawn = Drawn(bare(()))
        self._nodes: dict[str, _Node] = {}
        self._error = ""
        self._end = 0.0
        self._left_out = 0

    # Hearing --------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """How many nodes are known."""
        return len(self._nodes)

    @property
    def template(self) -> Template:
        """Its DAG, as far as it is known."""
        return self._drawn.template

    def drawn(self, drawn: Drawn) -> None:
        """What it is going to do is known."""
        self._drawn = drawn

    def node(self, timing: NodeTiming | NodeEvent, now: float) -> None:
        """Something happened to a node."""
        known = self._nodes.get(timing.node)
        if known is None:
            if len(self._nodes) >= NODES_KEPT:
                self._left_out += 1
                return
            known = self._nodes[timing.node] = _Node()
        known.hear(timing, now)

    def end(self, outcome: Outcome, at: float, error: str = "", traceback: str = "") -> None:
        """It is over; so are its nodes. The traceback is that of the node that failed."""
        self.outcome, self._end, self._error = outcome, at, storable(error[:_TEXT])
        for node in self._nodes.values():
            if node.status in ("started", "retrying"):
                node.status, node.news, node.end = "cancelled", True, at
                node.error = node.error or _unfinished(outcome)
        failed = next((n for n in self._nodes.values() if n.status == "failed"), None)
        if failed is not None and not failed.shown and traceback:
            failed.error, failed.news = storable(traceback[-_ERROR:]), True
        if outcome != "succeeded":
            for name in self._drawn.planned:
                if name not in self._nodes:
                    self.node(NodeTiming(name, "skipped", at=at), at)

    # Telling --------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        return self.outcome is not None

    @property
    def news(self) -> bool:
        """Whether there is anything to tell."""
        return (
            self.id is None
            or (self.over and not self.closed)
            or any(node.news for node in self._nodes.values())
        )

    def creation(self) -> dict[str, Any]:
        """The body that creates it."""
        return {
            "run_start_time": moment(self.at),
            "run_end_time": None,
            "run_status": "RUNNING",
            "tags": self._tags,
            "inputs": self._drawn.inputs,
            "outputs": self._drawn.outputs,
        }

    def ending(self) -> dict[str, Any]:
        """The body that tells its outcome."""
        assert self.outcome is not None
        tags: dict[str, str] = {"outcome": self.outcome}
        if self._error:
            tags["error"] = self._error
        if self._left_out:
            tags["nodes left out"] = str(self._left_out)
        return {
            "run_status": "SUCCESS" if self.outcome == "succeeded" else "FAILURE",
            "run_end_time": moment(self._end),
            "upsert_tags": tags,
        }

    def batch(self, most: int = 200) -> tuple[list[str], dict[str, Any]]:
        """Some nodes that have news, and the body that tells it."""
        names = [name for name, node in self._nodes.items() if node.news][:most]
        attributes = [a for name in names if (a := self._attribute(name)) is not None]
        updates = [self._update(name) for name in names]
        for name in names:
            self._nodes[name].news = False
        return names, {"attributes": attributes, "task_updates": updates}

    def untold(self, names: Sequence[str], *, unclear: bool) -> None:
        """The batch did not arrive; or it may have, and then attributes are not told again."""
        for name in names:
            self._nodes[name].news = True
            if not unclear:
                self._nodes[name].shown = False

    def _update(self, name: str) -> dict[str, Any]:
        node = self._nodes[name]
        return {
            "node_template_name": name,
            "node_name": name,
            "realized_dependencies": self.template.nodes.get(name, []),
            "status": _STATUSES.get(node.status, "RUNNING"),
            "start_time": moment(node.at),
            "end_time": None if node.end is None else moment(node.end),
        }

    def _attribute(self, name: str) -> dict[str, Any] | None:
        node = self._nodes[name]
        if node.shown or node.status in ("started", "retrying", "skipped"):
            return None
        if node.status != "succeeded":
            text = node.error or node.status
            found = ("stack_trace", "error", 1, {"stack_trace": text.splitlines()}, "error")
        elif node.summary:
            kind, version, value = _shown(node.summary)
            found = ("result_summary", kind, version, value, "result_summary")
        else:
            return None
        node.shown = True
        keys = ("name", "type", "schema_version", "value", "attribute_role")
        return {"node_name": name, **dict(zip(keys, found, strict=True))}


def _unfinished(outcome: str) -> str:
    return "cancelled" if outcome == "cancelled" else f"it had not ended: the run {_WORDS[outcome]}"


_WORDS = {
    "succeeded": "has ended without it",
    "failed": "failed",
    "timed out": "took too long",
    "crashed": "crashed",
    "interrupted": "was interrupted",
}


class _Summary(msgspec.Struct):
    type: str
    value: Any | msgspec.UnsetType = msgspec.UNSET


_summaries = msgspec.json.Decoder(_Summary)


def _shown(summary: str) -> tuple[str, int, dict[str, Any]]:
    """(type, version, value) of an attribute that shows a `summaries.summary`."""
    try:
        told = _summaries.decode(summary)
    except (msgspec.MsgspecError, RecursionError):  # an agent may tell anything
        told = _Summary("unknown")
    if told.value is msgspec.UNSET:
        return "unsupported", 1, {"unsupported_type": told.type, "action": "only its type"}
    if isinstance(told.value, dict | list):
        return "dict", 2, {"type": told.type, "value": told.value}
    return "primitive", 1, {"type": told.type, "value": str(told.value)}


def crash_ending(at: float) -> dict[str, Any]:
    """The body that ends a run whose worker has died."""
    tags = {"outcome": "crashed", "error": "its worker died"}
    return {"run_status": "FAILURE", "run_end_time": moment(at), "upsert_tags": tags}


def template_body(place: Place, template: Template) -> bytes:
    """The body that registers a template."""
    head = {
        "name": place.dag_name,
        "template_type": "HAMILTON",
        "tags": dict(place.tags),
        "dag_hash": template.dag_hash,
        "code_hash": template.code_hash,
        "code_version_info_type": "git",
        "code_version_info": {
            "git_hash": template.code_hash,
            "git_repo": "Error: No repository to link to.",  # the UI knows this text
            "git_branch": "unknown",
            "committed": False,
        },
        "code_version_info_schema": 1,
    }
    return msgspec.json.encode(head)[:-1] + b"," + template.body[1:]


def bare(names: Sequence[str]) -> Template:
    """The template of a run of whose pipeline only the names of its nodes are known."""
    import hashlib

    digest = hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
    nodes = [node_template(name, [], "", "") for name in names]
    files = {"nodes": nodes, "code_artifacts": [], "code_log": {"files": []}, "config": {}}
    return Template(digest, digest, {name: [] for name in names}, msgspec.json.encode(files))


def node_template(
    name: str,
    dependencies: Sequence[tuple[str, str]],
    type_name: str,
    doc: str,
    *,
    tags: Mapping[str, Any] | None = None,
    kind: str = "transform",
    code: Sequence[str] = (),
) -> dict[str, Any]:
    """A node of a template; dependencies are (name, type)."""
    return {
        "name": name,
        "output": {"type_name": type_name},
        "output_type": "python_type",
        "output_schema_version": 1,
        "documentation": doc,
        "tags": dict(tags or {}),
        "classifications": [kind],
        "code_artifact_pointers": list(code),
        "dependencies": [source for source, _ in dependencies],
        "dependency_specs": [{"type_name": kind} for _, kind in dependencies],
        "dependency_specs_type": "python_type",
        "dependency_specs_schema_version": 1,
    }
