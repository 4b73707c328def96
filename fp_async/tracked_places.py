"""Where runs are shown: what `conf/tracker.yml` says, and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from fp_async import config_files
from fp_async.addresses import hidden, scrubbed
from fp_async.config import TrackedPipeline, TrackerFile
from fp_async.errors import ConfigError

API_URL = "http://localhost:8241"
_TEXT = 1000  # characters of a tag


class Place(msgspec.Struct, frozen=True):
    """Where the runs of a pipeline are shown, and in whose name they are told."""

    api_url: str
    ui_url: str
    username: str
    api_key: str
    project_id: int
    dag_name: str
    tags: tuple[tuple[str, str], ...] = ()

    def address(self, run_id: int) -> str:
        """The page of a run."""
        return f"{self.ui_url}/dashboard/project/{self.project_id}/runs/{run_id}"


def place(root: Path, pipeline: str) -> Place:
    """Where `conf/tracker.yml` has the runs of a pipeline shown. Raises ConfigError."""
    file = settings(root, pipeline)
    if (text := missing(file, pipeline)) is not None:
        raise ConfigError(f"conf/tracker.yml: {text}")
    for path, text in problems(file):
        raise config_files.mistake(root, "tracker.yml", path, text)
    own = (file.pipeline or {}).get(pipeline) or TrackedPipeline()
    api_url = (file.api_url or API_URL).rstrip("/")
    return Place(
        api_url=api_url,
        ui_url=(file.ui_url or api_url).rstrip("/"),
        username=file.username or "",
        api_key=file.api_key or "",
        project_id=own.project_id or 0,
        dag_name=own.dag_name or pipeline,
        tags=tuple((key, _text(value)) for key, value in (own.tags or {}).items()),
    )


def settings(root: Path, pipeline: str) -> TrackerFile:
    """`conf/tracker.yml` as far as it is about a pipeline. Raises ConfigError."""
    document = config_files.of(root).document("tracker.yml")
    data = {name: value for name, value in document.data.items() if name != "pipeline"}
    own = document.raw(("pipeline", pipeline))
    if own is not None:
        data["pipeline"] = {pipeline: own}
    file: TrackerFile = document.converted(data, TrackerFile, lambda path: path)
    return file


def missing(file: TrackerFile, pipeline: str) -> str | None:
    """What the file lacks for the runs of a pipeline to be tracked."""
    own = (file.pipeline or {}).get(pipeline)
    if not file.username:
        return "with_tracker needs `username`: the name that you use in the Hamilton UI"
    if own is None or own.project_id is None:
        return (
            f"with_tracker needs `pipeline.{pipeline}.project_id`; "
            f"`flowerpower tracker setup {pipeline}` makes a project and writes it down"
        )
    return None


def problems(file: TrackerFile) -> list[tuple[tuple[str, ...], str]]:
    """(key, text) of what the types of `conf/tracker.yml` do not show."""
    found: list[tuple[tuple[str, ...], str]] = []
    for key in ("api_url", "ui_url"):
        url = getattr(file, key)
        if url and (wrong := _wrong(url)):
            found.append(((key,), wrong))
    for name, own in (file.pipeline or {}).items():
        if own is not None and own.project_id is not None and own.project_id < 1:
            place = ("pipeline", name, "project_id")
            found.append((place, f"a number from the UI, 1 or more, not {own.project_id}"))
    return found


def _wrong(url: str) -> str | None:
    """Return the mistake in the address of a server."""
    if not url.startswith(("http://", "https://")):
        return f"an address begins with http:// or https://, not {hidden(repr(url))}"
    try:
        parts = urlsplit(url)
        known = parts.hostname and parts.port != 0
    except ValueError as error:
        return f"no address: {scrubbed(str(error), url)}"
    return None if known else f"an address has a host, as in {API_URL}"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return str(text)[:_TEXT]
