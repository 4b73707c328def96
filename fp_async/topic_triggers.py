"""Messages that make jobs: from a topic and its payload to the inputs of a pipeline. Pure.

A trigger says which topics, which pipeline, and how a message becomes inputs. A value of `inputs`
(and `key`) that begins with `$` is taken from the message; anything else is itself:

| source | value |
|---|---|
| `$payload`, `$payload.a.b`, `$payload.0` | the payload, or what stands at that path in it |
| `$topic`, `$topic.2` | the topic, or its level with that number, counted from 0 |
| `$user.site` | the user property `site` (MQTT 5) |

Without `inputs` the payload has to be an object, whose entries are the inputs.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from zlib import crc32

import msgspec
from msgspec import UNSET

from fp_async import messages
from fp_async.config import TopicTrigger
from fp_async.errors import MessageError, suggestion
from fp_async.jobs import identity, new_id
from fp_async.topics import Topics, matches
from fp_async.values.text import Numeral, Text, exact_json

RUN = "run"  # the name of the built-in trigger
_LONGEST_KEY = 120
_LONGEST_TOPIC = 65_535  # bytes, by the format of MQTT
_NUMBERS = 268_435_455  # the largest subscription identifier
_EXACT = 2.0**53  # below it a float tells each integer from the next
_DIGITS = 6  # of a number in a path


class Told(NamedTuple):
    """A message as a trigger sees it."""

    topic: str
    payload: bytes
    response_topic: str | None = None
    correlation: bytes | None = None
    user_properties: tuple[tuple[str, str], ...] = ()


class Wanted(NamedTuple):
    """What a message asks for: options of a job, and the identity of the job if it has one."""

    pipeline: str
    options: dict[str, Any]
    id: str
    unique: bool


def wanted(name: str, trigger: TopicTrigger, told: Told) -> Wanted:
    """What the message asks for. Raises MessageError, whose text says why it makes no job."""
    payload = _payload(trigger.payload, told.payload)
    options: dict[str, Any] = {"inputs": _inputs(trigger, payload, told)}
    for option in ("environment", "final_vars"):
        if (value := getattr(trigger, option)) is not None:
            options[option] = value
    if trigger.on is not None:
        options["on"] = _text("on", trigger.on, payload, told)
    key = None if trigger.key is None else _text("key", trigger.key, payload, told)
    return _wanted(name, trigger.pipeline, options, key, told)


def requested(pipeline: str, request: messages.RunRequest, told: Told) -> Wanted:
    """As `wanted`, for the built-in topic run/<pipeline>."""
    given = msgspec.structs.asdict(request)
    key = given.pop("key")
    options = {name: value for name, value in given.items() if value is not None}
    if "target" in options:
        options["on"] = options.pop("target")
    return _wanted(RUN, pipeline, options, None if key is UNSET else _named("key", key), told)


def _wanted(
    name: str, pipeline: str, options: dict[str, Any], key: str | None, told: Told
) -> Wanted:
    """The same key, or the same correlation data, on the same topic is the same job, for ever.

    A message with neither cannot be told from another one: it makes a job each time it comes.
    """
    if key is not None:
        if not 0 < len(key) <= _LONGEST_KEY:
            raise MessageError(f"key: {len(key)} characters, and it has 1 to {_LONGEST_KEY}")
        if not key.isprintable():
            raise MessageError(f"key: {key!r} has characters that cannot be printed")
        options["key"] = f"{name}:{key}"
        return Wanted(pipeline, options, identity("trigger", name, told.topic, "key", key), True)
    if told.response_topic and told.correlation:
        parts = (told.topic, "correlation", told.correlation.hex(), told.response_topic)
        return Wanted(pipeline, options, identity("trigger", name, *parts), True)
    return Wanted(pipeline, options, new_id(), False)


def told_key(trigger: str | None, key: str | None) -> str | None:
    """The key as the message had it."""
    return None if key is None else key.removeprefix(f"{trigger}:")


def _payload(kind: str, data: bytes) -> Any:
    if kind == "bytes":
        return data
    try:
        if kind == "text":
            return Text(data.decode())
        if kind == "msgpack":
            return msgspec.msgpack.decode(data)
        return exact_json(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise MessageError(f"the payload is {_problem(kind, data, error)}") from error


def _problem(kind: str, data: bytes, error: Exception) -> str:
    if kind == "json":
        from fp_async.values import mismatch  # an agent that is spoken to properly never loads it

        return f"no json: {mismatch.json_problem(data)}"
    if isinstance(error, UnicodeDecodeError):
        return f"no {kind}: no UTF-8 at byte {error.start}"
    return f"no {kind}: {error}"


def _inputs(trigger: TopicTrigger, payload: Any, told: Told) -> dict[str, Any]:
    if trigger.inputs is not None:
        return {name: _value(source, payload, told) for name, source in trigger.inputs.items()}
    if not isinstance(payload, dict) or not all(isinstance(name, str) for name in payload):
        raise MessageError(
            f"the payload is a {type(payload).__name__}, and without `inputs` it has to be an "
            "object of inputs"
        )
    return payload


def _value(source: Any, payload: Any, told: Told) -> Any:
    if not isinstance(source, str) or not source.startswith("$"):
        return source
    root, *path = source[1:].split(".")
    if root == "payload":
        return _at(payload, path, source)
    if root == "topic":
        return Text(_at(told.topic.split("/"), path, source) if path else told.topic)
    return Text(_at(dict(told.user_properties), [".".join(path)], source))


def _text(what: str, source: str, payload: Any, told: Told) -> str:
    """A value that identifies something: null would be one for all messages without it."""
    return _named(f"{what}: {source}", _value(source, payload, told))


def _named(what: str, value: Any) -> str:
    """A text, or a number as the text that it is in its shortest form: 1, 1.0 and "1" are one."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "null" if value is None else f"a {type(value).__name__}"
        raise MessageError(f"{what} is {kind}, and has to be a text or a number")
    if isinstance(value, Numeral):
        digits = "" if "e" in value.lower() else value.rstrip("0").rstrip(".")
        return str(digits or _named(what, float(value)))
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    return str(value)


