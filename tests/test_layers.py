"""The arrows of DESIGN.md: who may import whom, and one importer for each dependency."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "fp_async"

# A module may import modules of its own layer and of lower ones.
LAYERS = [
    {"addresses", "errors", "escapes", "processes", "current", "copies", "log_levels", "runtime"},
    {"ensemble"},
    {
        "awaitables",
        "contexts",
        "spans",
        "build_errors",
        "summaries",
        "documents",
        "extensions",
        "fingerprints",
        "frames",
        "node_events",
        "plan",
        "threads",
        "values",
        "variables",
        "dotenv",
        "wrappers",
    },
    {"frontier", "lifecycle", "crontab", "local_timezone", "topics", "versions"},
    {"codec", "codec_arrays", "codec_pandas", "codec_reading", "codec_values"},
    {"config", "config_files", "handing_on", "schemas"},
    {"stages", "parcels", "remote"},
    {"editing", "node_watch", "nodes", "child", "params", "jobs"},
    {"param_types"},
    {"param_names", "config_values"},
    {"observing", "job_lines"},
    {"tracing"},
    {"callbacks"},
    {
        "link",
        "link_limits",
        "link_packets",
        "link_session",
        "link_socket",
        "link_values",
        "link_websocket",
    },
    {"broker_merging"},
    {"broker", "broker_certificates", "broker_files"},
    {"broker_folder", "device_files"},
    {"modules", "bridge", "hooks", "executors", "execution", "scaffold", "node_code"},
    {"kept_open", "cache", "fan_out"},
    {"onsite", "onsite_threads"},
    {
        "messages",
        "wire",
        "presence",
        "admission",
        "board",
        "budgets",
        "turns",
        "hearing",
        "topic_triggers",
    },
    {"rules", "triggers", "trigger_times", "clock_steps", "moved_schedules", "events"},
    {"job_values"},
    {"stores", "patience"},
    {"admission_rows", "gateway_schedules", "gateway_log", "leading", "strangers"},
    {"dag"},
    {"engines"},
    {"drivers", "clustered", "flow"},
    {"flows"},
    {"options", "targets"},
    {"attempt", "drawing", "tracked_places", "tracking"},
    {"tracking_server"},
    {"tracker"},
    {"tracked"},
    {"backend", "attempting", "orders", "schedule_entries", "json_logs"},
    {
        "watching",
        "fleet",
        "runner",
        "runner_child",
        "runner_process",
        "firing",
        "keeper",
        "rescuing",
        "misconfigured_jobs",
    },
    {"short_ids"},
    {"store_copy", "held", "outcomes", "aftermath", "retrying", "metrics"},
    {"ending", "job_tracking"},
    {"worker", "workers"},
    {
        "gateway",
        "gateway_gate",
        "gateway_hearing",
        "gateway_offering",
        "gateway_pipelines",
        "gateway_serving",
        "gateway_triggers",
    },
    {"client"},
    {"job_verbs"},
    {"project", "checking", "pictures", "tracker_setup", "hamilton_ui"},
    {"api"},
    {"pipeline", "scheduler"},
    {"cli", "__main__"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# Child processes and PARAMS reach up, lazily, to what their own importers have loaded already.
UPWARD = {
    *(("params", "dag"), ("flow", "dag")),
    *(("remote", "dag"), ("remote", "modules"), ("remote", "params")),
}

IMPORTERS = {
    "hamilton": {"dag", "drivers", "extensions"},
    "yaml": {"documents"},
    "ruamel": {"editing"},
    "rich": {"cli"},
    "click": {"cli"},
    "apscheduler": {"triggers", "trigger_times"},
    "aiosqlite": {"stores"},
    "aiomqtt": {"link_session"},
    "paho": {"link_session"},
    "iotcore": {"broker"},
    "prometheus_client": {"metrics"},
    "opentelemetry": {"tracing"},
    "asyncpg": {"events"},
    "redis": {"events"},
    "sqlalchemy": {"stores"},
    "pymongo": {"stores"},
    "bson": {"stores"},
    "django": {"hamilton_ui"},
    "http": {"tracking_server"},
    "ray": {"engines"},
    "dask": {"engines"},
    "distributed": {"engines"},
    "cloudpickle": {"engines"},
}


def sources(package: Path) -> list[Path]:
    return sorted(package.rglob("*.py"))


def name_of(path: Path) -> str:
    """`dag` for fp_async/dag.py, `cli` for everything in fp_async/cli/."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module == "fp_async":
            names |= {f"fp_async.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: path.name)
def test_imports_point_down(path):
    name = name_of(path)
    if name == "__init__":
        return
    for target in imported(path):
        inner = target.removeprefix("fp_async.").partition(".")[0]
        if not target.startswith("fp_async.") or inner not in LAYER:
            continue
        assert LAYER[inner] <= LAYER[name] or (name, inner) in UPWARD, f"{name} imports {inner}"


def test_every_module_has_a_layer():
    assert {name_of(path) for path in sources(PACKAGE)} - {"__init__"} <= LAYER.keys()


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: path.name)
def test_one_importer_for_each_dependency(path):
    for target in imported(path):
        top = target.partition(".")[0]
        assert name_of(path) in IMPORTERS.get(top, {name_of(path)}), f"{path.name} imports {top}"


@pytest.mark.parametrize("path", sources(PACKAGE), ids=lambda path: path.name)
def test_the_library_never_imports_the_agent(path):
    assert not any(target.startswith("edge_agent") for target in imported(path))


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"hamilton", "pandas", "numpy", "sqlalchemy", "apscheduler"}


@pytest.mark.parametrize(
    "statement",
    [
        "import fp_async",
        "import fp_async.errors, fp_async.config, fp_async.params",
        "from fp_async import run, Project, Pipeline",
        "import fp_async.pipeline, fp_async.scheduler",
        "import edge_agent",
    ],
)
def test_importing_loads_nothing_heavy(statement):
    assert not HEAVY & loaded_after(statement)


LEFT_OUT = {
    *("yaml", "ruamel", "click", "rich", "dns.resolver", "urllib.request", "http.client", "email"),
    *("shutil", "tempfile", "bz2", "lzma", "fp_async.codec", "fp_async.flow", "fp_async.documents"),
    *("fp_async.dag", "fp_async.orders", "fp_async.triggers", "edge_agent.scheduling"),
}


def test_the_idle_agent_is_light():
    """Every module costs a device memory for ever; see edge_agent/lean.py for stand-ins."""
    statement = """
from edge_agent import lean
lean.defer(*lean.UNUSED)
import edge_agent.daemon
for name in lean.UNUSED:
    del sys.modules[name]
"""
    assert not (HEAVY | LEFT_OUT) & loaded_after(statement)


def test_a_stand_in_becomes_the_module_when_it_is_used():
    statement = """
from edge_agent import lean
lean.defer("urllib.request")
import urllib.request
assert "http.client" not in sys.modules
assert urllib.request.Request("http://a/b").host == "a"
import urllib.request as real
assert real.Request is urllib.request.Request
"""
    assert "http.client" in loaded_after(statement)


def test_importing_the_package_costs_nothing():
    assert not {"asyncio", "msgspec", "yaml", "anyio", "click"} & loaded_after("import fp_async")


def test_help_loads_nothing_heavy():
    statement = """
import sys, os
os._exit = lambda code: None
sys.argv = ["flowerpower", "--help"]
from fp_async.cli import main
sys.stdout, real = open(os.devnull, "w"), sys.stdout
main()
sys.stdout = real
"""
    assert not (HEAVY | {"rich", "asyncio", "msgspec"}) & loaded_after(statement)
