"""Data that does not fit a type: the place and the words are ours, whatever msgspec's release says."""

from __future__ import annotations

import enum
from typing import Annotated, Any, Literal

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from fp_async import config, messages
from fp_async.errors import UsageError
from fp_async.values import mismatch


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1, le=9)] = 1
    name: Annotated[str, Meta(pattern="^[a-z]+$", description="a word of small letters")] = "a"


class Cat(msgspec.Struct, tag=True, tag_field="type"):
    lives: int


class Dog(msgspec.Struct, tag=True, tag_field="type"):
    barks: bool = False


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    needed: int
    share: Annotated[float, Meta(gt=0, lt=1)] | None = None
    inner: Inner | None = None
    either: str | Inner | None = None
    many: dict[str, Inner | None] = {}
    items: Annotated[list[Inner], Meta(max_length=2)] = []
    level: Literal["low", "high"] = "low"
    colour: Colour = Colour.RED
    pair: tuple[int, str] | None = None
    pets: list[Cat | Dog] = []
    names: dict[Annotated[str, Meta(max_length=3)], int] = {}
    anything: Any = None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected a mapping, got a list"),
        (None, "expected a mapping, got null"),
        ({}, "the key 'needed' is missing"),
        ({"needed": "x"}, "needed: expected int, got str"),
        ({"needed": True}, "needed: expected int, got bool"),
        ({"needed": None}, "needed: expected int, got null"),
        ({"needed": 1, "shar": 1}, "shar: unknown key; did you mean 'share'?"),
        ({"needed": 1, "share": "x"}, "share: expected float, got str"),
        ({"needed": 1, "share": 1.0}, "share: expected float < 1"),
        ({"needed": 1, "share": 0}, "share: expected float > 0"),
        ({"needed": 1, "inner": 5}, "inner: expected a mapping, got int"),
        ({"needed": 1, "inner": {"size": 0}}, "inner.size: expected int >= 1"),
        ({"needed": 1, "inner": {"size": 10**30}}, "inner.size: expected int <= 9"),
        ({"needed": 1, "inner": {"name": "A"}}, "inner.name: 'A' is not a word of small letters"),
        ({"needed": 1, "inner": {"nmae": "a"}}, "inner.nmae: unknown key; did you mean 'name'?"),
        ({"needed": 1, "either": 5}, "either: expected str or a mapping, got int"),
        ({"needed": 1, "either": []}, "either: expected str or a mapping, got a list"),
        ({"needed": 1, "either": {"size": "x"}}, "either.size: expected int, got str"),
        ({"needed": 1, "many": {"a": None, "b": {"size": 0}}}, "many.b.size: expected int >= 1"),
        ({"needed": 1, "items": [{}, 5]}, "items.1: expected a mapping, got int"),
        ({"needed": 1, "items": [{}] * 3}, "items: expected at most 2 items, got 3"),
        ({"needed": 1, "level": "hihg"}, "level: unknown value 'hihg'; did you mean 'high'?"),
        ({"needed": 1, "level": []}, "level: expected str, got a list"),
        ({"needed": 1, "colour": "blue"}, "colour: unknown value 'blue'; valid: red, green"),
        ({"needed": 1, "pair": [1]}, "pair: expected 2 items, got 1"),
        ({"needed": 1, "pair": [1, 2]}, "pair.1: expected str, got int"),
        (
            {"needed": 1, "pets": [{"type": "Bird"}]},
            "pets.0.type: unknown value 'Bird'; valid: Cat",
        ),
        ({"needed": 1, "pets": [{}]}, "pets.0: the key 'type' is missing"),
        ({"needed": 1, "pets": [{"type": "Cat"}]}, "pets.0: the key 'lives' is missing"),
        (
            {"needed": 1, "names": {"long": 1}},
            "names.long: as a key: expected at most 3 characters",
        ),
        ({"needed": 1, "names": {"a": "x"}}, "names.a: expected int, got str"),
    ],
)
def test_the_place_and_the_words(data, words):
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(data, Outer)
    assert str(mismatch.explain(data, Outer)).startswith(words)
    with pytest.raises(UsageError, match="^settings: "):
        mismatch.converted(data, Outer, "settings")


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "empty"),
        (b'{"needed": ', "truncated"),
        (b'{"needed": 1,}', "malformed at line 1, column 1"),
        (b"{\n'needed': 1}", "malformed at line 2, column 1"),
        (b'{"needed": "\xff"}', "no UTF-8 at byte 12"),
        (b"[" * 1_000_000 + b"]" * 1_000_000, "nested too deeply"),
        (b'{"needed": NaN}', "NaN is no finite number"),
        (b'{"needed": 1e999}', "1e999 is no finite number"),
        (b'{"needed": ' + b"9" * 5000 + b"}", "999999999999 is no finite number"),
        (b'{"needed": "\\ud800"}', "half a surrogate pair"),
    ],
)
def test_what_is_no_json(payload, words):
    with pytest.raises(mismatch.UNREADABLE):
        msgspec.json.decode(payload)
    assert str(mismatch.explain_json(payload, Outer)).startswith(f"not valid JSON: {words}")


