"""The same values through every door of real processes: a hundredth of the examples that
test_values.py gives the converter. Each is what the table says, or refused with the same words.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
import services
from edge_kit import Broker, edge_fleet
from fleet import COMMAND, seeded

from fp_async import Project, codec, topic_triggers, wire
from fp_async.config import TopicTrigger
from fp_async.errors import FlowerPowerError, UsageError
from fp_async.values.coerce import converted
from fp_async.values.misfit import MisfitError
from fp_async.values.text import Text, parse_assignments

pytest.importorskip("numpy")
pytest.importorskip("pandas")
pytest.importorskip("pydantic")
from values_kinds import NAMES, _told  # noqa: E402
from values_kit import Example, examples  # noqa: E402

EXAMPLES, EVERY = 10_000, 100
KINDS = (Path(__file__).parent / "values_kinds.py").read_text()
PIPELINES = ("text_fits", "text_unfit", "data_fits", "data_unfit")


class Drawn:
    """Examples by the pipeline that has an input for each; what each is, or why it is refused."""

    def __init__(self, chance: random.Random) -> None:
        drawn = list(examples(chance, EXAMPLES))[::EVERY]
        self.given: dict[str, dict[str, Example]] = {name: {} for name in PIPELINES}
        for number, each in enumerate(drawn):
            name = f"{'text' if each.is_text else 'data'}_{'fits' if each.fits else 'unfit'}"
            self.given[name][f"v{number}"] = each

    def source(self, pipeline: str) -> str:
        functions = (
            f"def n_{v}({v}: {each.kind}) -> str:\n    return _told({v})\n"
            for v, each in self.given[pipeline].items()
        )
        return "\n\n".join((KINDS, *functions))

    def inputs(self, pipeline: str) -> dict[str, Any]:
        wrap = Text if pipeline.startswith("text") else lambda value: value
        return {v: wrap(each.given) for v, each in self.given[pipeline].items()}

    def results(self, pipeline: str) -> dict[str, str]:
        return {f"n_{v}": _told(each.value) for v, each in self.given[pipeline].items()}

    def refusals(self, pipeline: str) -> set[str]:
        given = self.inputs(pipeline)
        return {why(v, given[v], each.kind) for v, each in self.given[pipeline].items()}


def why(name: str, value: Any, kind: str) -> str:
    with pytest.raises(MisfitError) as raised:
        converted(value, eval(kind, NAMES))
    return raised.value.told(name)


def refusals(texts: Iterable[str]) -> set[str]:
    """The lines of messages that tell of an input."""
    lines = (line.strip() for text in texts for line in text.splitlines())
    return {line for line in lines if re.match(r"v[0-9]+\b", line)}


@pytest.fixture
def drawn() -> Drawn:
    return Drawn(seeded())


@pytest.fixture
def project(tmp_path: Path, drawn: Drawn) -> Project:
    return made(tmp_path, "project", {name: drawn.source(name) for name in PIPELINES})


def made(place: Path, name: str, pipelines: Mapping[str, str]) -> Project:
    """A project on a data store that it shares with others of the same place."""
    root = place / name
    (root / "pipelines").mkdir(parents=True)
    (root / "conf").mkdir()
    for pipeline, source in pipelines.items():
        (root / "pipelines" / f"{pipeline}.py").write_text(source)
    store = f"data_store: {{type: sqlite, uri: sqlite:///{place}/jobs.db}}\n"
    (root / "conf/scheduler.yml").write_text(store)
    return Project(root)


async def command(project: Project, *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(COMMAND, *arguments, "--base-dir", str(project.root)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await process.communicate(given)
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


def options(drawn: Drawn, pipeline: str) -> tuple[list[str], bytes]:
    """The inputs as options of the command, and what its stdin is."""
    inputs = drawn.inputs(pipeline)
    if pipeline.startswith("data"):
        return ["--inputs", "@-"], json.dumps(inputs).encode()
    return [part for v, text in inputs.items() for part in ("--inputs", f"{v}={text}")], b""


async def test_examples_through_the_command(project, drawn):
    async def ran(pipeline: str) -> tuple[int, str, str]:
        arguments, given = options(drawn, pipeline)
        run = ("run", pipeline, "--quiet", "--output", "json", *arguments)
        return await command(project, *run, given=given)

    asked = [pipeline for pipeline in PIPELINES if drawn.given[pipeline]]
    done = await asyncio.gather(*map(ran, asked))
    for pipeline, (code, out, err) in zip(asked, done, strict=True):
        if pipeline.endswith("fits"):
            assert (code, err) == (0, "")
            assert json.loads(out) == drawn.results(pipeline)
        else:
            assert code == 2, err
            assert refusals([err]) == drawn.refusals(pipeline)


# A worker, and messages ---------------------------------------------------------------------------


def triggers(drawn: Drawn, port: int) -> dict[str, Any]:
    """conf/mqtt.yml: topics for texts, JSON and msgpack."""
    found: dict[str, Any] = {}
    for pipeline, given in drawn.given.items():
        is_text = pipeline.startswith("text")
        for form in ("text",) if is_text else ("json", "msgpack"):
            one = {"pipeline": pipeline, "payload": form}
            found[f"{pipeline}.{form}"] = {"topic": f"{form}/{pipeline}", **one}
            for v in given:
                alone = {"topic": f"{form}/{pipeline}/{v}", "final_vars": [f"n_{v}"], **one}
                found[f"{v}.{form}"] = alone | ({"inputs": {v: "$payload"}} if is_text else {})
        found.pop(f"{pipeline}.text", None)  # a text is one value
    return {
        "broker": {"uri": f"mqtt://127.0.0.1:{port}"},
        "run": dict.fromkeys(PIPELINES, {"overrides": ["inputs", "final_vars"]}),
        "triggers": found,
    }


def messages(drawn: Drawn) -> Iterator[tuple[str, bytes]]:
    """(topic, payload) of each. What fits comes all at once if it is data; what does not comes one
    by one, as a letter keeps the beginning of a long reason.
    """
    for pipeline in ("text_fits", "text_unfit"):
        for v, each in drawn.given[pipeline].items():
            yield f"text/{pipeline}/{v}", each.given.encode()
    if fitting := drawn.inputs("data_fits"):
        yield from as_data("data_fits", "", {"inputs": fitting})
    for v, value in drawn.inputs("data_unfit").items():
        yield from as_data("data_unfit", f"/{v}", {"inputs": {v: value}, "final_vars": [f"n_{v}"]})


def as_data(pipeline: str, rest: str, request: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    inputs = request["inputs"]
    yield f"json/{pipeline}{rest}", json.dumps(inputs).encode()
    yield f"msgpack/{pipeline}{rest}", msgspec.msgpack.encode(inputs)
    yield f"fp/v1/main/run/{pipeline}", json.dumps(request).encode()


def publish(port: int, folder: Path, topic: str, payload: bytes) -> None:
    (folder / "payload").write_bytes(payload)
    where = ["-p", str(port), "-q", "1", "-t", topic, "-f", str(folder / "payload")]
    services.run([services.program("mosquitto_pub"), *where])


def until_online(port: int) -> None:
    """Until the gateway has subscribed: it says so after that."""
    where = ["-p", str(port), "-t", "fp/v1/main/gateway/state", "-C", "1", "-W", "60"]
    assert '"online":true' in services.run([services.program("mosquitto_sub"), *where])


@pytest.fixture
async def served(project, drawn):
    """The project with a worker that is its gateway, too, as one process; and the broker's port."""
    with Broker() as broker:
        settings = json.dumps(triggers(drawn, broker.port))  # which is YAML
        (project.root / "conf/mqtt.yml").write_text(settings)
        with edge_fleet(project.root) as flock:
            flock.start("w1", "start-worker", "--gateway")
            until_online(broker.port)
            async with project:
                yield project, broker.port


