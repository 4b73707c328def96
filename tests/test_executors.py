"""Executors by name, by address, in full, and what is said of those that are not there."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from msgspec.structs import asdict

from fp_async import ExecutorSettings, MissingExtraError, UnknownNameError, UsageError, executors


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(executors, "find_spec", lambda name: name)


@pytest.mark.parametrize("name", ["ray", "dask"])
def test_an_extra_that_is_missing_is_named(monkeypatch, name):
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf'pip install "fp-async\[{name}\]"'):
        executors.resolve(name)
    executors.check_name(name)  # whoever runs the job may have it


def test_a_name_may_have_an_address(installed):
    assert executors.resolve("ray") == ExecutorSettings(type="ray")
    settings = executors.resolve("dask:tcp://10.0.0.1:8786")
    assert settings == ExecutorSettings(type="dask", address="tcp://10.0.0.1:8786")
    with pytest.raises(UnknownNameError, match="did you mean 'dask'"):
        executors.resolve("dusk:tcp://10.0.0.1:8786")


def test_a_name_alone_takes_the_configured_options(installed):
    configured = ExecutorSettings(type="ray", address="a:1")
    assert executors.resolve(None, configured) is configured
    assert executors.resolve("ray", configured) is configured
    assert executors.resolve("ray:b:2", configured).address == "b:2"
    assert executors.resolve("local", configured) == ExecutorSettings(type="local")
    assert executors.resolve(None, None).type == executors.DEFAULT


class Client:
    __module__ = "distributed.client"


class Mine(Client):
    pass


@pytest.mark.parametrize("client", [Client(), Mine()])
def test_a_client_of_dask_is_taken_as_it_is(installed, client):
    assert executors.resolve(client).client is client
    assert executors.resolve(client).type == "dask"


def test_a_mapping_is_taken_as_in_the_configuration():
    assert executors.resolve({"max_workers": 2}) == ExecutorSettings(max_workers=2)
    settings = executors.resolve(MappingProxyType({"type": "local"}))
    assert settings == ExecutorSettings(type="local")
    with pytest.raises(UsageError, match="executor: max_worker: unknown key; did you mean 'max_w"):
        executors.resolve({"type": "threadpool", "max_worker": 2})
    with pytest.raises(UsageError, match="executor: max_workers: expected int >= 1"):
        executors.check_name({"max_workers": 0})
    with pytest.raises(UnknownNameError, match="unknown executor 'thread'"):
        executors.resolve({"type": "thread"})


@pytest.mark.parametrize("executor", [5, 0.5, ["local"], object(), ExecutorSettings])
def test_anything_else_is_no_executor(executor):
    for look in (executors.resolve, executors.check_name):
        with pytest.raises(UsageError, match="executor is a name .*, a mapping .*Client, not "):
            look(executor)


async def test_a_mapping_runs_and_is_stored(make_project):
    project = make_project(flow="def one() -> int:\n    return 1\n")
    mapping = MappingProxyType({"type": "threadpool", "max_workers": 2})
    assert await project.run("flow", executor=mapping) == {"one": 1}
    job = await project.get_job(await project.add_job("flow", executor=mapping))
    assert job.options["executor"] == asdict(ExecutorSettings(max_workers=2))
    with pytest.raises(UsageError, match="executor is a name"):
        await project.add_job("flow", executor=5)


@pytest.mark.parametrize(
    "option", [{"address": "a:1"}, {"resources": {"num_cpus": 1}}, {"options": {}}]
)
def test_options_of_clusters_are_refused_elsewhere(option):
    with pytest.raises(UsageError, match=f"executor 'local' has no {next(iter(option))}"):
        executors.resolve(ExecutorSettings(type="local", **option))


@pytest.mark.parametrize(
    "address", ["host", "host:x", "host:0", "host:65536", ":1", "tcp://h", "x"]
)
@pytest.mark.parametrize("name", ["ray", "dask"])
def test_an_address_without_a_port_is_refused(installed, name, address):
    with pytest.raises(UsageError, match=f"'{name}': an address is HOST:PORT.* not '{address}'"):
        executors.resolve(f"{name}:{address}")


@pytest.mark.parametrize(
    "address", ["auto", "h:1", "tls://h:65535", "[::1]:8786", "ws://h:1/a", "inproc://h/1/2"]
)
def test_addresses(installed, address):
    assert executors.resolve(f"dask:{address}").address == address


def test_an_address_that_a_variable_leaves_empty_is_none(installed):
    assert not executors.resolve(ExecutorSettings(type="dask", address="")).address


@pytest.mark.parametrize(
    ("values", "said"),
    [({"max_workers": "2"}, "max_workers: expected"), ({"retries": -1}, "retries: expected")],
)
def test_settings_made_in_python_are_checked(installed, values, said):
    with pytest.raises(UsageError, match=f"^executor: {said}"):
        executors.resolve(ExecutorSettings(type="dask", **values))


def test_check_warns_of_a_missing_extra(monkeypatch, make_project):
    monkeypatch.setattr(executors, "find_spec", lambda name: None)
    source = "def a() -> int:\n    return 1\n"
    project = make_project("run: {flow: {dev: {executor: ray}}}", flow=source)
    (problem,) = project.check().problems
    assert problem.level == "warning"
    assert 'pip install "fp-async[ray]"' in problem.message