def test_a_wrong_value_is_shown_in_part():
    wrong = mismatch.explain({"needed": 1, "level": "x" * 10_000}, Outer)
    assert len(str(wrong)) < 150


# What msgspec refuses is explained, and what it takes is not: for every type that is read from files,
# from messages and from callers, with data that is wrong in one place or in several.

TYPES = [
    Outer,
    *config.FILES.values(),
    config.RunSettings,
    *messages.Do.__args__,
    *messages.Report.__args__,
    messages.AgentState,
    messages.RunRequest,
]
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, 1, 1.0, 0.5, -1, 30]),
    st.floats(),
    st.text(max_size=4),
    st.sampled_from(["a", "1", "true", "interval", "sqlite", "ready", "x" * 300]),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


def data_for(kind):
    """Data that nearly fits: the keys and the shapes are mostly right, the values often are not."""
    origin = mismatch._walk_of(mismatch._bare(kind)[0])
    inner = mismatch._bare(kind)[0]
    if origin is mismatch._of_union:
        return st.one_of(*map(data_for, inner.__args__))
    if origin is mismatch._of_struct:
        return st.deferred(lambda: struct_data(inner)) | SCALARS
    if origin is mismatch._of_mapping and inner is not dict:
        return st.dictionaries(data_for(inner.__args__[0]), data_for(inner.__args__[1]), max_size=2)
    if origin is mismatch._of_sequence and getattr(inner, "__args__", None):
        return st.lists(data_for(inner.__args__[0]), max_size=3)
    if inner in (int, float, str, bool):
        return st.one_of(st.from_type(inner), SCALARS)
    return st.sampled_from(mismatch._choices(inner) or [None]) | PLAIN


def struct_data(kind):
    fields = {field.encode_name: data_for(field.type) for field in msgspec.structs.fields(kind)}
    settings_of = kind.__struct_config__
    if settings_of.tag_field:
        fields[settings_of.tag_field] = st.just(settings_of.tag) | SCALARS
    needed = {f.encode_name for f in msgspec.structs.fields(kind) if f.required}
    several = st.sets(st.sampled_from(sorted(fields)), max_size=4).flatmap(
        lambda names: st.fixed_dictionaries({n: fields[n] for n in sorted(names | needed)})
    )
    return several | st.dictionaries(st.text(max_size=5), PLAIN, max_size=2)


def keys_are_text(data):
    if isinstance(data, dict):
        return all(isinstance(key, str) and keys_are_text(v) for key, v in data.items())
    return all(map(keys_are_text, data)) if isinstance(data, list) else True


def without_raw(kind):
    return not any("Raw" in str(field.type) for field in msgspec.structs.fields(kind))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_refused_is_explained_and_nothing_else(kind, strict, data):
    value = data.draw(struct_data(kind).filter(keys_are_text))
    found = mismatch.find(value, kind, strict=strict)
    if without_raw(kind):
        try:
            msgspec.convert(value, kind, strict=strict)
        except msgspec.ValidationError:
            assert found is not None
        else:
            assert found is None
