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


def test_every_public_callable_has_a_docstring():
    for name in fp_async.__all__:
        public = getattr(fp_async, name)
        assert public.__doc__, name
        if inspect.isclass(public):
            for attribute, member in vars(public).items():
                if inspect.isfunction(member) and not attribute.startswith("_"):
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
