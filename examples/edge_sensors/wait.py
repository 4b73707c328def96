"""Wait until so many results of a schedule have arrived."""

import asyncio
import sys

from fp_async import Project


async def main(schedule: str, count: int) -> None:
    async with Project() as project:
        while len(await project.list_jobs(schedule_id=schedule)) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    print(f"{count} windows have arrived")


asyncio.run(main(sys.argv[1], int(sys.argv[2])))
