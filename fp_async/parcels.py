"""Values on their way between processes: alive where they were made, packed only to travel.

What a worker of a cluster makes stays as it is until somebody elsewhere needs it, and is unpacked
only when its classes can be found: pipelines' modules are loaded by the code that opens a parcel,
not by the engine that brings it. The memory of arrays travels beside the pickle, uncopied.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

Dumps = Callable[..., bytes]
_dumps: list[Dumps] = [pickle.dumps]


def use(dumps: Dumps) -> None:
    """A pickler for what pickle refuses: functions and classes of `__main__`, lambdas, closures.

    An engine gives its own; called again it changes nothing.
    """
    _dumps[1:] = [dumps]


class Parcel:
    """One value. Two tasks in the same process share it, as they would share any argument."""

    __slots__ = ("_buffers", "_data", "_value", "size")

    def __init__(self, value: Any) -> None:
        self._value = value
        self._data: bytes | None = None
        self._buffers: Sequence[Any] = ()
        self.size = 0  # bytes, once it is packed

    def open(self) -> Any:
        """The value. Arrays can be written to, wherever they come from."""
        data = self._data  # another thread of the process may open it, too
        if data is not None:
            buffers = [_writable(buffer) for buffer in self._buffers]
            self._value = pickle.loads(data, buffers=buffers)  # noqa: S301 - our own tasks'
            self._data = None
        return self._value

    def packed(self) -> Parcel:
        """A parcel that is ready to travel. Raises what pickling the value raises."""
        if self._data is not None:
            return self
        return _closed(*_pack(self._value, _dumps[-1:]))

    def __reduce__(self) -> tuple[Any, ...]:
        data, buffers = self._data, self._buffers
        if data is None:
            data, buffers = _pack(self._value, _dumps)
        return _closed, (data, [pickle.PickleBuffer(buffer) for buffer in buffers])


def _closed(data: bytes, buffers: Sequence[Any]) -> Parcel:
    parcel = Parcel(None)
    parcel._data, parcel._buffers = data, buffers
    parcel.size = len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)
    return parcel


def _pack(value: Any, picklers: Sequence[Dumps]) -> tuple[bytes, list[Any]]:
    """With the first pickler that can, else the error of the last."""
    buffers: list[Any] = []
    try:
        return picklers[0](value, protocol=5, buffer_callback=buffers.append), buffers
    except Exception:
        if len(picklers) == 1:
            raise
        return _pack(value, picklers[1:])


def _writable(buffer: Any) -> Any:
    view = memoryview(buffer)
    return bytearray(view) if view.readonly else view
