"""Traces: what spans there are, whose children they are, and that one trace goes everywhere."""

from __future__ import annotations

import asyncio
import http.server
import logging
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from edge_kit import Broker, conf, edge_fleet, until_known
from fleet import make
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fp_async import NodeError, Project, WorkerSettings, tracing

SQLITE = "data_store:\n  type: sqlite\n  uri: sqlite:///jobs.db\n"
PIPELINE = """
from opentelemetry import trace


def value(number: int) -> int:
    with trace.get_tracer("mine").start_as_current_span("inner"):
        if number < 0:
            raise ValueError("negative")
        return number * 2


async def twice(value: int) -> int:
    with trace.get_tracer("mine").start_as_current_span("inner async"):
        return value * 2
"""
PLAIN = "def value(number: int) -> int:\n    return number * 2\n"
FAN_OUT = """
from hamilton.htypes import Collect, Parallelizable


def item(count: int) -> Parallelizable[int]:
    yield from range(count)


def square(item: int) -> int:
    return item * item


def total(square: Collect[int]) -> int:
    return sum(square)
"""


@pytest.fixture(scope="module")
def memory():
    """What is exported in this process; a provider can be set only once in it."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.fixture
def spans(memory):
    memory.clear()
    return memory


class Tree:
    """Finished spans by name, with their parents' names."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self.spans = exporter.get_finished_spans()
        self.by_name = {span.name: span for span in self.spans}
        self.names = {span.context.span_id: span.name for span in self.spans}

    def __getitem__(self, name):
        return self.by_name[name]

    @property
    def parents(self):
        return {
            span.name: None if span.parent is None else self.names.get(span.parent.span_id, "?")
            for span in self.spans
        }

    @property
    def traces(self):
        return {span.context.trace_id for span in self.spans}


# Runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("executor", ["local", "threadpool"])
async def test_what_a_node_does_is_a_child_of_its_span(make_project, spans, executor):
    project = make_project(flow=PIPELINE)
    with trace.get_tracer("app").start_as_current_span("request") as request:
        assert await project.run("flow", {"number": 3}, executor=executor) == {"twice": 12}
        assert trace.get_current_span() is request
    tree = Tree(spans)
    assert tree.parents == {
        "request": None,
        "run flow": "request",
        "node value": "run flow",
        "node twice": "run flow",
        "inner": "node value",
        "inner async": "node twice",
    }
    assert tree["node value"].end_time <= tree["node twice"].start_time


async def test_with_policies_and_progress_too(make_project, spans):
    config = "run:\n  flow:\n    dev:\n      nodes:\n        value: {timeout: 10}\n"
    project = make_project(config, flow=PIPELINE)
    await project.run("flow", {"number": 3}, progress=lambda event: None)
    assert Tree(spans).parents["inner"] == "node value"


async def test_a_failure_is_an_error_of_node_and_run(make_project, spans):
    project = make_project(flow=PIPELINE)
    with pytest.raises(NodeError):
        await project.run("flow", {"number": -3})
    tree = Tree(spans)
    assert not tree["node value"].status.is_ok
    assert tree["node value"].events[0].attributes["exception.message"] == "negative"
    assert not tree["run flow"].status.is_ok


async def test_hamiltons_own_driver(make_project, spans):
    project = make_project(flow=FAN_OUT)
    assert await project.run("flow", {"count": 3}) == {"total": 5}
    names = [span.name for span in Tree(spans).spans]
    assert names.count("node square") == 3
    assert {"node item", "node total", "run flow"} <= set(names)


# Jobs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["inline", "process"])
async def test_a_job_goes_on_with_the_trace_of_whoever_added_it(make_project, spans, runner):
    """The job's process does not export here: its nodes are told by the worker."""
    project = make_project(flow=PLAIN)
    settings = WorkerSettings(runner=runner, concurrency=1)
    async with Project(project.root, worker=settings) as held:
        with trace.get_tracer("app").start_as_current_span("request"):
            id = await held.add_job("flow", inputs={"number": 4})
        assert await held.get_result(id, wait=20) == {"value": 8}
        with anyio.fail_after(10):
            while "job flow" not in Tree(spans).by_name:
                await anyio.sleep(0.02)
    tree = Tree(spans)
    within = "run flow" if runner == "inline" else "job flow"
    assert tree.parents["job flow"] == "request"
    assert tree.parents["node value"] == within
    assert len(tree.traces) == 1
    job = tree["job flow"]
    assert (job.attributes["fp.job"], job.attributes["fp.outcome"]) == (id, "succeeded")
    assert job.start_time <= tree["node value"].start_time <= job.end_time


