"""The plain functions of the public API, and `Pipeline`.

They use one project per folder for the whole process, and look at the files' times first, so
that an edited pipeline is run as it is now.
"""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from fp_async import config as configs
from fp_async import scaffold
from fp_async.errors import UsageError
from fp_async.flow import Progress
from fp_async.flows import Params
from fp_async.project import Project, find_root

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fp_async.checking import Report
    from fp_async.job_values import Job, JobEvent, Schedule
    from fp_async.options import (
        JobOptions,
        JobQuery,
        MoreRunOptions,
        RunOptions,
        ScheduleArguments,
        WorkerOptions,
    )

PipelineManager = Project
Where = Project | str | Path | None  # a project, its folder, or that of the working directory


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
        self.project: Project = project if isinstance(project, Project) else _shared(project)
        self._held = isinstance(project, Project)
        self._adapters = tuple(adapters)
        self._materializers = tuple(materializers)

    async def run(
        self, inputs: Mapping[str, Any] | None = None, **options: Unpack[RunOptions]
    ) -> Any:
        """`Project.run` for this pipeline."""
        if not self._held:
            self.project.refresh()
        options.setdefault("adapters", self._adapters)
        options.setdefault("materializers", self._materializers)
        return await self.project.run(self.name, inputs, **options)

    def show(
        self, format: str = "tree", environment: str = configs.DEFAULT_ENVIRONMENT
    ) -> str | bytes:
        """`Project.show` for this pipeline."""
        return self.project.show(self.name, format, environment)

    async def run_job(
        self, *, progress: Progress | None = None, **options: Unpack[JobOptions]
    ) -> Any:
        """`Project.run_job` for this pipeline."""
        self._check_plain("run_job")
        return await self.project.run_job(self.name, progress=progress, **options)

    async def add_job(self, **options: Unpack[JobOptions]) -> str:
        """`Project.add_job` for this pipeline."""
        self._check_plain("add_job")
        return await self.project.add_job(self.name, **options)

    async def schedule(
        self, trigger: object = None, *args: Any, **options: Unpack[ScheduleArguments]
    ) -> Schedule:
        """`Project.schedule` for this pipeline."""
        self._check_plain("schedule")
        return await self.project.schedule(self.name, trigger, *args, **options)

    async def start_worker(
        self,
        settings: configs.WorkerSettings | None = None,
        **changes: Unpack[WorkerOptions],
    ) -> None:
        """`Project.start_worker` of this pipeline's project."""
        await self.project.start_worker(settings, **changes)

    def _check_plain(self, what: str) -> None:
        """Adapters and materializers are objects of this process, and jobs run in others."""
        if self._adapters or self._materializers:
            raise UsageError(
                f"{what}: adapters and materializers cannot travel with a job; "
                "use them with `run`, or inside the pipeline"
            )

    def __repr__(self) -> str:
        return f"<Pipeline {self.name} of {self.project.root}>"


async def run(
    name: str,
    inputs: Mapping[str, Any] | None = None,
    final_vars: Sequence[str] | str | None = None,
    config: Mapping[str, Any] | None = None,
    environment: str = configs.DEFAULT_ENVIRONMENT,
    executor: str | Mapping[str, Any] | configs.ExecutorSettings | None = None,
    params: Params | None = None,
    with_tracker: bool | None = None,
    timeout: float | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    project: Project | str | Path | None = None,
    **options: Unpack[MoreRunOptions],
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


async def run_job(
    name: str,
    *,
    project: Where = None,
    progress: Progress | None = None,
    **options: Unpack[JobOptions],
) -> Any:
    """Run a pipeline as a job and return its result. See `Project.run_job`."""
    return await _project(project).run_job(name, progress=progress, **options)


async def add_job(name: str, *, project: Where = None, **options: Unpack[JobOptions]) -> str:
    """Queue a pipeline as a job; the job's id. See `Project.add_job`."""
    return await _project(project).add_job(name, **options)


async def get_job(id: str, *, project: Where = None) -> Job:
    """A job as it is stored. See `Project.get_job`."""
    return await _project(project).get_job(id)


async def get_result(id: str, wait: float | bool | None = None, *, project: Where = None) -> Any:
    """A job's result. See `Project.get_result`."""
    return await _project(project).get_result(id, wait)


async def cancel_job(id: str, reason: str | None = None, *, project: Where = None) -> Job:
    """Ask for a job's end. See `Project.cancel_job`."""
    return await _project(project).cancel_job(id, reason)


async def retry_job(id: str, *, project: Where = None) -> str:
    """A new job like one that has ended. See `Project.retry_job`."""
    return await _project(project).retry_job(id)


async def list_jobs(*, project: Where = None, **query: Unpack[JobQuery]) -> builtins.list[Job]:
    """The newest jobs. See `Project.list_jobs`."""
    return await _project(project).list_jobs(**query)


def watch(id: str, *, project: Where = None) -> AsyncIterator[JobEvent]:
    """What happens to a job. See `Project.watch`."""
    return _project(project).watch(id)


async def schedule(
    name: str,
    trigger: object = None,
    *args: Any,
    project: Where = None,
    **options: Unpack[ScheduleArguments],
) -> Schedule:
    """Schedule a pipeline. See `Project.schedule`."""
    return await _project(project).schedule(name, trigger, *args, **options)


async def list_schedules(*, project: Where = None) -> builtins.list[Schedule]:
    """All schedules. See `Project.list_schedules`."""
    return await _project(project).list_schedules()


async def pause_schedule(id: str, *, project: Where = None) -> Schedule:
    """Fire a schedule no more. See `Project.pause_schedule`."""
    return await _project(project).pause_schedule(id)


async def resume_schedule(id: str, *, project: Where = None) -> Schedule:
    """Fire a schedule again. See `Project.resume_schedule`."""
    return await _project(project).resume_schedule(id)


async def fire_schedule(id: str, *, project: Where = None) -> builtins.list[str]:
    """Fire a schedule now as well. See `Project.fire_schedule`."""
    return await _project(project).fire_schedule(id)


async def remove_schedule(id: str, *, project: Where = None) -> None:
    """Forget a schedule. See `Project.remove_schedule`."""
    await _project(project).remove_schedule(id)


async def start_worker(
    settings: configs.WorkerSettings | None = None,
    *,
    project: Where = None,
    **changes: Unpack[WorkerOptions],
) -> None:
    """Work on jobs until cancelled. See `Project.start_worker`."""
    await _project(project).start_worker(settings, **changes)


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


def list_pipelines(*, project: str | Path | None = None) -> builtins.list[str]:
    """The pipelines of the project of the working directory."""
    return _shared(project).list()


list = list_pipelines  # the older name, which `import *` does not put over Python's own


def show(name: str, format: str = "tree", *, project: str | Path | None = None) -> str | bytes:
    """A picture of a pipeline's DAG. See `Project.show`."""
    shared = _shared(project)
    shared.refresh()
    return shared.show(name, format)


def check(*, project: str | Path | None = None) -> Report:
    """Validate the project of the working directory. See `checking.Report`."""
    return Project(project).check()


_projects: dict[Path, Project] = {}


def _project(project: Where) -> Project:
    return project if isinstance(project, Project) else _shared(project)


def _shared(path: str | Path | None) -> Project:
    """The process-wide project for a folder, as the plain functions use it."""
    root = find_root(path)
    if root not in _projects:
        _projects[root] = Project(root)
    return _projects[root]
