"""The public surface: complete, sorted, importable, and the same everywhere."""

from __future__ import annotations

import importlib
import inspect

import pytest

import fp_async

DOCUMENT = {
    "fp_async": ["init"],
    "fp_async.pipeline": ["PipelineManager", "new", "Pipeline", "run", "run_job", "add_job"],
    "fp_async.scheduler": ["schedule", "Pipeline", "start_worker"],
}
COROUTINES = ["run", "run_job", "add_job", "schedule", "start_worker"]
FUNCTIONS = ["init", "new", "add", "delete", "list", "show", "check"]


def test_all_is_sorted_and_complete():
    assert fp_async.__all__ == sorted(fp_async.__all__)
    for name in fp_async.__all__:
        assert getattr(fp_async, name).__name__ in (name, "Project", "new", "list")


def test_unknown_names_are_attribute_errors():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fp_async.nothing  # noqa: B018


def test_errors_are_all_exported():
    from fp_async import errors

    kinds = {
        name
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert kinds <= set(fp_async.__all__)


@pytest.mark.parametrize(
    ("module", "name"), [(m, n) for m, names in DOCUMENT.items() for n in names]
)
def test_every_name_of_the_document_can_be_imported(module, name):
    assert callable(getattr(importlib.import_module(module), name))


@pytest.mark.parametrize("name", COROUTINES)
def test_coroutine_functions(name):
    assert inspect.iscoroutinefunction(getattr(fp_async, name))
    for holder in (fp_async.Pipeline, fp_async.Project):
        assert inspect.iscoroutinefunction(getattr(holder, name))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_plain_functions(name):
    assert inspect.isfunction(getattr(fp_async, name))


def public_callables():
    for name in fp_async.__all__:
        public = getattr(fp_async, name)
        if inspect.isclass(public):
            for kind in public.__mro__:
                for attribute, member in vars(kind).items():
                    named = attribute == "__init__" or not attribute.startswith("_")
                    if inspect.isfunction(member) and named and "fp_async" in kind.__module__:
                        yield f"{name}.{attribute}", member
        elif inspect.isfunction(public):
            yield name, public


def test_d9_every_public_callable_says_what_it_takes():
    """An editor completes and checks keywords that are named: `**options: Any` says nothing."""
    found = dict(public_callables())
    assert len(found) > 100
    for name, function in found.items():
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                assert parameter.annotation.startswith("Unpack["), f"{name}(**{parameter.name})"
            elif parameter.name != "self":
                assert parameter.annotation is not parameter.empty, f"{name}({parameter.name})"
        assert inspect.signature(function).return_annotation is not inspect.Signature.empty, name


def test_d9_the_named_options_are_those_that_are_understood():
    from fp_async import options, orders, triggers
    from fp_async.config import WorkerSettings
    from fp_async.jobs import Find

    assert options.WorkerOptions.__annotations__.keys() == set(WorkerSettings.__struct_fields__)
    assert options.JobQuery.__annotations__.keys() == set(Find.__struct_fields__)
    arguments = {name for names in triggers._ARGUMENTS.values() for name in names}
    known = {*arguments, *triggers._ALIASES} - {"timezone"}
    assert options.TriggerOptions.__annotations__.keys() == known
    assert options.ScheduleArguments.__annotations__.keys() == {
        *options.ScheduleOptions.__annotations__,
        *known,
    }
    run = inspect.signature(fp_async.Project.run).parameters.keys() - {"self", "name", "inputs"}
    assert options.RunOptions.__annotations__.keys() == run
    assert orders._JOB == options.JobOptions.__annotations__.keys()


@pytest.mark.parametrize("module", ["fp_async", "fp_async.pipeline", "fp_async.scheduler"])
def test_d9_import_star_leaves_pythons_own_names_alone(module):
    names = {}
    exec(f"from {module} import *", names)
    assert not (names.keys() - {"__builtins__"}) & vars(__import__("builtins")).keys()
    assert fp_async.list is fp_async.list_pipelines


def test_every_public_callable_has_a_docstring():
    for name in fp_async.__all__:
        public = getattr(fp_async, name)
        assert public.__doc__, name
        if inspect.isclass(public):
            for attribute, member in vars(public).items():
                if inspect.isfunction(member) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute}"
                if isinstance(member, property) and not attribute.startswith("_"):
                    assert member.__doc__, f"{name}.{attribute}"


def test_errors_survive_pickling():
    import pickle

    error = fp_async.NodeError("flow", "node", ValueError("x"), {"a": "int"}, "f.py:1: x")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    late = fp_async.RunTimeoutError("late", ("a",))
    assert pickle.loads(pickle.dumps(late)).running == ("a",)
    unknown = fp_async.UnknownNameError("input", "a", ["b"])
    assert str(pickle.loads(pickle.dumps(unknown))) == str(unknown)
    missing = fp_async.MissingExtraError("thing", "viz")
    assert str(pickle.loads(pickle.dumps(missing))) == str(missing)