async def test_attempts_and_failures_are_spans_of_their_own(make_project, spans):
    project = make_project(flow=PIPELINE)
    async with Project(project.root, worker=True) as held:
        when = datetime.now(UTC) + timedelta(seconds=0.2)
        await held.schedule("flow", "date", run_date=when, inputs={"number": 1})
        retry = {"max_attempts": 2, "backoff": 0.0}
        id = await held.add_job("flow", inputs={"number": -4}, retry=retry)
        with anyio.fail_after(20):
            while len([s for s in Tree(spans).spans if s.name == "job flow"]) < 3:
                await anyio.sleep(0.02)
    jobs = [span for span in Tree(spans).spans if span.name == "job flow"]
    mine = [span for span in jobs if span.attributes["fp.job"] == id]
    assert [span.attributes["fp.outcome"] for span in mine] == ["retried", "failed"]
    assert all("negative" in span.status.description for span in mine)
    assert len({span.context.trace_id for span in jobs}) == 3


async def test_one_trace_from_a_message_to_an_agent(tmp_path, spans):
    """A foreign client's message, the gateway, the job, and its nodes on a device."""
    from fp_async.backend import connected
    from fp_async.gateway_serving import make as make_gateway

    project = make(tmp_path / "center", SQLITE)
    (project.root / "pipelines" / "flow.py").write_text(PLAIN)
    with Broker() as broker:
        (project.root / "conf" / "mqtt.yml").write_text(
            conf(broker.port, "run:\n  flow:\n    on: agent:pi-7\n")
        )
        with edge_fleet(project.root) as flock:
            flock.start_agent("pi-7", broker.port)
            async with project, connected(project.root) as backend:
                gateway = make_gateway(project.flows, backend)
                working = asyncio.create_task(gateway.run())
                try:
                    await until_known(project, "pi-7")
                    with trace.get_tracer("app").start_as_current_span("press the button"):
                        parent = tracing.current()
                    command = ["mosquitto_pub", "-V", "5", "-p", str(broker.port), "-q", "1"]
                    command += ["-D", "publish", "user-property", "traceparent", parent]
                    command += ["-t", "fp/v1/main/run/flow", "-m", '{"inputs": {"number": 21}}']
                    await anyio.run_process(command)
                    with anyio.fail_after(20):
                        while "job flow" not in Tree(spans).by_name:
                            await anyio.sleep(0.05)
                finally:
                    working.cancel()
                    await asyncio.wait([working])
    tree = Tree(spans)
    assert tree.parents == {
        "press the button": None,
        "trigger flow": "press the button",
        "job flow": "trigger flow",
        "node value": "job flow",
    }
    assert len(tree.traces) == 1
    job, node = tree["job flow"], tree["node value"]
    assert job.attributes["fp.agent"] == "pi-7"
    assert job.start_time - 5e7 <= node.start_time <= node.end_time <= job.end_time


# Processes that export by themselves ----------------------------------------------------------


class Collector:
    """An OTLP endpoint that keeps what it is sent: (service, span) pairs."""

    def __enter__(self):
        received = self.received = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):  # noqa: N802
                body = self.rfile.read(int(self.headers["content-length"]))
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {a.key: a.value.string_value for a in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        received.extend((about["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


async def test_worker_and_job_process_export_one_trace(tmp_path, monkeypatch):
    project = make(tmp_path / "center", SQLITE)
    (project.root / "pipelines" / "flow.py").write_text(PIPELINE)
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        with edge_fleet(project.root) as flock:
            flock.start("w", "start-worker")
            async with project:
                id = await project.add_job("flow", inputs={"number": 3})
                await project.get_result(id, 60)
            assert flock.stop("w") == 0
        spans = {span.name: (service, span) for service, span in collector.received}
    assert set(spans) == {
        "job flow", "run flow", "node value", "node twice", "inner", "inner async",
    }  # fmt: skip
    names = {span.span_id: span.name for _, span in collector.received}
    assert names[spans["run flow"][1].parent_span_id] == "job flow"
    assert names[spans["inner"][1].parent_span_id] == "node value"
    assert len({span.trace_id for _, span in collector.received}) == 1
    assert {service for service, _ in collector.received} == {"flowerpower-worker"}


async def test_a_run_by_the_command_with_a_dead_collector(tmp_path, monkeypatch):
    project = make(tmp_path / "center", SQLITE)
    (project.root / "pipelines" / "flow.py").write_text(PLAIN)
    command = ["flowerpower", "run", "flow", "--inputs", "number=3", "--quiet"]
    command += ["--base-dir", str(project.root)]
    command[0] = str(Path(sys.executable).with_name("flowerpower"))
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "value  6\n")
    with Collector() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        subprocess.run(command, check=True, capture_output=True, timeout=30)
        assert {span.name for _, span in collector.received} == {"run flow", "node value"}


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}, False),
    ],
)
def test_the_variables_of_the_specification(environ, asked):
    assert tracing.asked_for(environ) is asked


def test_what_cannot_be_set_up_is_said(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "zipkin")
    with caplog.at_level(logging.WARNING):
        assert tracing.set_up("x") is False
    assert "otlp, console or none, not 'zipkin'" in caplog.text
