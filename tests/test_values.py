"""Values of every type at every door; docs/values.md has the table."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import typing
from collections.abc import Iterable, Sequence
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from fleet import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from fp_async import InputError, Project, UnknownNameError, UsageError, orders
from fp_async.config import TopicTrigger
from fp_async.topic_triggers import Told, wanted
from fp_async.values.coerce import converted, guided
from fp_async.values.misfit import MisfitError
from fp_async.values.text import Quoted, Text, parse_assignments

np = pytest.importorskip("numpy")
pd = pytest.importorskip("pandas")
pydantic = pytest.importorskip("pydantic")
from values_kinds import NAMES, Color, Place, _told  # noqa: E402
from values_kit import ROWS, examples  # noqa: E402

CHAOS = os.environ.get("FP_CHAOS") == "1"


class Priced(NamedTuple):
    price: Decimal


class Open(pydantic.BaseModel):
    model_config = {"extra": "allow"}
    host: str


def same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


def test_the_table_has_at_least_thirty_types():
    assert len(ROWS) >= 30


@pytest.mark.parametrize("name", ROWS)
def test_a_text_is_read_by_the_annotation(name):
    row = ROWS[name]
    assert same(converted(Text(row.text), row.kind), row.of_text)
    if row.no_text:
        with pytest.raises(MisfitError):
            converted(Text(row.no_text), row.kind)


@pytest.mark.parametrize("name", ROWS)
def test_data_keeps_its_type(name):
    row = ROWS[name]
    assert same(converted(row.data, row.kind), row.of_data)
    assert same(converted(row.of_data, row.kind), row.of_data), "what fits stays"
    if row.no_data:
        with pytest.raises(MisfitError):
            converted(eval(row.no_data, NAMES), row.kind)


@pytest.mark.parametrize("name", ROWS)
def test_a_type_within_others(name):
    row = ROWS[name]
    kind = type(None) if row.kind is None else row.kind
    assert same(converted(row.data, typing.Optional[kind]), row.of_data)  # noqa: UP045
    assert converted(None, typing.Optional[kind]) is None  # noqa: UP045
    assert same(converted([row.data], list[kind])[0], row.of_data)
    assert same(converted({"k": row.data}, dict[str, kind])["k"], row.of_data)
    assert same(converted([row.data], tuple[kind, ...])[0], row.of_data)
    for outer in (list[kind], tuple[kind, ...], dict[str, kind], typing.Optional[list[kind]]):  # noqa: UP045
        with pytest.raises(MisfitError):
            converted("abc", outer)
    if kind is not str:
        text = converted(Text(f"[{row.text}]"), list[kind]) if "," not in row.text else None
        assert text is None or same(text[0], row.of_text)


def test_a2_texts_are_read_letter_by_letter_nowhere():
    assert converted(Text("[a, b]"), list[str] | None) == ["a", "b"]
    for kind in (list[str], Sequence[str], Iterable[str], set[str], list[str] | None, list | None):
        with pytest.raises(MisfitError):
            converted("abc", kind)


def test_c2_c5_c10_what_the_command_line_could_not_give():
    assert converted(Text("1"), int | pd.Series) == 1
    assert converted(Text("BLUE"), Color) is Color.BLUE
    assert converted(Text("+7"), int) == 7
    assert converted(Quoted(""), str | None) == ""
    assert converted(Text(""), int | None) is None
    assert converted(Quoted("7"), str | int) == "7"
    assert converted("7", str | int) == "7"


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        ({"hots": "a"}, Place, "x.hots: unknown key; did you mean 'host'? valid: host, port"),
        ({"host": "a", "port": "5"}, Place, "x.port: expected int, got str '5'"),
        ({}, Place, "x.host: is missing (str)"),
        ([{"host": 1}], list[Place], "x[0].host: expected str, got int 1"),
        ({"host": "a", "port": "5"}, Place | None, "x.port: expected int, got str '5'"),
        (np.bool_(True), bool, "x: expected bool, got numpy.bool"),
        (None, int, "x: expected int, got None"),
        ([1, "2"], list[int], "x[1]: expected int, got str '2'"),
    ],
)
def test_c11_c12_h16_messages_name_the_place(value, kind, says):
    with pytest.raises(MisfitError) as raised:
        converted(value, kind)
    assert raised.value.told("x") == says


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("name=O'Brien,count=3", {"name": "O'Brien", "count": "3"}),
        ("a='x, y',b=[1, (2, 3)]", {"a": "x, y", "b": "[1, (2, 3)]"}),
        ("smile=:),n=1", {"smile": ":)", "n": "1"}),
        ("l=[O'Brien, 'a, b']", {"l": "[O'Brien, 'a, b']"}),
        ('x="2"', {"x": "2"}),
    ],
)
def test_a3_quotes_count_where_a_value_begins(text, values):
    assert parse_assignments(text, "--inputs") == values


@pytest.mark.parametrize("text", ["name='abc,n=3", "f=g(x,n=2", "r=[0, 1),n=2"])
def test_a3_what_is_not_closed_is_refused(text):
    with pytest.raises(UsageError, match="--inputs: cannot read"):
        parse_assignments(text, "--inputs")


def test_c10_json_with_a_mark_at_its_beginning(tmp_path):
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / "in.json"
        path.write_bytes('{"n": "ä"}'.encode(encoding))
        assert parse_assignments(f"@{path}", "--inputs") == {"n": "ä"}


def test_without_an_annotation_the_configured_value_guides_and_refuses_nothing():
    for text, example, value in (
        *(("2.5", 2, 2.5), ("3", 2, 3), ("many", 2, "many"), ("no", True, False)),
        *(("5", "a", "5"), ("2", 1.5, 2.0), ("[a]", [1], ["a"]), ("7", None, 7)),
    ):
        assert same(guided(Text(text), example), value)


_SCALARS = {
    int: st.integers(),
    float: st.floats(allow_nan=False),
    bool: st.booleans(),
    str: st.text(st.characters(codec="utf-8", exclude_characters="'\"")).map(str.strip),
    date: st.dates(),
    datetime: st.datetimes(),
    timedelta: st.timedeltas(),
    Decimal: st.decimals(allow_nan=False),
    UUID: st.uuids(),
    Color: st.sampled_from(Color),
}


def written(value: Any) -> str:
    return value.name if isinstance(value, Color) else str(value)


@settings(max_examples=10_000 if CHAOS else 300, deadline=None)
@given(st.data())
def test_what_is_written_is_read_again(data):
    kind = data.draw(st.sampled_from(list(_SCALARS)))
    value = data.draw(_SCALARS[kind])
    assert same(converted(Text(written(value)), kind), value)
    assert same(converted(value, typing.Optional[kind]), value)  # noqa: UP045
    assert converted([value], set[kind]) == {value}
    if kind is not str:
        with pytest.raises(MisfitError):
            converted([1], kind)
        assert same(converted(Quoted(written(value)), typing.Union[kind, str]), written(value))  # noqa: UP007


def test_ten_thousand_examples_of_types_within_types():
    """Of which test_value_doors.py sends a hundredth through real processes."""
    kinds: dict[str, Any] = {}
    for each in examples(seeded(), 10_000):
        kind = kinds.setdefault(each.kind, eval(each.kind, NAMES))
        given = Text(each.given) if each.is_text else each.given
        if each.fits:
            assert _told(converted(given, kind)) == _told(each.value), each
        else:
            with pytest.raises(MisfitError):
                print(each, converted(given, kind))


def test_a_text_keeps_the_digits_of_a_decimal_within_others():
    digits = "0.10000000000000000000001"
    of_digits = Decimal(digits)
    for text, kind, value in (
        (f"[{digits}]", list[Decimal], [of_digits]),
        (f'{{"a": {digits}}}', dict[str, Decimal], {"a": of_digits}),
        (f'{{"a": [{digits}, 1.10]}}', dict[str, Any], {"a": [0.1, 1.1]}),
        (f'{{"host": "a", "more": {digits}}}', Open, Open(host="a", more=0.1)),
        (f'{{"price": {digits}}}', Priced, Priced(of_digits)),
    ):
        assert converted(Text(text), kind) == value, text


# Through the doors ------------------------------------------------------------------------------

KINDS = """
import enum
from collections import deque
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from uuid import UUID

