"""The plain functions of the public API, and `Pipeline`.

They use one project per folder for the whole process, and look at the files' times first, so
that an edited pipeline is run as it is now.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fp_async import config as configs
from fp_async import scaffold
from fp_async.flow import Progress
from fp_async.project import Params, Project, find_root

if TYPE_CHECKING:
    from fp_async.checking import Report

PipelineManager = Project


class Pipeline:
    """One pipeline of a project, with what every run of it shares.

    `adapters` are Hamilton lifecycle adapters, `materializers` Hamilton's `to.*` and `from_.*`.
    """

    def __init__(
        self,
        name: str,
        project: Project | str | Path | None = None,
        *,
        adapters: Sequence[Any] = (),
        materializers: Sequence[Any] = (),
    ) -> None:
        self.name = name
        self.project = project if isinstance(project, Project) else _shared(project)
        self._held = isinstance(project, Project)
        self._adapters = tuple(adapters)
        self._materializers = tuple(materializers)

    async def run(self, inputs: Mapping[str, Any] | None = None, **options: Any) -> Any:
        """`Project.run` for this pipeline."""
        if not self._held:
            self.project.refresh()
        options = {"adapters": self._adapters, "materializers": self._materializers, **options}
        return await self.project.run(self.name, inputs, **options)

    def show(self, format: str = "tree", **options: Any) -> str | bytes:
        """`Project.show` for this pipeline."""
        return self.project.show(self.name, format, **options)

    async def run_job(self, **options: Any) -> Any:
        """`Project.run_job` for this pipeline."""
        return await self.project.run_job(self.name, **options)

    async def add_job(self, **options: Any) -> Any:
        """`Project.add_job` for this pipeline."""
        return await self.project.add_job(self.name, **options)

    async def schedule(self, *trigger: Any, **options: Any) -> Any:
        """`Project.schedule` for this pipeline."""
        return await self.project.schedule(self.name, *trigger, **options)

    async def start_worker(self, **options: Any) -> Any:
        """`Project.start_worker` of this pipeline's project."""
        return await self.project.start_worker(**options)

    def __repr__(self) -> str:
        return f"<Pipeline {self.name} of {self.project.root}>"


async def run(
    name: str,
    inputs: Mapping[str, Any] | None = None,
    final_vars: Sequence[str] | str | None = None,
    config: Mapping[str, Any] | None = None,
    environment: str = configs.DEFAULT_ENVIRONMENT,
    executor: str | configs.ExecutorSettings | None = None,
    params: Params | None = None,
    with_tracker: bool | None = None,
    timeout: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    project: Project | str | Path | None = None,
    **options: Any,
) -> Any:
    """Run a pipeline of `project` (default: of the working directory). See `Project.run`."""
    if not isinstance(project, Project):
        project = _shared(project)
        project.refresh()
    return await project.run(
        name,
        inputs,
        final_vars,
        config,
        environment,
        executor,
        params,
        with_tracker,
        timeout,
        overrides,
        progress,
        **options,
    )


async def run_job(name: str, *, project: str | Path | None = None, **options: Any) -> Any:
    """Run a pipeline as a job. See `Project.run_job`."""
    return await _shared(project).run_job(name, **options)


async def add_job(name: str, *, project: str | Path | None = None, **options: Any) -> Any:
    """Queue a pipeline as a job. See `Project.add_job`."""
    return await _shared(project).add_job(name, **options)


async def schedule(
    name: str, *trigger: Any, project: str | Path | None = None, **options: Any
) -> Any:
    """Schedule a pipeline. See `Project.schedule`."""
    return await _shared(project).schedule(name, *trigger, **options)


async def start_worker(*, project: str | Path | None = None, **options: Any) -> Any:
    """Work on jobs until cancelled. See `Project.start_worker`."""
    return await _shared(project).start_worker(**options)


def init(name: str | Path = ".", *, overwrite: bool = False) -> Project:
    """Create a project in the folder `name`. See `scaffold.create_project`."""
    root = Path(name).expanduser().resolve()
    scaffold.create_project(root, overwrite=overwrite)
    return Project(root)


def new(name: str, *, overwrite: bool = False, project: str | Path | None = None) -> Path:
    """Add a pipeline to the project of the working directory. See `Project.new`."""
    return _shared(project).new(name, overwrite=overwrite)


add = new


def delete(name: str, *, project: str | Path | None = None) -> builtins.list[Path]:
    """Remove a pipeline from the project of the working directory."""
    return _shared(project).delete(name)


def list(*, project: str | Path | None = None) -> builtins.list[str]:
    """The pipelines of the project of the working directory."""
    return _shared(project).list()


def show(name: str, format: str = "tree", *, project: str | Path | None = None) -> str | bytes:
    """A picture of a pipeline's DAG. See `Project.show`."""
    shared = _shared(project)
    shared.refresh()
    return shared.show(name, format)


def check(*, project: str | Path | None = None) -> Report:
    """Validate the project of the working directory. See `checking.Report`."""
    return Project(project).check()


_projects: dict[Path, Project] = {}


def _shared(path: str | Path | None) -> Project:
    """The process-wide project for a folder, as the plain functions use it."""
    root = find_root(path)
    if root not in _projects:
        _projects[root] = Project(root)
    return _projects[root]
