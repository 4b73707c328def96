"""Three sensors that publish readings: what stands on the roof in production."""

import argparse
import asyncio
import json
import math
import time

from fp_async.link import Link, connected


async def main(port: int, readings: int) -> None:
    async with connected(Link(host="127.0.0.1", port=port)) as connection:
        for number in range(readings):
            body = {"value": 20 + 5 * math.sin(number), "at": time.time()}
            topic = f"sensors/s{number % 3 + 1}/temperature"
            await connection.publish(topic, json.dumps(body).encode(), qos=1)
    print(f"sent {readings} readings")


parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, default=1883)
parser.add_argument("--readings", type=int, default=30)
options = parser.parse_args()
asyncio.run(main(options.port, options.readings))
