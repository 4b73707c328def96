"""Wake-ups through an MQTT broker, on `link.py`: one topic, QoS 0, nothing retained."""

from __future__ import annotations

import functools
from collections.abc import Callable
from urllib.parse import quote

from fp_async.config import EventBroker
from fp_async.events import address, patience_for, until_one_ends
from fp_async.events.outbox import MESSAGE_LIMIT, Outbox
from fp_async.link import Connection, Link, connected

SEND_SECONDS = 10.0
RECEIVE_QUEUE = 1_000


def make(settings: EventBroker, namespace: str, fallback: str | None) -> MqttTransport:
    """The transport for these settings. Raises ConfigError, ValueError."""
    uri = address(settings, fallback, *Link.schemes)
    link = Link.of(
        uri,
        host=settings.host,
        port=settings.port,
        username=settings.username,
        password=settings.password,
        receive_queue=RECEIVE_QUEUE,
    )
    return MqttTransport(link, namespace)


class MqttTransport:
    """One connection that is subscribed to the topic of `namespace`, and publishes to it."""

    def __init__(self, link: Link, namespace: str) -> None:
        self._link = link
        self._topic = f"fp/v1/{quote(namespace, safe=' ')}/wake"
        self.patience: float = patience_for(link.host)

    async def serve(
        self, hear: Callable[[bytes | str], None], outbox: Outbox, up: Callable[[], None]
    ) -> None:
        """Subscribe and publish until the connection breaks: BrokerError."""
        async with connected(self._link) as connection:
            await connection.subscribe(self._topic, own=False)
            up()
            await until_one_ends(
                functools.partial(_receive, connection, hear),
                functools.partial(_send, connection, self._topic, outbox),
            )


async def _receive(connection: Connection, hear: Callable[[bytes | str], None]) -> None:
    async for message in connection:
        if not message.retained and len(message.payload) <= MESSAGE_LIMIT:
            hear(message.payload)


async def _send(connection: Connection, topic: str, outbox: Outbox) -> None:
    while True:
        message = await outbox.take()
        await connection.publish(topic, message.encode(), timeout=SEND_SECONDS)
        outbox.done()
