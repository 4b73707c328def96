"""Wake-ups through pub/sub of Redis or Valkey. The only importer of redis."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio

from fp_async.config import EventBroker
from fp_async.errors import BrokerError, MissingExtraError, describe
from fp_async.events import address, patience_for, until_one_ends
from fp_async.events.outbox import Outbox

ANSWER_SECONDS = 10.0
KEEPALIVE_SECONDS = 20.0


def make(settings: EventBroker, namespace: str, fallback: str | None) -> RedisTransport:
    """The transport for these settings. Raises MissingExtraError, ConfigError, ValueError."""
    _redis()
    host = settings.host or "localhost"
    written = f"[{host}]" if ":" in host else host
    uri = address(settings, fallback, "redis", "rediss", "unix")
    login = {"username": settings.username, "password": settings.password}
    return RedisTransport(uri or f"redis://{written}:{settings.port or 6379}", namespace, login)


def _redis() -> Any:
    try:
        import redis.asyncio
    except ImportError as error:
        raise MissingExtraError("event broker 'redis'", "redis") from error
    return redis


class RedisTransport:
    """Two connections: one that is subscribed, one that publishes."""

    def __init__(self, uri: str, namespace: str, login: dict[str, str | None]) -> None:
        self._uri = uri
        self._channel = f"fp:wake:{namespace}"
        self._login = {name: value for name, value in login.items() if value is not None}
        parts = urlsplit(uri)
        self._told = f"Redis at {parts.hostname or 'localhost'}:{parts.port or 6379}"
        self.patience: float = patience_for(parts.hostname)

    async def serve(
        self, hear: Callable[[bytes | str], None], outbox: Outbox, up: Callable[[], None]
    ) -> None:
        """Subscribe and publish until a connection breaks: BrokerError."""
        async with self._connected() as (client, pubsub):
            await pubsub.subscribe(self._channel)
            confirmed = await pubsub.get_message(timeout=ANSWER_SECONDS)
            if confirmed is None:
                raise TimeoutError("no answer to SUBSCRIBE")
            up()
            await until_one_ends(
                functools.partial(_receive, pubsub, hear),
                functools.partial(_send, client, self._channel, outbox),
            )

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[Any, Any]]:
        """A client and its subscription; inside, the client's errors become BrokerError."""
        client = self._client()
        pubsub = client.pubsub()
        try:
            yield client, pubsub
        except (OSError, _redis().RedisError) as error:
            raise BrokerError(f"{self._told}: {describe(error)}") from error
        finally:
            with anyio.move_on_after(0.5, shield=True), contextlib.suppress(Exception):
                await pubsub.aclose()
                await client.aclose()

    def _client(self) -> Any:
        """A client that never reconnects behind our back: every connect wakes all listeners."""
        redis = _redis()
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff

        return redis.asyncio.Redis.from_url(
            self._uri,
            **self._login,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=ANSWER_SECONDS,
            socket_timeout=ANSWER_SECONDS,
            socket_keepalive=True,
        )


async def _receive(pubsub: Any, hear: Callable[[bytes | str], None]) -> None:
    """Hear messages; after a while without, ask whether the server is still there."""
    silent = False
    while True:
        timeout = ANSWER_SECONDS if silent else KEEPALIVE_SECONDS
        message = await pubsub.get_message(timeout=timeout)
        if message is not None:
            silent = False
            if message["type"] == "message":
                hear(message["data"])
        elif silent:
            raise TimeoutError("no answer to PING")
        else:
            silent = True
            await pubsub.ping()


async def _send(client: Any, channel: str, outbox: Outbox) -> None:
    while True:
        message = await outbox.take()
        await client.publish(channel, message)
        outbox.done()
