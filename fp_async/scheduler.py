"""`from fp_async.scheduler import ...`: what the user's document imports from here, and more."""

from fp_async.api import (
    Pipeline,
    list_schedules,
    pause_schedule,
    remove_schedule,
    resume_schedule,
    schedule,
    start_worker,
)

__all__ = [
    "Pipeline",
    "list_schedules",
    "pause_schedule",
    "remove_schedule",
    "resume_schedule",
    "schedule",
    "start_worker",
]
