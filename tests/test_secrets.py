"""Secrets as inputs: what is shown of them, which is nothing."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
from stores_kit import shared

from fp_async import Client, InputError, NodeError, Project, Secret, codec
from fp_async.cli import json_form, shown

FLOW = """
from dataclasses import dataclass

from fp_async import Secret


@dataclass
class Login:
    user: str
    password: Secret


def used(password: Secret) -> int:
    return len(password.reveal())


def logged(login: Login) -> str:
    print(login)
    return login.password.reveal()[::-1]


def several(keys: list[Secret], other: Secret | None = None) -> list[str]:
    return [key.reveal() for key in keys]


def given_back(password: Secret) -> Secret:
    return password


def fails(password: Secret) -> int:
    raise ValueError(f"not with {password}")
"""


@pytest.fixture
def project(make_project):
    return make_project(flow=FLOW)


def test_d11_a_secret_shows_nothing():
    secret = Secret("hunter2")
    texts = (repr(secret), str(secret), f"{secret}", f"{[secret]}", f"{secret!r:>20}")
    assert all("hunter2" not in text and "***" in text for text in texts)
    assert secret.reveal() == "hunter2"
    assert secret == Secret("hunter2") != Secret("hunter3")
    assert secret != "hunter2"
    assert {secret: 1}[Secret("hunter2")] == 1
    assert (bool(secret), bool(Secret(""))) == (True, False)
    assert pickle.loads(pickle.dumps(secret)) == secret
    assert codec.decode(codec.encode({"a": [secret]})) == {"a": [secret]}
    assert json.dumps(json_form.Form().of({"a": secret})) == '{"a": "***"}'
    with pytest.raises(TypeError, match="made of a str, not of int"):
        Secret(5)


async def test_d11_the_annotation_makes_one_at_every_door(project):
    run = project.run
    assert await run("flow", {"password": "hunter2"}, final_vars="used") == {"used": 7}
    assert await run("flow", {"password": Secret("x")}, final_vars="used") == {"used": 1}
    several = {"keys": ["a", Secret("b")], "other": None}
    assert await run("flow", several, final_vars="several") == {"several": ["a", "b"]}
    with pytest.raises(InputError, match="password: expected Secret"):
        await run("flow", {"password": 5}, final_vars="used")
    with pytest.raises(NodeError) as raised:
        await run("flow", {"password": "hunter2"}, final_vars="fails")
    assert "not with ***" in str(raised.value)


async def test_d11_a_job_keeps_it_and_shows_it_nowhere(project, caplog):
    caplog.set_level(logging.DEBUG)
    inputs = {
        "password": "hunter2",
        "login": {"user": "me", "password": "hunter2"},
        "keys": ["hunter2"],
    }
    finals = ["used", "logged", "several", "given_back"]
    async with Project(project.root, worker=True) as opened:
        id = await opened.add_job("flow", inputs=inputs, final_vars=finals[:3])
        assert await opened.get_result(id, wait=20) == {
            "used": 7, "logged": "2retnuh", "several": ["hunter2"],
        }  # fmt: skip
        id = await opened.add_job("flow", inputs=inputs, final_vars=finals[3:])
        assert (await opened.get_result(id, wait=20))["given_back"].reveal() == "hunter2"
        again = await opened.retry_job(id)
        await opened.get_result(again, wait=20)
        for each in (id, again):
            job = await opened.get_job(each)
            told = [job, job.inputs, job.result, job.log, job.nodes, shown.job_details(job._row)]
            assert "hunter2" not in repr(told)
            assert job.inputs["password"].reveal() == "hunter2"
    assert "hunter2" not in caplog.text


@shared
async def test_d11_a_client_gives_a_secret_itself(place):
    store = await place.opened()
    id = await Client(place.settings.uri).add_job("flow", inputs={"password": Secret("hunter2")})
    job = await Client(place.settings.uri).get_job(id)
    assert repr(job.inputs) == "{'password': Secret('***')}"
    assert (await store.get(id)).id == id


async def test_d10_a_mapping_for_a_path_is_one_in_python_too(make_project):
    """As in YAML and on the command line."""
    source = """
    from dataclasses import dataclass
    from pathlib import Path


    @dataclass
    class Place:
        folder: Path


    def where(place: Place, path: Path) -> list[str]:
        return [type(place).__name__, place.folder.name, path.name]
    """
    project = make_project(flow=source)
    inputs = {"place": {"folder": "data"}, "path": "other"}
    assert await project.run("flow", inputs) == {"where": ["Place", "data", "other"]}
    async with Project(project.root, worker=True) as opened:
        assert await opened.run_job("flow", inputs=inputs) == {"where": ["Place", "data", "other"]}
