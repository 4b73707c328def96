"""What all tests share: the backend, and small projects on disk."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from fp_async import Project

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
