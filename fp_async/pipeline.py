"""`from fp_async.pipeline import ...`: what the user's document imports from here, and more."""

from fp_async.api import (
    Pipeline,
    PipelineManager,
    add,
    add_job,
    cancel_job,
    check,
    delete,
    get_job,
    get_result,
    list,  # noqa: F401 - the older name, which `import *` leaves alone
    list_pipelines,
    new,
    run,
    run_job,
    show,
)

__all__ = [
    "Pipeline",
    "PipelineManager",
    "add",
    "add_job",
    "cancel_job",
    "check",
    "delete",
    "get_job",
    "get_result",
    "list_pipelines",
    "new",
    "run",
    "run_job",
    "show",
]