def _at(value: Any, path: list[str], source: str) -> Any:
    for part in path:
        try:
            value = value[_index(part)] if isinstance(value, list) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            raise MessageError(f"the message has no {source}") from None
    return value


def _index(part: str) -> int:
    if not part.isdecimal() or len(part) > _DIGITS:
        raise ValueError(part)
    return int(part)


def problems(trigger: TopicTrigger, topics: Topics | None = None) -> Iterator[tuple[str, str]]:
    """(key, text) of what is wrong with a trigger's configuration that its types do not show."""
    if not _is_filter(trigger.topic):
        text = f"'{trigger.topic}' is no topic filter: + stands for a level, # for the rest"
        yield "topic", text
    elif trigger.topic.startswith("$share/"):
        yield "topic", f"'{trigger.topic}': shared subscriptions lose messages; write the topic"
    elif topics is not None and topics.is_ours(trigger.topic):
        yield "topic", f"'{trigger.topic}': what is said below {topics.prefix}/ triggers nothing"
    if trigger.inputs is None and trigger.payload in ("text", "bytes"):
        yield "payload", f"{trigger.payload} is no object of inputs: say `inputs: {{x: $payload}}`"
    sources = {f"inputs.{name}": source for name, source in (trigger.inputs or {}).items()}
    for key, source in {**sources, "key": trigger.key, "on": trigger.on}.items():
        if isinstance(source, str) and source.startswith("$") and (why := _wrong(source)):
            yield key, f"{source}: {why}"


def answerable(
    topics: Topics, allowed: Iterable[str] | None, heard: Iterable[str], topic: str
) -> bool:
    """Return whether a message may name this response topic: one of those that are `allowed`, and
    none that a trigger hears, or a client could start what it may not.
    """
    if not topics.may_answer(topic):
        return False
    if not topics.is_ours(topic) and any(matches(each, topic) for each in heard):
        return False  # below the prefix no trigger of a file hears anything
    return allowed is None or any(matches(each, topic) for each in allowed)


