"""`from fp_async.pipeline import ...`: the names that the user's document imports from here."""

from fp_async.project import (
    Pipeline,
    PipelineManager,
    add,
    check,
    delete,
    list,
    new,
    run,
    show,
)

__all__ = [
    "Pipeline",
    "PipelineManager",
    "add",
    "check",
    "delete",
    "list",
    "new",
    "run",
    "show",
]