async def test_examples_through_a_worker_and_through_messages(served, drawn, tmp_path):
    project, port = served
    await through_jobs(project, drawn, tmp_path)
    earlier = {job.id for job in await project.list_jobs(limit=500)}
    sent = list(messages(drawn))
    for topic, payload in sent:
        publish(port, tmp_path, topic, payload)
    ended, letters = await answered(project, len(earlier) + len(sent))
    jobs = [job for job in ended if job.id not in earlier]
    await check_jobs(project, jobs, drawn)
    check_letters(letters, drawn)


async def through_jobs(project: Project, drawn: Drawn, place: Path) -> None:
    """As jobs of the project, and of one that cannot load its pipelines: the worker looks then."""
    elsewhere = made(place, "elsewhere", dict.fromkeys(PIPELINES, "import not_here"))
    async with elsewhere:
        for pipeline in PIPELINES:
            if not (inputs := drawn.inputs(pipeline)):
                continue
            told: list[Any] = []
            for sender in (project, elsewhere):
                try:
                    id = await sender.add_job(pipeline, inputs=inputs)
                    told.append(await project.get_result(id, wait=60))
                except FlowerPowerError as error:
                    told.append(refusals([str(error)]))
            fits = pipeline.endswith("fits")
            wanted = drawn.results(pipeline) if fits else drawn.refusals(pipeline)
            assert told == [wanted, wanted]


