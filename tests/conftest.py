"""What all tests share: the backend, small projects on disk, and every kind of data store."""

from __future__ import annotations

import gc
import textwrap
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
import stores_kit
import turns
from hypothesis import HealthCheck, settings

from fp_async import Project

# On a machine with more to do, drawing examples takes as long as it takes.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("here")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if not hasattr(item.config, "workerinput"):  # the only process
        return (yield)
    with turns.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


_LONG = ("chaos", "edge_chaos", "edge_hostile", "docs", "tracker", "benchmarks", "document")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first: at the end they would hold up a run whose other processes are done."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in _LONG)


MakeProject = Callable[..., Project]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def make_project(tmp_path: Path) -> MakeProject:
    """A project with these pipelines (name=source) and this conf/pipelines.yml."""

    def make(config: str = "", *, folder: str = "project", **pipelines: str) -> Project:
        root = tmp_path / folder
        for name, text in {"conf/pipelines.yml": config}.items() if config else ():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(textwrap.dedent(text))
        (root / "pipelines").mkdir(parents=True, exist_ok=True)
        for name, source in pipelines.items():
            (root / "pipelines" / f"{name}.py").write_text(textwrap.dedent(source))
        return Project(root)

    return make


# Data stores --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def databases():
    with stores_kit.databases() as uri:
        yield uri


@pytest.fixture(params=stores_kit.KINDS)
async def place(request, tmp_path, databases):
    kind = request.param
    stores_kit.need(kind)
    uri = {"memory": None, "sqlite": f"sqlite:///{tmp_path}/jobs.db"}
    place = stores_kit.Place(kind, uri[kind] if kind in uri else databases(kind))
    yield place
    await place.close()
    await place.clear()
    if kind == "mongodb":
        forget_sockets(1)
        request.node.module.used_mongodb = True


@pytest.fixture(autouse=True, scope="module")
def _sockets_of_mongodb(request):
    yield
    if getattr(request.node.obj, "used_mongodb", False):
        forget_sockets(2)


def forget_sockets(generation: int) -> None:
    """pymongo leaves a socket to the garbage collector when a connect is cancelled, as that of its
    monitor is by `close`: collect it here, or whatever test comes later is told of it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect(generation)


@pytest.fixture
async def store(place):
    return await place.opened()


@pytest.fixture
def _collected():
    yield
    gc.collect()