class Color(enum.Enum):
    RED = "r"
    BLUE = "b"

"""
DOORS = {
    *("str", "int", "float", "bool", "Decimal", "Fraction", "bytes", "UUID", "Path", "datetime"),
    *("date", "time", "timedelta", "Color", "list[str]", "list[int]", "set[int]"),
    *("tuple[int, ...]", "dict[str, int]", "list[str] | None", "str | int", "float | int"),
}


@pytest.fixture
def doors(make_project):
    """A pipeline with an input of each type, whose nodes say what they were given."""
    names = {name: f"v{number}" for number, name in enumerate(sorted(DOORS))}
    source = KINDS + "\n".join(
        f"def n{v[1:]}({v}: {kind}) -> str:\n    return repr({v})" for kind, v in names.items()
    )
    return make_project(flow=source), names


def expected(names: dict[str, str], field: str) -> dict[str, str]:
    return {f"n{v[1:]}": repr(getattr(ROWS[kind], field)) for kind, v in names.items()}


def plainly(result: dict[str, str], project: Project) -> dict[str, str]:
    """Without the project's folder, which an application puts before relative paths."""
    return {name: text.replace(f"{project.root}/", "") for name, text in result.items()}


def command(project: Project, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fp_async", *arguments],
        cwd=project.root,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **more,
    )


