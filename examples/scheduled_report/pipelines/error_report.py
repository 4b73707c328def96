"""What went wrong in a web server's log, as a file that a schedule writes every morning."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

from fp_async import current_job

Request = dict[str, str]


def requests(log: Path) -> list[Request]:
    with log.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def errors(requests: list[Request]) -> dict[str, int]:
    """How many requests of each path the server failed to answer, most first."""
    failed = Counter(request["path"] for request in requests if request["status"] >= "500")
    return dict(failed.most_common())


def summary(requests: list[Request], errors: dict[str, int]) -> str:
    return f"{sum(errors.values())} of {len(requests)} requests failed"


def report_file(summary: str, errors: dict[str, int], folder: Path) -> Path:
    """The report's path. A second attempt at the same job replaces the file of the first."""
    job = current_job()
    path = folder / f"{job.id if job else 'by-hand'}.txt"
    folder.mkdir(exist_ok=True)
    half = path.with_suffix(".part")  # whoever reads the folder never sees half a report
    lines = [summary, *(f"{count:5} {name}" for name, count in errors.items())]
    half.write_text("\n".join(lines) + "\n", encoding="utf-8")
    half.replace(path)
    return path
