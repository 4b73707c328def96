"""Makes the project in which the Hamilton UI shows a pipeline's runs, and writes its id down."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from fp_async import config as configs
from fp_async import scaffold, tracked_places
from fp_async.config import TrackerFile
from fp_async.errors import UnknownNameError, UsageError

_PATIENCE = 30.0  # seconds for an answer, as a person waits for this one


class SetUp(NamedTuple):
    """What `setup` came to: `made` says whether the project is new."""

    project_id: int
    address: str
    made: bool


def setup(
    root: Path,
    pipeline: str,
    *,
    username: str | None = None,
    api_url: str | None = None,
    ui_url: str | None = None,
) -> SetUp:
    """Have a project for `pipeline` in the UI, and its id in `conf/tracker.yml`.

    The project of that id, else that of the pipeline's name, else a new one. What is given is
    written down, too. Blocks while the UI is asked. Raises UnknownNameError, UsageError without a
    username, TrackerError, ConfigError, FileAccessError.
    """
    from fp_async.tracking_server import Server

    names = scaffold.pipeline_names(root)
    if pipeline not in names:
        raise UnknownNameError("pipeline", pipeline, names)
    file = tracked_places.settings(root, pipeline)
    places = TrackerFile(api_url=api_url or file.api_url, ui_url=ui_url or file.ui_url)
    for path, text in tracked_places.problems(places):
        raise UsageError(f"{path[0]}: {text}")
    user = username or file.username
    if not user:
        raise UsageError(
            "which user? give --username you@example.com (any will do for a UI of your own), or "
            "set `username` in conf/tracker.yml"
        )
    given = {"username": username, "api_url": api_url, "ui_url": ui_url}
    url = (api_url or file.api_url or tracked_places.API_URL).rstrip("/")
    server = Server(url, user, file.api_key or "", patience=_PATIENCE)
    known = ((file.pipeline or {}).get(pipeline) or configs.TrackedPipeline()).project_id
    found, made = _project(server, pipeline, known, user)
    _write(root, pipeline, found, given)
    shown = (ui_url or file.ui_url or url).rstrip("/")
    return SetUp(found, f"{shown}/dashboard/project/{found}", made)


def _project(server: Any, pipeline: str, known: int | None, user: str) -> tuple[int, bool]:
    projects = server.projects()
    ids = [project["id"] for project in projects]
    if known in ids:
        return int(known or 0), False
    named = [project["id"] for project in projects if project["name"] == pipeline]
    if named:
        return int(named[-1]), False
    text = f"Runs of the FlowerPower pipeline '{pipeline}'"
    return server.create_project(pipeline, text, user), True


def _write(root: Path, pipeline: str, project_id: int, given: dict[str, str | None]) -> None:
    def change(data: Any) -> None:
        for key, value in given.items():
            if value is not None:
                data[key] = value
        if data.get("pipeline") is None:
            data["pipeline"] = {}
        if data["pipeline"].get(pipeline) is None:
            data["pipeline"][pipeline] = {}
        data["pipeline"][pipeline]["project_id"] = project_id

    scaffold.edit_file(root, "tracker.yml", change)
