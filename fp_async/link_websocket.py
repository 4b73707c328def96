"""The client's side of a websocket (RFC 6455) as bytes: the handshake, and frames both ways."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Callable

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CONTINUATION, BINARY, CLOSE, PING, PONG = 0, 2, 8, 9, 10


def handshake(host: str, port: int, path: str) -> tuple[bytes, Callable[[bytes], None]]:
    """The request, and a check of the head of the answer that raises OSError."""
    key = base64.b64encode(os.urandom(16))
    proof = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
    name = f"[{host}]" if ":" in host else host
    request = (
        f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key.decode()}\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    )

    def check(head: bytes) -> None:
        status, *lines = head.split(b"\r\n")
        fields = dict(line.lower().split(b":", 1) for line in lines if b":" in line)
        if b" 101" not in status or fields.get(b"upgrade", b"").strip() != b"websocket":
            raise OSError(f"no websocket at '{path}': {status.decode(errors='replace')[:100]}")
        if fields.get(b"sec-websocket-accept", b"").strip() != proof.lower():
            raise OSError("no websocket: the answer is not to our request")

    return request.encode(), check


def frame(data: bytes | bytearray, kind: int = BINARY) -> bytes:
    """One masked frame with all of `data`."""
    size = len(data)
    head = bytes((0x80 | kind,))
    if size < 126:
        head += bytes((0x80 | size,))
    elif size < 65_536:
        head += bytes((0x80 | 126,)) + size.to_bytes(2, "big")
    else:
        head += bytes((0x80 | 127,)) + size.to_bytes(8, "big")
    mask = os.urandom(4)
    return head + mask + _masked(data, mask)


def _masked(data: bytes | bytearray, mask: bytes) -> bytes:
    size = len(data)
    pattern = (mask * (size // 4 + 1))[:size]
    mixed = int.from_bytes(data, "big") ^ int.from_bytes(pattern, "big")
    return mixed.to_bytes(size, "big")


class Frames:
    """Reads the server's frames, however the bytes are cut. `closed` once it said so."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._replies = bytearray()
        self.closed: bool = False

    def feed(self, raw: bytes) -> bytes:
        """What is in the frames that are complete by now. Raises OSError for what is none."""
        self._buffer += raw
        data = bytearray()
        while not self.closed and (bounds := self._bounds()) is not None:
            start, end = bounds
            kind, payload = self._buffer[0] & 15, bytes(self._buffer[start:end])
            del self._buffer[:end]
            data += self._take(kind, payload)
        return bytes(data)

    def replies(self) -> bytes:
        """What the frames ask to be sent back."""
        replies = bytes(self._replies)
        self._replies.clear()
        return replies

    def _bounds(self) -> tuple[int, int] | None:
        """Where the payload of the first frame is, once all of it is there."""
        buffer = self._buffer
        if len(buffer) < 2:
            return None
        if buffer[1] & 0x80:
            raise OSError("the server sent a masked frame")
        size, start = buffer[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(buffer[2:start], "big")
        end = start + size
        return (start, end) if len(buffer) >= end and len(buffer) >= start else None

    def _take(self, kind: int, payload: bytes) -> bytes:
        if kind in {BINARY, CONTINUATION}:
            return payload
        if kind == PING:
            self._replies += frame(payload, PONG)
        elif kind == CLOSE:
            self._replies += frame(payload[:2], CLOSE)
            self.closed = True
        elif kind != PONG:
            raise OSError(f"the server sent a websocket frame of kind {kind}")
        return b""
