"""Wait until the center knows an agent to be ready: then it hears what is published, too."""

import asyncio
import sys

from fp_async import Project


async def main(name: str) -> None:
    async with Project() as project:
        while not any(a.name == name and a.state == "ready" for a in await project.agents()):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
    print(f"{name} is ready")


asyncio.run(main(sys.argv[1]))
