"""An application that runs a pipeline inside its own event loop, as a web handler would.

Start it with `python app.py`; it brings the services along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from serve import ShopApi

import fp_async
from fp_async import NodeError, NodeEvent, Project

HERE = Path(__file__).parent


def show(event: NodeEvent) -> None:
    """What the application does with progress: log it, or push it to a browser."""
    if event.status != "succeeded":
        print(f"  {event.status:<8} {event.node} {event.error}".rstrip())


async def warehouse_screen(
    project: Project, api_url: str, progress: Callable[[NodeEvent], None] | None = None
) -> dict[str, Any]:
    """The handler: a pipeline run is one awaited call."""
    result = await project.run("fulfilment", {"api_url": api_url}, progress=progress)
    return result["summary"]


async def both_screens(project: Project, api_url: str) -> list[dict[str, Any]]:
    """Two requests at once share the loaded pipeline, not their values."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(warehouse_screen(project, api_url)) for _ in range(2)]
    return [task.result() for task in tasks]


async def main() -> None:
    """Start the services, and use them as an application would."""
    async with ShopApi(delay=0.1, failures={"inventory": 1}) as api:
        # Held open, a project keeps what it has loaded between runs.
        async with Project(HERE) as project:
            print("one request; the stock service fails once:")
            print(await warehouse_screen(project, api.url, show))

            print("two requests at once:")
            first, second = await both_screens(project, api.url)
            print("same answer:", first == second)

            print("a wrong address:")
            try:
                await warehouse_screen(project, f"{api.url}/v2")
            except NodeError as error:
                print(f"no plan today: {error.node}: {error.__cause__}")

        # For a script, the function is enough; it finds the project by its folder.
        result = await fp_async.run(
            "fulfilment", {"api_url": api.url}, final_vars=["to_reorder"], project=HERE
        )
        print("to reorder:", result["to_reorder"])


if __name__ == "__main__":
    asyncio.run(main())
