"""Where runs are shown: what `conf/tracker.yml` says, and what it lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from fp_async import config as configs
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
    file = _read(root)
    if (text := missing(file, pipeline)) is not None:
        raise ConfigError(f"conf/tracker.yml: {text}")
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


def _read(root: Path) -> TrackerFile:
    """The file, read again when it was changed: each run asks."""
    try:
        stat = (root / "conf" / "tracker.yml").stat()
        stamp = (stat.st_mtime_ns, stat.st_size)
    except OSError:
        stamp = (0, 0)
    known = _files.get(root)
    if known is None or known[0] != stamp:
        known = _files[root] = stamp, configs.read(root, "tracker.yml")
    return known[1]


_files: dict[Path, tuple[tuple[int, int], TrackerFile]] = {}


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
        if url and not url.startswith(("http://", "https://")):
            found.append(((key,), f"an address begins with http:// or https://, not {url!r}"))
    for name, own in (file.pipeline or {}).items():
        if own is not None and own.project_id is not None and own.project_id < 1:
            place = ("pipeline", name, "project_id")
            found.append((place, f"a number from the UI, 1 or more, not {own.project_id}"))
    return found


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return str(text)[:_TEXT]
