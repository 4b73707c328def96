"""The decorator matrix: every function modifier of Hamilton, on `def` and on `async def`.

A case is the source of a pipeline, written with `def`. It runs as it is, with its decorated
functions made `async def`, and with all its functions made `async def`. All of them must give
what Hamilton's own sync driver gives for the source with `def`, in every executor. What cannot
work stands in REFUSALS, with its reason, and raises GraphError when the DAG is built.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import itertools
import json
import logging
import re
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import polars as pl
import pytest

from conftest import MakeProject
from fp_async import (
    GraphError,
    NodeError,
    Pipeline,
    Project,
    dag,  # before `hamilton`: it turns off the autoloading of every data library
)

from hamilton import base, driver, function_modifiers  # isort: skip
from hamilton.data_quality.base import DataValidationError  # isort: skip
from hamilton.execution.executors import SynchronousLocalTaskExecutor  # isort: skip
from hamilton.io.materialization import from_, to  # isort: skip

DEF, ASYNC, ALL_ASYNC = "def", "async", "all-async"
MODES = (DEF, ASYNC, ALL_ASYNC)


@dataclass(frozen=True)
class Case:
    """`uses` is imported from hamilton.function_modifiers; `sync` are never made `async def`."""

    name: str
    uses: str
    source: str
    finals: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    sync: str = ""
    parallel: bool = False

    def written(self, mode: str) -> str:
        """The pipeline's file."""
        tree = ast.parse(textwrap.dedent(self.source))
        tree.body = [self._made(statement, mode) for statement in tree.body]
        names = ", ".join(self.uses.split())
        imports = f"from hamilton.function_modifiers import {names}\n" if names else ""
        return imports + ast.unparse(tree)

    def _made(self, statement: ast.stmt, mode: str) -> ast.stmt:
        if not isinstance(statement, ast.FunctionDef) or statement.name in self.sync.split():
            return statement
        if mode == DEF or (mode == ASYNC and not statement.decorator_list):
            return statement
        return ast.AsyncFunctionDef(**dict(ast.iter_fields(statement)), lineno=statement.lineno)


POWER = {"hamilton.enable_power_user_mode": True}
ADD = """
    def base(x: int) -> int:
        return x + 1
"""
FRAME = """
    import pandas as pd

    def size(x: int) -> int:
        return x + 1
"""
HELPERS = """
    def _double(n: int) -> int:
        return n * 2

    def _plus(n: int, more: int) -> int:
        return n + more
"""
PARTS = """
    def part(n: int) -> int:
        return n * 3

    def whole(part: int, n: int) -> int:
        return part + n
"""
MODEL = """
    import pandas as pd
    from hamilton.models import BaseModel

    class Sum(BaseModel):
        def get_dependents(self) -> list[str]:
            return list(self.config_parameters)

        def predict(self, **inputs: pd.Series) -> pd.Series:
            return sum(inputs.values())

    def one() -> pd.Series:
        return pd.Series([1, 2])

    def two(one: pd.Series) -> pd.Series:
        return one * 10
"""
VALIDATOR = """
    from hamilton.data_quality.base import {base}, ValidationResult

    class Small({base}):
        def __init__(self, importance: str = "fail"):
            super().__init__(importance)

        def applies_to(self, datatype: type) -> bool:
            return datatype is int

        def description(self) -> str:
            return "is less than 100"

        @classmethod
        def name(cls) -> str:
            return "small"

        {kind} validate(self, dataset: int) -> ValidationResult:
            return ValidationResult(dataset < 100, "must be less than 100")

    def base(x: int) -> int:
        return x + 1

    @check_output_custom(Small({importance!r}))
    def total(base: int) -> int:
        return base * 10

    def after(total: int) -> int:
        return total + 1
"""


def validator(base: str, kind: str, importance: str = "fail") -> str:
    return VALIDATOR.format(base=base, kind=kind, importance=importance)


