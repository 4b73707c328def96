"""A stand-in for the shop's services: GET /users answers with data/users.json, after a while.

Start it with `python serve.py`; `--delay` and `--fail` make it slower and less reliable.
Asyncio and the standard library only; `app.py` and the tests start it on a free port.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

DATA = Path(__file__).parent / "data"


class ShopApi:
    """Serves `data/*.json` on the loopback interface inside `async with`.

    The first `failures[source]` requests for a source get 503. Every other answer waits for
    `delay` seconds and then for `before_answer(source)`. `log` lists what happened, in order.
    """

    def __init__(
        self,
        port: int = 0,
        delay: float = 0.0,
        failures: Mapping[str, int] | None = None,
        before_answer: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        self.log: list[tuple[str, str]] = []
        self._port = port
        self._delay = delay
        self._failures = dict(failures or {})
        self._before_answer = before_answer
        self._busy: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self.url = "http://127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Tasks of our own: a client that has given up must not keep the server from closing.
        task = asyncio.create_task(self._answer(reader, writer))
        self._busy.add(task)
        task.add_done_callback(self._busy.discard)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                request = await reader.readuntil(b"\r\n\r\n")
                source = request.split()[1].decode().strip("/")
                status, body = await self._find(source)
                head = f"HTTP/1.0 {status} {status.phrase}\r\nContent-Type: application/json"
                writer.write(head.encode() + b"\r\n\r\n" + body)
                await writer.drain()
        finally:
            writer.close()

    async def _find(self, source: str) -> tuple[HTTPStatus, bytes]:
        self.log.append(("asked", source))
        if self._failures.get(source, 0) > 0:
            self._failures[source] -= 1
            self.log.append(("refused", source))
            return HTTPStatus.SERVICE_UNAVAILABLE, b"{}"
        await asyncio.sleep(self._delay)
        if self._before_answer is not None:
            await self._before_answer(source)
        self.log.append(("answered", source))
        file = DATA / f"{source}.json"
        if file not in DATA.iterdir():
            return HTTPStatus.NOT_FOUND, b"{}"
        return HTTPStatus.OK, file.read_bytes()


async def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve data/*.json as a slow API.")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--delay", type=float, default=0.3, help="seconds before each answer")
    parser.add_argument("--fail", action="append", default=[], metavar="SOURCE", help="503 once")
    options = parser.parse_args()
    failures = {source: options.fail.count(source) for source in options.fail}
    async with ShopApi(options.port, options.delay, failures) as api:
        print(f"serving on {api.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
