"""The REST API of the Hamilton UI, as far as runs are told; blocking calls, for a thread.

On the standard library: the SDK's client costs 0.35 s and 31 MiB to import beside Hamilton, this
13 ms and 2 MiB. Every request is a connection of its own, so that none is found to be stale, and
has its time.
"""

from __future__ import annotations

import http.client
import socket
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import msgspec

from fp_async.attempt import Template
from fp_async.errors import TrackerError
from fp_async.tracked_places import Place
from fp_async.tracking import Run, template_body

_CONNECT = 1.0  # seconds
_ANSWER = 3.0
_LARGEST = 16 * 2**20
_LATEST = 100  # runs that are looked through
_SHOWN = 300


class Server:
    """The API at `api_url`, as `username`. Everything raises TrackerError."""

    def __init__(
        self, api_url: str, username: str, api_key: str = "", *, patience: float = _ANSWER
    ) -> None:
        """A server that is given `patience` seconds for each answer once it is connected."""
        self.api_url = api_url
        self._patience = patience
        self.answers: int = 0  # how many there were
        self._url = urlsplit(api_url)
        self._headers = {"Content-Type": "application/json", "x-api-user": username}
        if api_key:
            self._headers["x-api-key"] = api_key

    @classmethod
    def of(cls, place: Place) -> Server:
        """The API of a place."""
        return cls(place.api_url, place.username, place.api_key)

    # Runs -----------------------------------------------------------------------------------

    def template_id(self, place: Place, template: Template) -> int:
        """The id of a template, which is registered unless it is known."""
        query = {
            "dag_hash": template.dag_hash,
            "code_hash": template.code_hash,
            "dag_name": place.dag_name,
            "project_id": place.project_id,
        }
        found = self.ask("GET", "dag_templates/exists/", query)
        if found is None:
            query, body = {"project_id": place.project_id}, template_body(place, template)
            found = self.ask("POST", "dag_templates", query, body)
        return int(found["id"])

    def create(self, template_id: int, run: Run) -> int:
        """The id of a new run; of one that an unclear answer may have made already, that one's."""
        if run.unclear:
            for known in self._latest({"dag_template_id": template_id}):
                if known["tags"].get("run") == run.token:
                    return int(known["id"])
        run.unclear = True
        made = self.ask("POST", "dag_runs", {"dag_template_id": template_id}, run.creation())
        return int(made["id"])

    def update(self, run_id: int, body: dict[str, Any]) -> None:
        """Tell of nodes."""
        self.ask("PUT", "dag_runs_bulk", {"dag_run_id": run_id}, body)

    def end(self, run_id: int, body: dict[str, Any]) -> None:
        """Tell the outcome of a run."""
        self.ask("PUT", f"dag_runs/{run_id}/", {}, body)

    def unfinished(self, place: Place, job: str) -> list[int]:
        """The runs of a job that nobody has told the outcome of."""
        latest = self._latest({"project_id": place.project_id})
        return [
            int(run["id"])
            for run in latest
            if run["run_status"] == "RUNNING" and run["tags"].get("job") == job
        ]

    def _latest(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask(
            "GET", "dag_runs/latest/", {**query, "limit": _LATEST}
        )
        return found

    # Projects -------------------------------------------------------------------------------

    def projects(self) -> list[dict[str, Any]]:
        """The projects that the user sees, the newest first."""
        found: list[dict[str, Any]] = self.ask("GET", "projects", {"limit": 1000})
        return found

    def create_project(self, name: str, description: str, username: str) -> int:
        """The id of a new project that the user may write to."""
        visibility = {
            "user_ids_visible": [],
            "team_ids_visible": [],
            "team_ids_writable": [],
            "user_ids_writable": [username],
        }
        body = {"name": name, "description": description, "tags": {}, "visibility": visibility}
        return int(self.ask("POST", "projects", {}, body)["id"])

    # Asking ---------------------------------------------------------------------------------

    def ask(self, method: str, path: str, query: dict[str, Any], body: Any = None) -> Any:
        """One request; the decoded answer."""
        data = body if isinstance(body, bytes | None) else msgspec.json.encode(body)
        target = f"{self._url.path.rstrip('/')}/api/v1/{quote(path)}"
        if query:
            target += f"?{urlencode(query)}"
        connection = self._connected()
        try:
            connection.request(method, target, data, self._headers)
            answer = connection.getresponse()
            content = answer.read(_LARGEST)
        except (OSError, http.client.HTTPException) as error:
            text = f"{self.api_url} does not answer: {_why(error)}"
            raise TrackerError(text, unclear=True) from error
        finally:
            connection.close()
        self.answers += 1
        return self._meaning(answer.status, content, f"{method} {path}")

    def _connected(self) -> http.client.HTTPConnection:
        secure = self._url.scheme == "https"
        kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        connection = kind(self._url.hostname or "", self._url.port, timeout=_CONNECT)
        try:
            connection.connect()
        except (OSError, http.client.HTTPException) as error:
            raise TrackerError(f"{self.api_url} does not answer: {_why(error)}") from error
        sock: socket.socket = connection.sock
        sock.settimeout(self._patience)
        return connection

    def _meaning(self, status: int, content: bytes, asked: str) -> Any:
        if 200 <= status < 300:
            try:
                return msgspec.json.decode(content) if content else None
            except msgspec.DecodeError as error:
                text = f"{self.api_url} is not the Hamilton UI: its answer to {asked} is no JSON"
                raise TrackerError(text, status=status) from error
        detail = " ".join(content.decode(errors="replace").split())[:_SHOWN]
        text = f"{self.api_url} answers {asked} with {status}: {detail}"
        raise TrackerError(text, status=status, unclear=status >= 500)


def _why(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
