"""FlowerPower: pipelines of plain functions, run in your event loop.

Importing this costs nothing: every public name is loaded when it is first used (PEP 562).
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if _TYPE_CHECKING:
    from fp_async.api import Pipeline as Pipeline
    from fp_async.api import PipelineManager as PipelineManager
    from fp_async.api import add as add
    from fp_async.api import add_job as add_job
    from fp_async.api import cancel_job as cancel_job
    from fp_async.api import check as check
    from fp_async.api import delete as delete
    from fp_async.api import fire_schedule as fire_schedule
    from fp_async.api import get_job as get_job
    from fp_async.api import get_result as get_result
    from fp_async.api import init as init
    from fp_async.api import list as list
    from fp_async.api import list_jobs as list_jobs
    from fp_async.api import list_pipelines as list_pipelines
    from fp_async.api import list_schedules as list_schedules
    from fp_async.api import new as new
    from fp_async.api import pause_schedule as pause_schedule
    from fp_async.api import remove_schedule as remove_schedule
    from fp_async.api import resume_schedule as resume_schedule
    from fp_async.api import retry_job as retry_job
    from fp_async.api import run as run
    from fp_async.api import run_job as run_job
    from fp_async.api import schedule as schedule
    from fp_async.api import show as show
    from fp_async.api import start_worker as start_worker
    from fp_async.api import watch as watch
    from fp_async.callbacks import RunEvent as RunEvent
    from fp_async.codec_values import Record as Record
    from fp_async.config import ExecutorSettings as ExecutorSettings
    from fp_async.config import NodePolicy as NodePolicy
    from fp_async.config import Retry as Retry
    from fp_async.config import WorkerSettings as WorkerSettings
    from fp_async.current import CurrentJob as CurrentJob
    from fp_async.current import current_job as current_job
    from fp_async.errors import AdapterError as AdapterError
    from fp_async.errors import AlreadyExistsError as AlreadyExistsError
    from fp_async.errors import AmbiguousIdError as AmbiguousIdError
    from fp_async.errors import BrokerError as BrokerError
    from fp_async.errors import ClusterError as ClusterError
    from fp_async.errors import ConfigError as ConfigError
    from fp_async.errors import ConnectRefusedError as ConnectRefusedError
    from fp_async.errors import CopyError as CopyError
    from fp_async.errors import EncodingError as EncodingError
    from fp_async.errors import FileAccessError as FileAccessError
    from fp_async.errors import FlowerPowerError as FlowerPowerError
    from fp_async.errors import GraphError as GraphError
    from fp_async.errors import InputError as InputError
    from fp_async.errors import JobCancelledError as JobCancelledError
    from fp_async.errors import JobError as JobError
    from fp_async.errors import JobExpiredError as JobExpiredError
    from fp_async.errors import JobFailedError as JobFailedError
    from fp_async.errors import JobNotFinishedError as JobNotFinishedError
    from fp_async.errors import JobTimeoutError as JobTimeoutError
    from fp_async.errors import MessageError as MessageError
    from fp_async.errors import MisconfiguredError as MisconfiguredError
    from fp_async.errors import MissingExtraError as MissingExtraError
    from fp_async.errors import MissingParameterError as MissingParameterError
    from fp_async.errors import NodeCrashedError as NodeCrashedError
    from fp_async.errors import NodeError as NodeError
    from fp_async.errors import NodeTimeoutError as NodeTimeoutError
    from fp_async.errors import OtherVersionError as OtherVersionError
    from fp_async.errors import PipelineImportError as PipelineImportError
    from fp_async.errors import ProjectNotFoundError as ProjectNotFoundError
    from fp_async.errors import PublishRefusedError as PublishRefusedError
    from fp_async.errors import ResultLostError as ResultLostError
    from fp_async.errors import RunTimeoutError as RunTimeoutError
    from fp_async.errors import SessionTakenError as SessionTakenError
    from fp_async.errors import StoreError as StoreError
    from fp_async.errors import StoreUnavailableError as StoreUnavailableError
    from fp_async.errors import TooLargeError as TooLargeError
    from fp_async.errors import TrackerError as TrackerError
    from fp_async.errors import TransitionError as TransitionError
    from fp_async.errors import TriggerError as TriggerError
    from fp_async.errors import UnknownEntryError as UnknownEntryError
    from fp_async.errors import UnknownNameError as UnknownNameError
    from fp_async.errors import UsageError as UsageError
    from fp_async.fleet import AgentInfo as AgentInfo
    from fp_async.job_values import DeadLetter as DeadLetter
    from fp_async.job_values import Job as Job
    from fp_async.job_values import JobEvent as JobEvent
    from fp_async.job_values import Schedule as Schedule
    from fp_async.job_verbs import Client as Client
    from fp_async.jobs import Failure as Failure
    from fp_async.jobs import NodeTiming as NodeTiming
    from fp_async.kept_open import keep_open as keep_open
    from fp_async.node_events import NodeEvent as NodeEvent
    from fp_async.params import load_params as load_params
    from fp_async.project import Project as Project
    from fp_async.values.secret import Secret as Secret

__version__ = "0.1.0"

_HOMES = {
    "api": (
        "Pipeline",
        "PipelineManager",
        "add",
        "add_job",
        "cancel_job",
        "check",
        "delete",
        "fire_schedule",
        "get_job",
        "get_result",
        "init",
        "list",
        "list_jobs",
        "list_pipelines",
        "list_schedules",
        "new",
        "pause_schedule",
        "remove_schedule",
        "resume_schedule",
        "retry_job",
        "run",
        "run_job",
        "schedule",
        "show",
        "start_worker",
        "watch",
    ),
    "config": (
        "ExecutorSettings",
        "NodePolicy",
        "Retry",
        "WorkerSettings",
    ),
    "errors": (
        "AdapterError",
        "AlreadyExistsError",
        "AmbiguousIdError",
        "BrokerError",
        "ClusterError",
        "ConfigError",
        "ConnectRefusedError",
        "CopyError",
        "EncodingError",
        "FileAccessError",
        "FlowerPowerError",
        "GraphError",
        "InputError",
        "JobCancelledError",
        "JobError",
        "JobExpiredError",
        "JobFailedError",
        "JobNotFinishedError",
        "JobTimeoutError",
        "MessageError",
        "MisconfiguredError",
        "MissingExtraError",
        "MissingParameterError",
        "NodeCrashedError",
        "NodeError",
        "NodeTimeoutError",
        "OtherVersionError",
        "PipelineImportError",
        "ProjectNotFoundError",
        "PublishRefusedError",
        "RunTimeoutError",
        "SessionTakenError",
        "ResultLostError",
        "StoreError",
        "StoreUnavailableError",
        "TooLargeError",
        "TrackerError",
        "TransitionError",
        "TriggerError",
        "UnknownEntryError",
        "UnknownNameError",
        "UsageError",
    ),
    "current": ("CurrentJob", "current_job"),
    "callbacks": ("RunEvent",),
    "codec_values": ("Record",),
    "fleet": ("AgentInfo",),
    "job_values": ("DeadLetter", "Job", "JobEvent", "Schedule"),
    "job_verbs": ("Client",),
    "jobs": ("Failure", "NodeTiming"),
    "kept_open": ("keep_open",),
    "node_events": ("NodeEvent",),
    "params": ("load_params",),
    "project": ("Project",),
    "values.secret": ("Secret",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

# The table above is the one list. Without `list`, which `import *` would put over Python's own.
__all__ = sorted(_HOME.keys() - {"list"})  # noqa: PLE0605


def __getattr__(name: str) -> _Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fp_async' has no attribute {name!r}")
    value = getattr(_import_module(f"fp_async.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> _Any:
    return __all__
