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
    list,
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
    "list",
    "new",
    "run",
    "run_job",
    "show",
]
