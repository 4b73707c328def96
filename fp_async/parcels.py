"""Values on their way between processes: alive where they were made, packed only to travel.

What a worker of a cluster makes stays as it is until somebody elsewhere needs it, and is unpacked
only when its classes can be found: pipelines' modules are loaded by the code that opens a parcel,
not by the engine that brings it. The memory of arrays travels beside the pickle, uncopied.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any

from fp_async import copies

Dumps = Callable[..., bytes]
_dumps: list[Dumps] = [copies.dumps]


def use(dumps: Dumps) -> None:
    """A pickler for what pickle refuses: functions and classes of `__main__`, lambdas, closures.

    An engine gives its own; called again it changes nothing.
    """
    _dumps[1:] = [dumps]


class SpoiltError(TypeError):
    """A value could not be packed when somebody else needed it."""


class Parcel:
    """One value. Two tasks in the same process share it, as they would share any argument.

    One that cannot be packed arrives all the same, and raises SpoiltError when it is opened: the
    engines would not know whose mistake it is.
    """

    __slots__ = ("_buffers", "_data", "_running", "_spoilt", "_value", "size")

    def __init__(self, value: Any) -> None:
        self._value = value
        self._running = copies.current.get()  # whose classes it may have
        self._data: bytes | None = None
        self._buffers: Sequence[Any] = ()
        self._spoilt = ""
        self.size: int = 0  # bytes, once it is packed

    def open(self) -> Any:
        """The value. Arrays can be written to, wherever they come from. Raises SpoiltError."""
        if self._spoilt:
            raise SpoiltError(self._spoilt)
        data = self._data  # another thread of the process may open it, too
        if data is not None:
            buffers = [_writable(buffer) for buffer in self._buffers]
            self._value = pickle.loads(data, buffers=buffers)  # noqa: S301 - our own tasks'
            self._data = None
        return self._value

    def packed(self, *, thoroughly: bool = False) -> Parcel:
        """A parcel that is ready to travel; `thoroughly`: with what this script itself defines.

        Raises SpoiltError.
        """
        if self._data is not None:
            return self
        try:
            return _closed(*self._pack(_dumps[-1:] if thoroughly else _dumps))
        except Exception as error:
            raise SpoiltError(_why(self._value, error)) from error

    def __reduce__(self) -> tuple[Any, ...]:
        data, buffers = self._data, self._buffers
        if self._spoilt:
            return _spoilt, (self._spoilt,)
        if data is None:
            try:
                data, buffers = self._pack(_dumps)
            except Exception as error:
                return _spoilt, (_why(self._value, error),)
        return _closed, (data, [pickle.PickleBuffer(buffer) for buffer in buffers])

    def _pack(self, picklers: Sequence[Dumps]) -> tuple[bytes, list[Any]]:
        token = copies.current.set(self._running)
        try:
            return _pack(self._value, picklers)
        finally:
            copies.current.reset(token)


def _closed(data: bytes, buffers: Sequence[Any]) -> Parcel:
    parcel = Parcel(None)
    parcel._data, parcel._buffers = data, buffers
    parcel.size = len(data) + sum(memoryview(buffer).nbytes for buffer in buffers)
    return parcel


def _spoilt(why: str) -> Parcel:
    parcel = Parcel(None)
    parcel._spoilt = why
    return parcel


def _why(value: Any, error: Exception) -> str:
    return f"its value ({type(value).__name__}) cannot leave its process: {error}"


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