CASES = [
    # Configuration
    *(
        Case(
            f"config.{name}-{region}",
            "config",
            ADD
            + f"""
    @config.{name}(region={argument})
    def total__chosen(base: int, y: int) -> int:
        return base + y

    @config.{opposite}(region={argument})
    def total__other(base: int, y: int) -> int:
        return base * y

    def after(total: int) -> int:
        return total + 1
""",
            "total after",
            {"x": 1, "y": 50},
            {"region": region},
        )
        for (name, opposite, argument), region in itertools.product(
            [("when", "when_not", "'us'"), ("when_in", "when_not_in", "['us', 'de']")],
            ["us", "uk"],
        )
    ),
    Case(
        "config-lambda",
        "config",
        """
        @config(lambda settings: settings.get("on", False))
        def total(x: int) -> int:
            return x * 2
        """,
        "total",
        {"x": 1},
        {"on": True},
    ),
    Case(
        "hamilton_exclude",
        "hamilton_exclude",
        """
        @hamilton_exclude
        def helper(anything):
            return anything

        def total(x: int) -> int:
            return x * 2
        """,
        "total",
        {"x": 1},
    ),
    # One function, many nodes
    Case(
        "parameterize",
        "parameterize value source",
        ADD
        + """
    @parameterize(
        twice={"n": source("base"), "factor": value(2)},
        docstring=({"n": source("base"), "factor": value(3)}, "{n} three times"),
        input={"n": source("x")},
        plain=({}, "with its own parameters"),
    )
    def times(n: int, factor: int = 7) -> int:
        '''{n} times {factor} is {output_name}'''
        return n * factor

    def after(twice: int, docstring: int) -> int:
        return twice + docstring
""",
        "twice docstring input plain after",
        {"x": 1, "n": 5},
    ),
    Case(
        "parameterize-group",
        "parameterize value source group",
        ADD
        + """
    @parameterize(
        listed={"numbers": group(source("base"), value(10), source("x"))},
        both={"numbers": group(value(1), value(2))},
    )
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @parameterize(named={"numbers": group(a=source("base"), b=value(10), c=source("listed"))})
    def described(numbers: dict[str, int]) -> str:
        return str(sorted(numbers.items()))
""",
        "listed both named",
        {"x": 1},
    ),
    Case(
        "parameterize_sources",
        "parameterize_sources",
        ADD
        + """
    @parameterize_sources(first=dict(n="x", more="base"), second=dict(n="first"))
    def total(n: int, more: int) -> int:
        return n + more
""",
        "first second",
        {"x": 1, "more": 5},
    ),
    Case(
        "parameterized_inputs",
        "parameterized_inputs",
        ADD
        + """
    @parameterized_inputs(first=dict(n="x", more="base"), second=dict(n="first", more="x"))
    def total(n: int, more: int) -> int:
        return n + more
""",
        "first second",
        {"x": 1},
    ),
    *(
        Case(
            name,
            name,
            ADD
            + f"""
    @{name}("n", {{("first", "the first"): 1, ("second", "the second"): [2]}})
    def total(base: int, n: object) -> str:
        return f"{{base}} {{n}}"
""",
            "first second",
            {"x": 1},
        )
        for name in ("parameterize_values", "parametrized")
    ),
    Case(
        "parametrized_input",
        "parametrized_input",
        ADD
        + """
    @parametrized_input("n", {"x": ("first", "the first"), "base": ("second", "the second")})
    def total(n: int) -> int:
        return n * 2
""",
        "first second",
        {"x": 1},
    ),
    Case(
        "parameterize_extract_columns",
        "parameterize_extract_columns ParameterizedExtract source value",
        FRAME
        + """
    @parameterize_extract_columns(
        ParameterizedExtract(("a", "b"), {"n": source("size"), "m": value(10)}),
        ParameterizedExtract(("c", "d"), {"n": source("x"), "m": value(100)}),
    )
    def frame(n: int, m: int) -> pd.DataFrame:
        return pd.DataFrame({"p": [n, n], "q": [m, m]})

    def after(a: pd.Series, d: pd.Series) -> pd.Series:
        return a + d
""",
        "a b c d after",
        {"x": 1},
    ),
    Case(
        "inject",
        "inject value source group",
        ADD
        + """
    @inject(numbers=group(source("base"), value(10)), factor=source("x"))
    def total(numbers: list[int], factor: int) -> int:
        return sum(numbers) * factor

    def after(total: int) -> int:
        return total + 1
""",
        "total after",
        {"x": 2},
    ),
    # One value, many nodes
    Case(
        "extract_columns",
        "extract_columns",
        FRAME
        + """
    @extract_columns("a", ("b", "a documented column"), "c", fill_with=9)
    def frame(size: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1] * size, "b": [2] * size, ("b", "a documented column"): 0})

    def after(a: pd.Series, b: pd.Series) -> pd.Series:
        return a + b
""",
        "frame a b c after",
        {"x": 1},
    ),
    Case(
        "extract_columns-polars",
        "extract_columns",
        """
    import polars as pl

    def size(x: int) -> int:
        return x + 1

    @extract_columns("a", "b")
    def frame(size: int) -> pl.DataFrame:
        return pl.DataFrame({"a": [1] * size, "b": [2] * size})

    def after(a: pl.Series, b: pl.Series) -> pl.Series:
        return a + b
""",
        "frame a b after",
        {"x": 1},
    ),
    Case(
        "extract_fields",
        "extract_fields",
        ADD
        + """
    @extract_fields({"a": int, "b": str, "c": object}, fill_with=9)
    def fields(base: int) -> dict:
        return {"a": base, "b": "text"}

    @extract_fields(["d", "e"])
    def more(base: int) -> dict[str, int]:
        return {"d": base, "e": base + 1}

    def after(a: int, d: int) -> int:
        return a + d
""",
        "fields a b c d e after",
        {"x": 1},
    ),
    Case(
        "unpack_fields",
        "unpack_fields",
        ADD
        + """
    @unpack_fields("a", "b")
    def pair(base: int) -> tuple[int, str]:
        return base, "text"

    @unpack_fields("c", "d")
    def row(base: int) -> tuple[int, ...]:
        return base, base + 1, base + 2

    def after(a: int, d: int) -> int:
        return a + d
""",
        "pair a b c d after",
        {"x": 1},
    ),
    # A function in place of another, and around another
    Case(
        "does",
        "does",
        ADD
        + """
    def _sum(**numbers: int) -> int:
        return sum(numbers.values())

    def _product(left: int, right: int) -> int:
        return left * right

    @does(_sum)
    def total(base: int, x: int, more: int = 100) -> int:
        pass

    @does(_product, left="base", right="x")
    def product(base: int, x: int) -> int:
        pass
""",
        "total product",
        {"x": 3},
    ),
    Case(
        "does-by-async",
        "does",
        ADD
        + """
    def _sum(**numbers: int) -> int:
        return sum(numbers.values())

    @does(_sum)
    def total(base: int, x: int) -> int:
        pass

    def after(total: int) -> int:
        return total + 1
""",
        "total after",
        {"x": 3},
        sync="total",
    ),
    *(
        Case(
            name,
            name,
            MODEL
            + f"""
    @{name}(Sum, "columns")
    def total() -> pd.Series:
        pass
""",
            "total",
            config={"columns": ["one", "two"]},
        )
        for name in ("dynamic_transform", "model")
    ),
    Case(
        "model-mended",
        "model",
        MODEL
        + """
    class mended(model):
        def required_config(self) -> list[str]:
            return self.require_config()

    @mended(Sum, "columns")
    def total() -> pd.Series:
        pass
""",
        "total",
        config={"columns": ["one", "two"]},
        sync="total",
    ),
    *(
        Case(
            name,
            f"{name} step value source",
            ADD
            + HELPERS
            + f"""
    @{name}(
        step(_double),
        step(_plus, more=source("x")).named("named", namespace=None),
        step(_plus, more=value(100)).when(big=True),
        step(_double).when_not(big=True),
    )
    def total(base: int) -> int:
        return base + 1

    def after(total: int, named: int) -> int:
        return total + named
""",
            "total named after",
            {"x": 3},
            {"big": True},
        )
        for name in ("pipe", "pipe_input")
    ),
    Case(
        "pipe_input-target",
        "pipe_input step",
        HELPERS
        + """
    @pipe_input(step(_double), step(_plus, more=1), on_input="y", namespace="steps")
    def total(x: int, y: int) -> int:
        return x * y
""",
        "total",
        {"x": 3, "y": 4},
    ),
    Case(
        "pipe_output",
        "pipe_output step source",
        ADD
        + HELPERS
        + """
    @pipe_output(step(_double), step(_plus, more=source("x")).named("named", namespace=None))
    def total(base: int) -> int:
        return base + 1

    def after(total: int, named: int) -> int:
        return total + named
""",
        "total named after",
        {"x": 3},
    ),
    Case(
        "pipe_output-async-steps",
        "pipe_output step source extract_fields",
        ADD
        + HELPERS
        + """
    @pipe_output(step(_double).on_output("a"), step(_plus, more=source("x")))
    @extract_fields({"a": int, "b": int})
    def fields(base: int) -> dict:
        return {"a": base, "b": base + 1}
""",
        "a b",
        {"x": 3},
        sync="fields",
    ),
    Case(
        "mutate",
        "mutate apply_to source value",
        """
    def first(x: int) -> int:
        return x + 1

    def second(first: int) -> int:
        return first * 10

    @mutate(first, apply_to(second, more=source("x")).named("changed"), more=value(100))
    def _plus(n: int, more: int) -> int:
        return n + more

    @mutate(second)
    def _double(n: int) -> int:
        return n * 2
""",
        "first second",
        {"x": 3},
        sync="first second",
    ),
    Case(
        "mutate-of-async",
        "mutate",
        """
    def total(x: int) -> int:
        return x + 1

    @mutate(total)
    def _double(n: int) -> int:
        return n * 2
""",
        "total",
        {"x": 3},
    ),
    # What is said about nodes
    Case(
        "tags",
        "tag tag_outputs schema extract_columns cache",
        FRAME
        + """
    @tag(owner="me", target_="frame")
    @tag_outputs(a={"kind": "column"}, b={"kind": ["other", "column"]})
    @cache(behavior="disable", format="json")
    @extract_columns("a", "b")
    def frame(size: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1] * size, "b": [2] * size})

    @schema.output(("a", "int"))
    def after(a: pd.Series) -> pd.DataFrame:
        return a.to_frame()
""",
        "frame a b after",
        {"x": 1},
    ),
    Case(
        "ray_remote_options",
        "",
        """
        from hamilton.function_modifiers.metadata import ray_remote_options

        @ray_remote_options(num_gpus=1, resources={"a": 1})
        def total(x: int) -> int:
            return x * 2
        """,
        "total",
        {"x": 3},
    ),
    # Checks
    Case(
        "check_output",
        "check_output",
        ADD
        + """
    @check_output(range=(0, 1000), data_type=int, importance="fail")
    def total(base: int) -> int:
        return base * 10

    def after(total: int) -> int:
        return total + 1
""",
        "total total_raw after",
        {"x": 1},
    ),
    Case(
        "check_output-pandas",
        "check_output extract_columns",
        FRAME
        + """
    @check_output(range=(0, 1000), importance="fail", target_="a")
    @extract_columns("a")
    def frame(size: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1] * size})

    @check_output(allow_nans=False, importance="fail")
    def after(a: pd.Series) -> pd.Series:
        return a + 1
""",
        "a after",
        {"x": 1},
    ),
    Case(
        "check_output_custom",
        "check_output_custom",
        validator("DataValidator", "def"),
        "total after",
        {"x": 1},
    ),
    # DAGs in DAGs
    Case(
        "subdag",
        "subdag source value",
        ADD
        + PARTS
        + """
    @subdag(part, whole, inputs={"n": source("base")}, external_inputs=["x"])
    def upstream(whole: int, x: int) -> int:
        return whole + x

    @subdag(part, whole, inputs={"n": value(100)}, namespace="other", final_node_name="constant")
    def literal(whole: int) -> int:
        return whole

    def after(upstream: int, constant: int) -> int:
        return upstream + constant
""",
        "upstream constant upstream.part other.whole after",
        {"x": 1},
    ),
    Case(
        "subdag-decorated",
        "subdag value source inject parameterize configuration config pipe_input step",
        HELPERS
        + """
    @parameterize(two={"k": value(2)}, three={"k": value(3)})
    def multiple(n: int, k: int) -> int:
        return n * k

    @pipe_input(step(_double))
    def piped(two: int) -> int:
        return two + 1

    @inject(m=source("three"))
    def injected(m: int) -> int:
        return m + 1

    @config.when(kind="big")
    def kind_of() -> str:
        return "big"

    @subdag(
        multiple,
        piped,
        injected,
        kind_of,
        inputs={"n": source("x")},
        config={"kind": configuration("k")},
    )
    def total(piped: int, injected: int, kind_of: str) -> str:
        return f"{piped} {injected} {kind_of}"
""",
        "total",
        {"x": 1},
        {"k": "big"},
    ),
    Case(
        "parameterized_subdag",
        "parameterized_subdag source value",
        ADD
        + PARTS
        + """
    @parameterized_subdag(
        part,
        whole,
        inputs={"n": value(7)},
        seven={},
        upstream={"inputs": {"n": source("base")}},
        more={"inputs": {"n": source("seven")}},
    )
    def total(whole: int) -> int:
        return whole + 1
""",
        "seven upstream more",
        {"x": 1},
    ),
    # Decided by the configuration
    Case(
        "resolve",
        "resolve ResolveAt parameterize_sources",
        ADD
        + """
    @resolve(
        when=ResolveAt.CONFIG_AVAILABLE,
        decorate_with=lambda names: parameterize_sources(
            **{f"total_{name}": {"n": name} for name in names}
        ),
    )
    def total(n: int) -> int:
        return n * 2

    def after(total_x: int, total_base: int) -> int:
        return total_x + total_base
""",
        "total_x total_base after",
        {"x": 1},
        {"names": ["x", "base"], **POWER},
    ),
    Case(
        "resolve_from_config",
        "resolve_from_config extract_fields",
        ADD
        + """
    @resolve_from_config(decorate_with=lambda names: extract_fields({n: int for n in names}))
    def fields(base: int) -> dict:
        return {"a": base, "b": base + 1}
""",
        "a b",
        {"x": 1},
        {"names": ["a", "b"], **POWER},
    ),
    # Data from and to elsewhere
    Case(
        "load_from",
        "load_from source value",
        """
    @load_from.json(path=source("file"), inject_="data")
    def loaded(data: dict, x: int) -> int:
        return data["n"] + x

    @load_from.literal(value=value(5))
    def literal(number: int) -> int:
        return number * 2

    def after(loaded: int, literal: int) -> int:
        return loaded + literal
""",
        "loaded literal after",
        {"x": 1, "file": "{folder}/given.json"},
    ),
    Case(
        "save_to",
        "save_to source",
        ADD
        + """
    @save_to.json(path=source("target"), output_name_="saved")
    def result(base: int) -> dict:
        return {"base": base}

    def size(saved: dict) -> int:
        return saved["file_metadata"]["size"]
""",
        "result size",
        {"x": 1, "target": "{folder}/saved.json"},
    ),
    Case(
        "dataloader-datasaver",
        "dataloader datasaver",
        """
    @dataloader()
    def data(x: int) -> tuple[list[int], dict]:
        return [x, x + 1], {"source": "nowhere"}

    def total(data: list[int]) -> int:
        return sum(data)

    @datasaver()
    def stored(total: int) -> dict:
        return {"stored": total}
""",
        "data data.loader total stored",
        {"x": 1},
    ),
    *(
        Case(
            f"with_columns-{library}",
            "",
            f"""
    import {library} as lib
    from hamilton.plugins.h_{library} import with_columns

    def _c(a: lib.Series, b: lib.Series) -> lib.Series:
        return a + b

    def c(a: lib.Series, b: lib.Series) -> lib.Series:
        return a + b

    def d(c: lib.Series, x: int) -> lib.Series:
        return c * x

    def frame(x: int) -> lib.DataFrame:
        return lib.DataFrame({{"a": [1, 2], "b": [3, x]}})

    @with_columns(c, d, columns_to_pass=["a", "b"], select=["c", "d"])
    def result(frame: lib.DataFrame) -> lib.DataFrame:
        return frame

    def after(result: lib.DataFrame) -> list[int]:
        return list(result["d"])
""",
            "result after",
            {"x": 5, "a": None, "b": None},
        )
        for library in ("pandas", "polars")
    ),
    # One on top of another
    Case(
        "inject-extract_fields",
        "inject source extract_fields tag",
        ADD
        + """
    @tag(owner="me")
    @extract_fields({"a": int, "b": int})
    @inject(n=source("base"))
    def fields(n: int) -> dict:
        return {"a": n, "b": n + 1}

    def after(a: int, b: int) -> int:
        return a + b
""",
        "fields a b after",
        {"x": 1},
    ),
    Case(
        "inject-extract_fields-fill_with",
        "inject source extract_fields",
        ADD
        + """
    @extract_fields({"a": int, "b": int}, fill_with=9)
    @inject(n=source("base"))
    def fields(n: int) -> dict:
        return {"a": n}
""",
        "a b",
        {"x": 1},
    ),
    Case(
        "inject-extract_columns",
        "inject source extract_columns",
        FRAME
        + """
    @extract_columns("a", "b")
    @inject(n=source("size"))
    def frame(n: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1] * n, "b": [2] * n})
""",
        "frame a b",
        {"x": 1},
    ),
    Case(
        "inject-extract_columns-fill_with",
        "inject source extract_columns",
        FRAME
        + """
    @extract_columns("a", "b", fill_with=9)
    @inject(n=source("size"))
    def frame(n: int) -> pd.DataFrame:
        return pd.DataFrame({"a": [1] * n})
""",
        "a b",
        {"x": 1},
    ),
    Case(
        "parameterize-check_output-unpack_fields",
        "parameterize value check_output inject source unpack_fields",
        """
    @check_output(range=(0, 100), importance="fail", target_=["one", "two"])
    @parameterize(one={"n": value(1)}, two={"n": value(2)})
    def number(x: int, n: int) -> int:
        return x + n

    @unpack_fields("a", "b")
    @inject(n=source("one"))
    def pair(n: int) -> tuple[int, int]:
        return n, n + 1
""",
        "one two pair a b",
        {"x": 1},
    ),
    Case(
        "wrapped",
        "inject source",
        ADD
        + """
    import functools

    def _wrapped(function):
        @functools.wraps(function)
        def wrapper(*args, **kwargs):
            return function(*args, **kwargs)
        return wrapper

    @_wrapped
    def first(base: int) -> int:
        return base * 2

    @inject(n=source("first"))
    @_wrapped
    def second(n: int) -> int:
        return n * 2
""",
        "first second",
        {"x": 1},
        sync="_wrapped",
    ),
    # Fan-out
    Case(
        "parallel",
        "",
        """
    from hamilton.htypes import Collect, Parallelizable

    def items(x: int) -> Parallelizable[int]:
        return list(range(x))

    def base(x: int) -> int:
        return x * 100

    def square(items: int, base: int) -> int:
        return items ** 2 + base

    def text(square: int) -> str:
        return f"<{square}>"

    def joined(text: Collect[str]) -> str:
        return "".join(text)

    def after(joined: str, base: int) -> str:
        return f"{joined} {base}"
""",
        "joined after",
        {"x": 3},
        parallel=True,
    ),
    Case(
        "parallel-generator",
        "inject value",
        """
    from hamilton.htypes import Collect, Parallelizable

    def items(x: int) -> Parallelizable[int]:
        yield from range(x)

    @inject(more=value(10))
    def square(items: int, more: int) -> int:
        return items ** 2 + more

    def joined(square: Collect[int]) -> list[int]:
        return list(square)
""",
        "joined",
        {"x": 3},
        sync="items",
        parallel=True,
    ),
]
ASYNC_VALIDATOR = Case(
    "check_output_custom-async-validator",
    "check_output_custom",
    validator("AsyncDataValidator", "async def"),
    "total after",
    {"x": 1},
)