async def answered(project: Project, count: int) -> tuple[list[Any], list[Any]]:
    """The jobs and the letters, when there are so many, and all jobs have ended."""
    deadline = time.monotonic() + 60
    while True:
        jobs, letters = await project.list_jobs(limit=1000), await project.list_letters(500)
        if len(jobs) + len(letters) >= count and all(job.finished for job in jobs):
            return jobs, letters
        assert time.monotonic() < deadline, (count, jobs, letters)
        await asyncio.sleep(0.05)


async def check_jobs(project: Project, jobs: list[Any], drawn: Drawn) -> None:
    texts: dict[str, str] = {}
    data: list[dict[str, str]] = []
    for job in jobs:
        result = await project.get_result(job.id)
        if job.pipeline == "text_fits":
            texts |= result
        else:
            data.append(result)
    assert texts == drawn.results("text_fits")
    wanted = drawn.results("data_fits")
    assert data == [wanted] * (3 if wanted else 0)


def check_letters(letters: list[Any], drawn: Drawn) -> None:
    told: dict[str, set[str]] = {form: set() for form in ("text", "json", "msgpack", "fp")}
    for letter in letters:
        told[letter.topic.partition("/")[0]] |= refusals([letter.reason])
    data = drawn.refusals("data_unfit")
    assert told == {
        "text": drawn.refusals("text_unfit"),
        **dict.fromkeys(("json", "msgpack", "fp"), data),
    }


@pytest.mark.parametrize("digits", ["12345678901234567890.12", "1.10", "-0.500", "1.0", "1e2"])
def test_g9_a_decimal_keeps_all_digits_of_json(digits):
    data = f'{{"price": {digits}, "all": [{digits}], "other": {{"a": {digits}}}}}'
    request = wire.run_request(f'{{"inputs": {data}}}'.encode())
    trigger = TopicTrigger(topic="t", pipeline="p")
    told = topic_triggers.wanted("t", trigger, topic_triggers.Told("t", data.encode()))
    for found in (
        parse_assignments(data, "--inputs"),
        request.inputs,
        told.options["inputs"],
        codec.decode(codec.encode(request.inputs)),  # as a job has them
    ):
        exact = Decimal(digits)
        assert str(converted(found["price"], Decimal)) == str(exact)
        assert converted(found["all"], list[Decimal]) == [exact]
        assert converted(found["price"], float) == float(digits)
        assert type(converted(found["price"], Any)) is float
        assert converted(found["other"], Any) == {"a": float(digits)}
        assert converted(found["other"], dict[str, Decimal]) == {"a": exact}


@pytest.mark.parametrize("kind", [str, list, list[float], dict, bool, int, date, datetime])
def test_g9_a_number_with_digits_is_nothing_but_a_number(kind):
    (number,) = parse_assignments('{"x": 1.10}', "--inputs").values()
    for value in (number, 1.1):
        with pytest.raises(MisfitError):
            converted(value, kind)


def test_g9_numbers_beyond_all_floats_are_refused():
    with pytest.raises(UsageError, match="not valid JSON"):
        parse_assignments('{"x": 1e400}', "--inputs")
