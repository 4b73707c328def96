"""The real Hamilton UI, as `flowerpower hamilton-ui` serves it, and what its REST API says."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import json
import re
import threading
import time
import urllib.request

import services
from fleet import COMMAND

USER = "me@example.com"
ATTRIBUTES = ("primitive", "dict", "unsupported", "error")


class HamiltonUI(services.Server):
    """`kill` and `start` as of every server; the same database on the same port."""

    def prepare(self) -> None:
        if importlib.util.find_spec("hamilton_ui") is None:
            services.missing("the extra [ui] is not installed")

    def command(self) -> list[str]:
        command = [COMMAND, "hamilton-ui", "--no-open", "--port", str(self.port)]
        return [*command, "--base-dir", str(self.folder / "db")]

    def ready(self) -> bool:
        return services.answers(self.port)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str):
        request = urllib.request.Request(f"{self.uri}/api/v1/{path}", headers={"x-api-user": USER})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def template(self, id: int) -> dict:
        (found,) = self.ask(f"dag_templates/{id}")
        return found

    def runs(self, project_id: int) -> list[dict]:
        """Those of a project, the oldest first."""
        return self.ask(f"dag_runs/latest/?project_id={project_id}&limit=1000")[::-1]

    def run(self, id: int) -> Shown:
        (found,) = self.ask(f"dag_runs/{id}?{'&'.join(f'attr={name}' for name in ATTRIBUTES)}")
        return Shown(found)

    def until(self, project_id: int, timeout: float = 20, **tags: str) -> Shown:
        """The newest run with these tags, when it has ended."""
        deadline = time.monotonic() + timeout
        while True:
            runs = self.runs(project_id)
            found = [run for run in runs if tags.items() <= run["tags"].items()]
            if found and found[-1]["run_status"] != "RUNNING":
                return self.run(found[-1]["id"])
            assert time.monotonic() < deadline, f"no run {tags} has ended: {runs}\n{self.log()}"
            time.sleep(0.1)


class Shown:
    """A run as the API has it."""

    def __init__(self, found: dict) -> None:
        self.found = found
        self.id, self.status, self.tags = found["id"], found["run_status"], found["tags"]
        self.nodes = {node["node_name"]: node["status"] for node in found["node_runs"]}
        self.attributes = {
            node["node_name"]: {a["name"]: a["value"] for a in node["attributes"]}
            for node in found["node_runs"]
        }

    @property
    def outcome(self) -> str:
        return self.tags["outcome"]

    def error(self, node: str) -> str:
        return "\n".join(self.attributes[node]["stack_trace"]["stack_trace"])

    def times(self, node: str) -> tuple[str, str]:
        (found,) = [run for run in self.found["node_runs"] if run["node_name"] == node]
        return found["start_time"], found["end_time"]


@contextlib.contextmanager
def forgetful(ui: HamiltonUI):
    """The address of a proxy that does what it is asked for, and loses the first answer to each
    kind of request.
    """
    answered = set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            connection = http.client.HTTPConnection("127.0.0.1", ui.port, timeout=10)
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
            kind = (self.command, re.sub(r"\d+", "", self.path.partition("?")[0]))
            if kind not in answered:
                answered.add(kind)
                return
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_PUT = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", answered
        finally:
            server.shutdown()
            thread.join()
