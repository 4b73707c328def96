"""`from fp_async.scheduler import ...`: what the user's document imports from here."""

from fp_async.api import Pipeline, schedule, start_worker

__all__ = ["Pipeline", "schedule", "start_worker"]
