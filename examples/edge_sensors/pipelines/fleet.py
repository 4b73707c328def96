"""In the center: the newest window of every device, and what stands out."""

from typing import Any

from fp_async import Project


async def windows(schedule: str = "windows") -> dict[str, dict[str, Any]]:
    """The newest window that each device has sent, by device."""
    async with Project() as project:
        jobs = await project.list_jobs(schedule_id=schedule, states=("succeeded",), limit=200)
        newest = {job.agent: job.id for job in reversed(jobs)}
        return {agent: (await project.get_result(id))["window"] for agent, id in newest.items()}


def summary(windows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The mean of every device, over all its sensors."""
    return {
        agent: {
            "sensors": len(window),
            "mean": round(sum(each["mean"] for each in window.values()) / max(len(window), 1), 2),
        }
        for agent, window in windows.items()
    }


def warmest(windows: dict[str, dict[str, Any]]) -> str:
    """Device and sensor of the highest value; empty without any."""
    found = [(e["max"], f"{a}/{s}") for a, window in windows.items() for s, e in window.items()]
    return max(found, default=(0.0, ""))[1]
