"""A JSON client on asyncio alone. The underscore says: a helper, not a pipeline.

In an application this would be httpx or aiohttp.
"""

import asyncio
import json
from typing import Any
from urllib.parse import urlsplit


class ApiError(Exception):
    """The API refused the request; asking again would change nothing."""


class ApiUnavailableError(ApiError, ConnectionError):
    """The API has a problem of its own (5xx, broken answer); asking again may help."""


async def get_json(url: str) -> Any:
    """The JSON that stands at `url`. Raises ApiError, or ConnectionError where nobody answers."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
    try:
        writer.write(f"GET {parts.path} HTTP/1.0\r\nHost: {parts.netloc}\r\n\r\n".encode())
        await writer.drain()
        answer = await reader.read()
    finally:
        writer.close()
    return _body(url, answer)


def _body(url: str, answer: bytes) -> Any:
    head, blank, body = answer.partition(b"\r\n\r\n")
    status = head.split(maxsplit=2)[1:2]
    if not blank or not status or status[0].startswith(b"5"):
        raise ApiUnavailableError(f"{url}: {_status_line(head)}")
    if status[0] != b"200":
        raise ApiError(f"{url}: {_status_line(head)}")
    return json.loads(body)


def _status_line(head: bytes) -> str:
    return head.partition(b"\r\n")[0].decode("latin-1") or "no answer"