def test_every_type_through_the_command(doors):
    project, names = doors
    texts = [f"{v}={ROWS[kind].text}" for kind, v in names.items()]
    options = [part for text in texts for part in ("--inputs", text)]
    done = command(project, "run", "flow", "--output", "json", "--quiet", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected(names, "of_text")

    data = {v: ROWS[kind].data for kind, v in names.items()}
    done = command(
        project,
        "run",
        "flow",
        "--output",
        "json",
        "--quiet",
        "--inputs",
        "@-",
        input=json.dumps(data),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected(names, "of_data")


async def test_every_type_through_jobs_python_and_messages(doors):
    project, names = doors
    data = {v: ROWS[kind].data for kind, v in names.items()}
    texts = {v: Text(ROWS[kind].text) for kind, v in names.items()}
    trigger = TopicTrigger(topic="a/#", pipeline="flow", payload="json")
    message = wanted("t", trigger, Told("a/b", json.dumps(data).encode())).options
    async with Project(project.root, worker=True) as opened:
        result = await opened.run("flow", data)
        assert plainly(result, project) == expected(names, "of_data")
        for inputs, field in (
            (data, "of_data"),
            (texts, "of_text"),
            (message["inputs"], "of_data"),
        ):
            id = await opened.add_job("flow", inputs=inputs)
            result = await opened.get_result(id, wait=60)
            assert plainly(result, project) == expected(names, field)


async def test_what_does_not_fit_is_refused_with_the_same_words(make_project):
    project = make_project(flow="def a(n: int) -> int:\n    return n\n")
    says = "n: expected int, got str 'x'"
    for call in (
        project.run("flow", {"n": "x"}),
        project.add_job("flow", inputs={"n": "x"}),
        project.schedule("flow", "interval", seconds=30, inputs={"n": "x"}),
    ):
        with pytest.raises(InputError, match=says):
            await call
    trigger = TopicTrigger(topic="a", pipeline="flow", payload="text", inputs={"n": "$payload"})
    options = wanted("t", trigger, Told("a", b"x")).options
    with pytest.raises(InputError, match=says):
        await project.add_job("flow", **options)
    assert await project.list_jobs() == []


# Parameters and configuration -------------------------------------------------------------------

PARAMS = """
import enum
from pathlib import Path
from fp_async import load_params
from hamilton.function_modifiers import config, parameterize
PARAMS = load_params(__file__)

class Color(enum.Enum):
    RED = "r"

@parameterize(**PARAMS.scaled)
def scaled(count: int, factor: int) -> int:
    return count * factor

def flagged(count: int, flag: bool = PARAMS.flagged.flag) -> bool:
    return flag

def folder(where: Path = PARAMS.folder.where, color: Color = PARAMS.folder.color) -> str:
    return f"{type(where).__name__} {where.name} {color is Color.RED}"

def body(count: int) -> float:
    return count * PARAMS.body.k

def unread(count: int, k: int = 1) -> int:
    return k

@config.when(version="2")
def branch__two(count: int) -> str:
    return "two"

@config.when(version="1")
def branch__one(count: int) -> str:
    return "one"
"""
CONF = """
params:
  flow: {scaled: {factor: 2}, flagged: {flag: true}, folder: {where: a/data, color: RED}, body: {k: 2}}
run: {flow: {dev: {inputs: {count: 3}, config: {version: "1"}}}}
"""


@pytest.fixture
def project(make_project):
    return make_project(CONF, flow=PARAMS)


async def test_a1_parameters_have_the_types_of_their_annotations(project):
    result = await project.run("flow")
    assert result["folder"] == "PosixPath data True"
    told = await project.run(
        "flow", params={"flagged": {"flag": False}, "folder": {"where": "b/c"}}
    )
    assert (told["flagged"], told["folder"]) == (False, "PosixPath c True")


@pytest.mark.parametrize(
    ("param", "says"),
    [
        ({"scaled": {"factor": "2.5"}}, "param scaled.factor: expected int, got '2.5'"),
        ({"flagged": {"flag": "no"}}, "param flagged.flag: expected bool, got 'no'"),
        ({"scaled": {"factor": [1]}}, "param scaled.factor: expected int, got list"),
    ],
)
async def test_a1_parameters_that_do_not_fit_are_refused_at_every_door(project, param, says):
    for call in (
        project.run("flow", params=param),
        project.add_job("flow", params=param),
        project.schedule("flow", "interval", seconds=30, params=param),
    ):
        with pytest.raises(InputError, match=re.escape(says)):
            await call


def test_a1_a8_the_command(project):
    for arguments, code, says in (
        ("--param scaled.factor=2.5", 2, {"error: param scaled.factor: expected int, got '2.5'"}),
        (
            "--param flagged.flag=no --param body.k=2.5 --config version=2",
            0,
            {'"flagged": false', '"body": 7.5', '"branch": "two"'},
        ),
        ("--config 'version=\"2\"'", 0, {'"branch": "two"'}),
    ):
        line = f"{sys.executable} -m fp_async run flow -q --output json {arguments}"
        done = subprocess.run(
            ["bash", "-c", line], cwd=project.root, capture_output=True, text=True, check=False
        )
        told = done.stdout + done.stderr
        assert (done.returncode, {each for each in says if each in told}) == (code, says), done


def test_a1_a_configured_parameter_that_does_not_fit_is_an_error_of_check(make_project):
    project = make_project(CONF.replace("factor: 2", "factor: abc"), flow=PARAMS)
    with pytest.raises(InputError, match=r"param scaled\.factor: expected int, got 'abc'"):
        asyncio.run(project.run("flow"))
    errors = [error.message for error in project.check().errors]
    assert "param scaled.factor: expected int, got 'abc'" in errors


async def test_a4_h11_parameters_that_nothing_reads(project, make_project):
    assert (await project.run("flow", params={"body": {"k": 5}}))["body"] == 15
    with pytest.raises(InputError, match=r"param unread\.k: nothing reads it; write @parameterize"):
        await project.run("flow", params={"unread": {"k": 5}})
    with pytest.raises(UnknownNameError, match="did you mean 'factor'"):
        await project.run("flow", params={"scaled": {"facto": 5}})
    plain = make_project(
        "params: {flow: {a: {k: 2}}}", flow="def a(k: int = 1) -> int:\n    return k\n"
    )
    with pytest.raises(InputError, match=r"PARAMS = load_params\(__file__\)"):
        await plain.run("flow", params={"a": {"k": 3}})
    (warning,) = plain.check().warnings
    assert (warning.where, "load_params" in warning.message) == ("params.flow.a.k", True)


async def test_a8_a_text_that_is_compared_with_both(make_project):
    source = PARAMS + "@config.when(version=2)\ndef more(count: int) -> int:\n    return 1\n"
    project = make_project(CONF, flow=source)
    with pytest.raises(InputError, match="config version: the pipeline compares it with"):
        project.flow("flow", config={"version": Text("2")})
    assert project.flow("flow", config={"version": Quoted("2")}).graph.config == {"version": "2"}


def test_a8_check_warns_of_a_value_that_no_condition_has(make_project):
    project = make_project(CONF.replace('version: "1"', "version: 2"), flow=PARAMS)
    (warning,) = project.check().warnings
    assert warning.where == "run.flow.dev.config.version"
    assert (
        "no @config.when knows 2; they know '2', '1' (a text is written in quotes"
        in warning.message
    )


async def test_b9_a_variable_is_text_where_a_text_is_wanted(make_project, monkeypatch):
    monkeypatch.setenv("PW", "12345")
    project = make_project(
        """
        run:
          flow:
            dev:
              inputs:
                password: ${PW}
                n: "${PW}"
                u: ${PW}
        """,
        flow="""
        def a(password: str, n: int, u: int | str) -> str:
            return repr((password, n, u))
        """,
    )
    assert await project.run("flow") == {"a": "('12345', 12345, 12345)"}


async def test_c12_none_for_an_int(make_project):
    project = make_project(
        flow="def a(n: int) -> int:\n    return n\ndef b(m: int = None) -> bool:\n    return m is None\n"
    )
    with pytest.raises(InputError, match="n: expected int, got None"):
        await project.run("flow", {"n": None})
    assert await project.run("flow", {"m": None}, ["b"]) == {"b": True}


async def test_d10_strings_in_python_become_what_data_has_no_form_for(make_project):
    project = make_project(
        flow="from pathlib import Path\ndef a(folder: Path) -> str:\n    return folder.name\n"
    )
    assert await project.run("flow", {"folder": "data"}) == {"a": "data"}


def test_a1_check_tells_of_a_triggers_value_that_does_not_fit(make_project):
    project = make_project(flow="def a(n: int) -> int:\n    return n\n")
    (project.root / "conf").mkdir(exist_ok=True)
    (project.root / "conf/mqtt.yml").write_text(
        'triggers: {t: {topic: x, pipeline: flow, inputs: {n: "3"}}}\n'
    )
    errors = [error.message for error in project.check().errors]
    assert any("inputs.n: expected int, got str '3'" in error for error in errors), errors


VARIANTS = """
    from hamilton.function_modifiers import ResolveAt, config, parameterize, resolve, source, value
    @config.when(rounding="bank")
    def quantum__bank() -> str:
        return "bank"
    @config.when(rounding="shop")
    def quantum__shop(places: int = 2) -> str:
        return f"shop{places}"
    @config.when_in(region=["eu", "us"])
    def tax__known() -> float:
        return 0.2
    @config.when_not_in(region=["eu", "us"])
    def tax__other(abroad: float = 0.1) -> float:
        return abroad
    @parameterize(both={"a": source("left"), "b": value(1)})
    def both(a: int, b: int) -> int:
        return a + b
    @resolve(when=ResolveAt.CONFIG_AVAILABLE, decorate_with=lambda names=("n",): parameterize(**{n: {"x": value(1)} for n in names}))
    def many(x: int) -> int:
        return x
    def euro(quantum: str, tax: float) -> str:
        return f"{quantum} {tax}"
"""
VARIANTS_CONF = "run: {flow: {dev: {config: {rounding: bank, region: eu, hamilton.enable_power_user_mode: true}, final_vars: [euro]}}}"


def test_e2_a_given_key_of_config_that_nothing_knows_is_refused_at_every_door(make_project):
    project = make_project(VARIANTS_CONF, flow=VARIANTS)

    def added():
        return orders.job(project.flows, "flow", {"config": {"roundin": "shop"}}, 0.0)

    def scheduled():
        options = {"config": {"roundin": "shop"}, "hours": 1}
        return orders.schedule(project.flows, "flow", "interval", (), options, 0.0)

    def run():
        return project.flow("flow", config={"roundin": "shop"})

    for door in (run, added, scheduled):
        with pytest.raises(
            UnknownNameError, match="unknown config key 'roundin' of pipeline 'flow'"
        ) as raised:
            door()
        assert "did you mean 'rounding'? valid: left, names, region, rounding" in str(raised.value)


def test_e2_what_anything_looks_at_is_a_known_key(make_project):
    project = make_project(VARIANTS_CONF, flow=VARIANTS)
    for config in (
        {"rounding": "shop"},
        {"region": "de"},
        {"left": 5},  # a source of @parameterize
        {"names": ["m"]},  # an argument of @resolve's function
        {"places": 3},  # an argument of a function that is left out
        {"both": 7},  # stands for a node
        {"hamilton.enable_power_user_mode": True},
    ):
        assert config.items() <= project.flow("flow", config=config).graph.config.items()
    custom = make_project(
        folder="custom",
        flow="""
        from hamilton.function_modifiers import config
        @config(lambda settings: "anything" in settings)
        def a() -> int:
            return 1
        def b() -> int:
            return 2
        """,
    )
    assert "a" in custom.flow("flow", config={"anything": 1}).graph.nodes


def test_e2_a_configured_key_that_nothing_knows_is_a_warning_of_check(make_project):
    conf = VARIANTS_CONF.replace("{rounding: bank", "{roundin: bank, rounding: bank")
    project = make_project(conf, flow=VARIANTS)
    (warning,) = project.check().warnings
    assert "no @config.when and no node knows it; did you mean 'rounding'" in warning.message
    assert asyncio.run(project.run("flow")) == {"euro": "bank 0.2"}


@pytest.mark.parametrize(
    ("config", "final_vars", "said"),
    [
        (
            {"rounding": "foo"},
            [],
            "no variant of quantum for rounding='foo'; there are: bank, shop",
        ),
        ({"rounding": "foo"}, ["quantum"], "no variant of quantum for rounding='foo'; there are:"),
    ],
)
async def test_e3_a_value_of_config_that_no_variant_knows_says_so(
    make_project, config, final_vars, said
):
    project = make_project(VARIANTS_CONF, flow=VARIANTS)
    with pytest.raises(InputError) as raised:
        await project.run("flow", config=config, final_vars=final_vars)
    assert said in str(raised.value)


async def test_e3_a_key_that_no_variant_goes_without_is_named(make_project):
    project = make_project(VARIANTS_CONF.replace("rounding: bank, ", ""), flow=VARIANTS)
    with pytest.raises(InputError) as raised:
        await project.run("flow")
    assert "no variant of quantum without config rounding; there are: bank, shop" in str(
        raised.value
    )


async def test_e3_variants_by_several_keys_are_named_with_them(make_project):
    project = make_project(
        flow="""
        from hamilton.function_modifiers import config
        @config.when(size=1, kind="a")
        def x__one() -> int:
            return 1
        @config.when_not(size=1)
        def x__more() -> int:
            return 2
        def y(x: int) -> int:
            return x
        """
    )
    with pytest.raises(InputError) as raised:
        await project.run("flow", config={"size": 1, "kind": "b"})
    assert "no variant of x for size=1, kind='b'; there are: size 1 and kind a, size not 1" in str(
        raised.value
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("1:30", 5400), ("1:30:05.5", 5405.5), ("2 days, 1:30", 178_200)),
        *(("PT1H30M", 5400), ("P1D", 86_400), ("1h", 3600), ("1h30m", 5400), ("90s", 90)),
        *(
            ("1.5d", 129_600),
            ("1w 2d", 777_600),
            ("5 min", 300),
            ("250ms", 0.25),
            ("1m500ms", 60.5),
        ),
    ],
)
def test_e11_texts_of_a_time_span(text, seconds):
    assert converted(Text(text), timedelta) == timedelta(seconds=seconds)
    if not text.isdigit():
        assert converted(text, timedelta) == timedelta(seconds=seconds)  # as YAML and JSON give it


@pytest.mark.parametrize("text", ["", "h", "1x", "1h30", "30m1h", "-1h", "soon"])
def test_e11_what_is_no_time_span_is_told_what_is(text):
    with pytest.raises(MisfitError) as raised:
        converted(Text(text), timedelta)
    assert "(seconds, 1h30m, 1:30:00 or PT1H30M)" in raised.value.told("n")
