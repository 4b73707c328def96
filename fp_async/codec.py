r"""Inputs and results of jobs as bytes, and back, without pickle.

**Format, version 1.** As far as possible a document is JSON text, so that `mosquitto_sub` and a
look at the column show what is in it:

- `{"v":1,"plain":...}`: the value is JSON itself (finite floats, integers up to 64 bits).
- `{"v":1,"tagged":...}`: an object with the key `$` stands for something that JSON has not, as
  `{"$":"date","v":"2026-01-31"}`; a dict of the user's that has such a key, or a key that is no
  text, is `{"$":"dict","v":[[key, value], ...]}`. The tags are in `codec_values` (Python's own
  types, records) and `codec_arrays` and `codec_pandas`.
- Binary data of more than 1 KiB is not inflated to base64: the bytes are then `\x89FP1`, the length
  of the JSON text (8 bytes, big endian), the text, and the attachments one after the other. Their
  lengths are in `files`, and `"v": 0` in the text means the first of them.

**Trust.** Nothing that is read is imported by name, called or unpickled. Sizes and the nesting of
tagged data (100 levels; of plain data, what the JSON parser allows) are checked before they are
believed, and each attachment can be used only once. Structs, dataclasses, NamedTuples and Enum
members are stored as their qualified name and fields; they come back as the class only where the
caller says it is `known` (its `__init__` then runs), else as a `Record`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from fp_async import codec_arrays, codec_pandas, codec_reading
from fp_async.codec_reading import Known, Reader
from fp_async.codec_values import TOO_DEEP, Record, UnwritableError, Writer, is_plain
from fp_async.errors import EncodingError, describe

__all__ = ["Known", "Record", "decode", "decode_value", "encode", "encode_value"]

VERSION = 1
_TEXT = frozenset({str})
_MAGIC = b"\x89FP1"
_HEADER = struct.Struct(">4sQ")
_PLAIN, _END = b'{"v":1,"plain":', b"}"
_READERS = {**codec_reading.READERS, **codec_arrays.READERS, **codec_pandas.READERS}
_LIBRARIES = {**codec_arrays.LIBRARIES, **codec_pandas.LIBRARIES}


class _Document(msgspec.Struct, forbid_unknown_fields=True):
    v: int
    plain: Any | UnsetType = UNSET
    tagged: Any | UnsetType = UNSET
    files: list[int] = []


_to_json = msgspec.json.Encoder().encode
_from_json: Callable[[bytes | memoryview], _Document] = msgspec.json.Decoder(_Document).decode


def encode(values: Mapping[str, Any], *, limit: int | None = None, what: str = "result") -> bytes:
    """Named values (of nodes or inputs) as bytes of at most `limit`; `what` is for messages.

    Raises EncodingError, which names the node or input and the place inside its value.
    """
    named = values if type(values) is dict else dict(values)
    if not _TEXT.issuperset(map(type, named)):
        name = next(name for name in named if type(name) is not str)
        raise EncodingError(f"{what}: the name {name!r} is not a text")
    return encode_value(named, limit=limit, what=what)


def encode_value(value: Any, *, limit: int | None = None, what: str = "result") -> bytes:
    """As `encode`, for a value that need not be a mapping."""
    try:
        if is_plain(value):
            data = _PLAIN + _to_json(value) + _END
        else:
            data = _tagged(value, what, careful=False)
    except UnicodeEncodeError:  # a lone surrogate somewhere: look at each text
        data = _tagged(value, what, careful=True)
    if limit is not None and len(data) > limit:
        named = value if isinstance(value, dict) else {}
        raise EncodingError(_too_large(named, len(data), limit, what))
    return data


def _tagged(value: Any, what: str, *, careful: bool) -> bytes:
    writer = Writer(_LIBRARIES, careful=careful)
    try:
        tagged = writer.write(value)
    except UnwritableError as error:
        raise EncodingError(_unwritable(error, what)) from error.__cause__
    except RecursionError:
        raise EncodingError(f"{what}: {TOO_DEEP}") from None
    if not writer.blobs:
        return _to_json({"v": VERSION, "tagged": tagged})
    sizes = [len(blob) for blob in writer.blobs]
    text = _to_json({"v": VERSION, "tagged": tagged, "files": sizes})
    return b"".join([_HEADER.pack(_MAGIC, len(text)), text, *writer.blobs])


def _unwritable(error: UnwritableError, what: str) -> str:
    name, path = error.place()
    subject = f"{what} '{name}'" if name else what
    place = f"{path} is" if path not in ("", name) else "it is"
    ways = "" if error.lacks else f"; {_ways_out(what)}"
    return f"{subject} cannot be stored: {place} {error.reason}{ways}"


def _ways_out(what: str) -> str:
    kinds = "JSON types, bytes, a frame, a dataclass or a msgspec Struct"
    if what != "result":
        return f"give {kinds}, or write it to a file and give the path"
    return f"return {kinds}, write it to a file and return the path, or choose other final_vars"


def _too_large(values: Mapping[str, Any], size: int, limit: int, what: str) -> str:
    sizes = {name: len(encode_value(value)) for name, value in values.items()}
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:3]
    entries = ", ".join(f"'{name}' {sizes[name]:,} bytes" for name in largest)
    detail = f"; largest: {entries}" if entries else ""
    text = f"{what} too large: {size:,} bytes, limit {limit:,}{detail}"
    give, other = ("return", ", or choose other final_vars") if what == "result" else ("give", "")
    return f"{text}; write it to a file and {give} the path{other}"


def decode(data: bytes, known: Known = None) -> dict[str, Any]:
    """The named values that `encode` wrote; `known` says which classes may be made again.

    `known` is a mapping, or a function, from `module.QualifiedName` to a class. Raises
    EncodingError where the bytes are malformed, of another version or need a missing library.
    """
    values = decode_value(data, known)
    if not isinstance(values, dict) or not _TEXT.issuperset(map(type, values)):
        raise EncodingError(f"a mapping of names was expected, not {type(values).__name__}")
    return values


def decode_value(data: bytes, known: Known = None) -> Any:
    """As `decode`, for what `encode_value` wrote."""
    try:
        if data[:4] == _MAGIC:
            document, files = _split(memoryview(data))
        else:
            document, files = _from_json(data), []
        return _read(document, files, known)
    except EncodingError:
        raise
    except Exception as error:  # whatever a library says about hostile bytes
        raise EncodingError(f"the stored value cannot be read: {describe(error)}") from error


def _read(document: _Document, files: list[bytes], known: Known) -> Any:
    _check_version(document)
    if document.plain is not UNSET and document.tagged is UNSET and not document.files:
        return document.plain
    if document.tagged is UNSET or document.plain is not UNSET:
        raise EncodingError("the stored value has to be either plain or tagged")
    reader = Reader(files, _READERS, known)
    value = reader.read(document.tagged)
    if reader.unused:
        raise EncodingError("the stored value has attachments that nothing refers to")
    return value


def _check_version(document: _Document) -> None:
    if document.v != VERSION:
        raise EncodingError(
            f"the stored value has version {document.v} of the format, this program reads "
            f"{VERSION}: it was written by a newer fp-async"
        )


def _split(data: memoryview) -> tuple[_Document, list[bytes]]:
    """The document at the head of a container and its attachments."""
    _, length = _HEADER.unpack_from(data)
    at = _HEADER.size + length
    if at > len(data):
        raise EncodingError("the stored value is cut off")
    document = _from_json(data[_HEADER.size : at])
    if min(document.files, default=0) < 0 or at + sum(document.files) != len(data):
        raise EncodingError("the stored value is cut off: its attachments have other sizes")
    files = []
    for size in document.files:
        files.append(bytes(data[at : at + size]))
        at += size
    return document, files