_EMPTY = "Hamilton takes only an empty `def` here: there is nothing to await"
_IDENTITY = "Hamilton awaits its own identity function at the end of the pipe"
_INSIDE = "Hamilton's wrapper uses the value before anyone can have awaited it"
# (case, mode): why it is refused, and what the GraphError says.
REFUSALS: dict[tuple[str, str], tuple[str, str]] = {
    ("does", ASYNC): (_EMPTY, "total.*async"),
    ("does", ALL_ASYNC): (_EMPTY, "total.*async"),
    ("dynamic_transform", ASYNC): (_EMPTY, "total.*async"),
    ("dynamic_transform", ALL_ASYNC): (_EMPTY, "total.*async"),
    ("model", ASYNC): (_EMPTY, "total.*async"),
    ("model", ALL_ASYNC): (_EMPTY, "total.*async"),
}
# Where AsyncDriver, the oracle of executor `hamilton`, is wrong itself: it returns a coroutine.
HIDDEN_COROUTINE = "AsyncDriver does not await a coroutine that a sync wrapper returns"

CELLS = [(c, m) for c, m in itertools.product(CASES, MODES) if (c.name, m) not in REFUSALS]


def cells(chosen: list[tuple[Case, str]]) -> Any:
    return pytest.mark.parametrize(
        ("case", "mode"), chosen, ids=[f"{case.name}-{mode}" for case, mode in chosen]
    )


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"oracle_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