def is_filter(text: str) -> bool:
    """Return whether a text is a topic filter."""
    return _is_filter(text)


def _wrong(source: str) -> str | None:
    """What is wrong with a source."""
    root, dot, rest = source[1:].partition(".")
    if root not in ("payload", "topic", "user"):
        hint = suggestion(f"${root}", ("$payload", "$topic", "$user"))
        return f"no part of a message{hint}; as in $payload.a.b, $topic.2, $user.x"
    if root == "user" and not rest:
        return "say which user property: $user.x"
    if root == "topic" and dot and not (rest.isdecimal() and len(rest) <= _DIGITS):
        return "a level of the topic is a number: $topic.2"
    if root == "payload" and dot and not all(rest.split(".")):
        return "a name is missing between two dots: $payload.a.b"
    return None


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    if (
        not text
        or len(text.encode(errors="replace")) > _LONGEST_TOPIC
        or "\0" in text
        or "#" in levels[:-1]
    ):
        return False
    return all(level in ("+", "#") or not set("+#") & set(level) for level in levels)


class Rate:
    """At most so many a second, and a burst of as many at once. Clocks are passed in."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0)
        self._left = self._most
        self._at = float("-inf")

    def allows(self, now: float | None = None) -> bool:
        """Take one, if there is one; `now` is monotonic."""
        now = time.monotonic() if now is None else now
        self._left = min(self._left + (now - self._at) * self._per_second, self._most)
        self._at = now
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True


class Rates:
    """The rates of several triggers, by whatever names them; those without one take everything.

    Whether a message is taken is decided once, however often the store has it handled again.
    """

    def __init__(self, limits: Mapping[Any, float | None]) -> None:
        self._rates = {key: Rate(limit) for key, limit in limits.items() if limit is not None}
        self._decided: dict[tuple[Hashable, int], tuple[object, bool]] = {}

    def allows(self, key: Hashable, message: object) -> bool:
        """Whether this trigger takes this very message."""
        rate = self._rates.get(key)
        if rate is None:
            return True
        which = key, id(message)  # which is kept: no other can have its id
        if which not in self._decided:
            self._decided[which] = message, rate.allows()
        return self._decided[which][1]

    def settle(self) -> None:
        """All that was asked of is in the store."""
        self._decided.clear()


def covers(wider: str, narrower: str) -> bool:
    """Whether a filter means every topic that another one means."""
    if narrower.startswith("$") and not wider.startswith("$"):
        return False
    levels = narrower.split("/")
    wanted = wider.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(levels) or levels[index] == "#" or part not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)


def widest(filters: Iterable[str]) -> list[str]:
    """The filters without those that another one covers.

    Brokers send a message once for every subscription that means it (Mosquitto and rumqttd do, and
    MQTT allows it); see `Filters` for those that overlap in part.
    """
    each = list(dict.fromkeys(filters))
    return [one for one in each if not any(o != one and covers(o, one) for o in each)]


class Filters:
    """What to subscribe to for the topics that triggers want, and which copy of a message counts.

    `numbers` are subscription identifiers (MQTT 5, section 3.3.2.3.8). They depend on the filter
    alone: what a broker has kept since before a change of the configuration has those of then.
    """

    def __init__(self, wanted: Iterable[str]) -> None:
        topics = list(wanted)
        self.numbers: dict[str, int] = {
            each: crc32(each.encode()) % _NUMBERS + 1 for each in widest(topics)
        }
        self._known = set(self.numbers.values())
        self._number = {topic: self._first(topic) for topic in topics}

    def _first(self, topic: str) -> int:
        """The number of the subscription whose copies are for those who want this."""
        found = (n for each, n in self.numbers.items() if each == topic or covers(each, topic))
        return next(found)

    def mean(self, wanted: str, topic: str, numbers: Sequence[int]) -> bool:
        """Whether a message is for those who want this, and no copy for other subscriptions."""
        if not matches(wanted, topic):
            return False
        known = self._known.intersection(numbers)
        return not known or self._number[wanted] in known
