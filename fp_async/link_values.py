"""What a connection to an MQTT broker is asked for, and the messages that come over it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self
from urllib.parse import unquote, urlsplit

import msgspec

from fp_async.addresses import normal, place

LEAST_RECEIVE_MAXIMUM = 20
_LONGEST_TEXT = 65_535  # bytes, by the format of MQTT


class Will(msgspec.Struct, frozen=True):
    """What the broker publishes for us when the connection ends without a goodbye."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


class AddressError(ValueError):
    """A mistake in an address, or in the `key` that was given beside it."""

    def __init__(self, text: str, key: str | None = None) -> None:
        super().__init__(text)
        self.key = key


class Link(msgspec.Struct, frozen=True):
    """How to reach a broker. `keepalive`, `timeout` (of each answer), `session_expiry`: seconds.

    - With `path` it is a websocket. `ca_file` replaces the system's authorities; `cert_file` and
      `key_file` (PEM) are our own certificate.
    - An empty `client_id` lets the broker choose. Without `clean_start` the broker keeps the
      session of `client_id` for `session_expiry` seconds (in MQTT 3.1.1 as long as it likes).
    - With `manual_ack` a message of QoS 1 is the broker's to deliver again until `acknowledge`.
      At most `receive_maximum` of them wait for that (in MQTT 3.1.1 the broker decides).
    - At most `max_inflight` messages of QoS 1 are sent and unanswered, fewer where the broker
      says so; up to `send_queue` wait for that, beyond it publishing is an error.
    - `receive_queue` bounds the messages that wait here, 0 is without limit. Only QoS 0 is
      dropped for it: QoS 1 would be lost, and with `manual_ack` is bounded already.
    - A broker of MQTT 5 is told to deliver no message above `packet_bytes`, where that is given.
    - `version` is 5, or 311 for MQTT 3.1.1; without it the connection finds out.
    - `purpose` tells it from other connections of the program, in errors and in the log.
    """

    host: str = "localhost"
    port: int = 1883
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    path: str | None = None
    client_id: str = ""
    clean_start: bool = True
    session_expiry: int = 0
    will: Will | None = None
    keepalive: int = 30
    timeout: float = 10.0
    manual_ack: bool = False
    max_inflight: int = 100
    receive_maximum: int = 1_000
    send_queue: int = 10_000
    receive_queue: int = 0
    packet_bytes: int | None = None
    version: Literal[5, 311] | None = None
    purpose: str = ""

    schemes: ClassVar[tuple[str, ...]] = ("mqtt", "mqtts", "tcp", "ssl", "ws", "wss")

    def __post_init__(self) -> None:
        if not LEAST_RECEIVE_MAXIMUM <= self.receive_maximum <= 65_535:
            raise ValueError(f"receive_maximum: {LEAST_RECEIVE_MAXIMUM} to 65535")

    @property
    def is_local(self) -> bool:
        """Whether the broker is reached without a network."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @classmethod
    def of(
        cls,
        uri: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        username: str | None = None,
        password: str | None = None,
        **settings: Any,
    ) -> Self:
        """From `mqtt://user:password@host:1883`, `mqtts://` or `wss://host/path`.

        What is given besides counts more. Raises ValueError for another scheme, for a port
        that is no number, and for files of TLS without TLS (AddressError, which names the key).
        """
        parts = urlsplit(normal(uri or "mqtt://"))
        if parts.scheme not in cls.schemes or "://" not in (uri or "://"):
            raise AddressError(f"not an MQTT broker's address: {_seen(uri or '')}")
        tls = settings.setdefault("tls", parts.scheme in {"mqtts", "ssl", "wss"})
        for name in ("ca_file", "cert_file", "key_file"):
            if settings.get(name) is not None and not tls:
                raise AddressError(
                    f"{name} is for TLS: write mqtts:// (or wss://), not {parts.scheme}://", name
                )
        login = {
            "username": username or _decoded(parts.username),
            "password": password or _decoded(parts.password),
        }
        for name, text in login.items():
            if len((text or "").encode(errors="replace")) > _LONGEST_TEXT:
                raise AddressError(f"{name} is longer than {_LONGEST_TEXT:,} bytes", name)
        try:
            own_port = parts.port
        except ValueError:
            text = "the port is a number up to 65535, as in mqtt://host:1883"
            raise AddressError(text) from None
        web = parts.scheme in {"ws", "wss"}
        if web:
            query = f"?{parts.query}" if parts.query else ""
            settings.setdefault("path", (parts.path or "/mqtt") + query)
        return cls(
            host=host or parts.hostname or "localhost",
            port=port or own_port or _PORTS[tls, web],
            username=login["username"],
            password=login["password"],
            **settings,
        )

    def __str__(self) -> str:
        more = [f"as {self.username}"] if self.username else []
        more += [f"for {self.purpose}"] if self.purpose else []
        known = f" ({', '.join(more)})" if more else ""
        return f"MQTT broker at {self.host}:{self.port}{known}"

    def __repr__(self) -> str:
        return f"<Link to {self}>"  # without the password


_PORTS = {(False, False): 1883, (True, False): 8883, (False, True): 80, (True, True): 443}


def _seen(uri: str) -> str:
    """Return the part of a wrong address that may be shown."""
    scheme, colon, _ = uri.partition("://")
    return f"'{scheme}://'" if colon else f"'{place(uri)}' has no scheme, as in mqtt://host:1883"


def _decoded(text: str | None) -> str | None:
    return None if text is None else unquote(text)


class Message(msgspec.Struct, frozen=True, gc=False):
    """What came in on a topic. `retained`: the broker had kept it from before we subscribed.

    `duplicate`: it may have been delivered before. `expiry` is what the broker left of it, in
    seconds. All from `response_topic` on is of MQTT 5, and empty in 3.1.1. `subscriptions`
    are the numbers of those that it came for. `packet` and `connection` say what `acknowledge`
    answers.
    """

    topic: str
    payload: bytes
    retained: bool = False
    qos: int = 0
    duplicate: bool = False
    packet: int = 0
    connection: int = 0
    response_topic: str | None = None
    correlation: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()
    content_type: str | None = None
    expiry: int | None = None
    subscriptions: tuple[int, ...] = ()
