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
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import polars as pl
import pytest
from conftest import MakeProject

from fp_async import ExecutorSettings, GraphError, NodeError, Pipeline, Project
from fp_async.errors import FlowerPowerError

# After `dag`, which turns off the autoloading of every data library.
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
    @pipe_output(step(_double), step(_plus, more=source("x")).named("changed"))
    def total(base: int) -> int:
        return base + 1

    def after(total: int) -> int:
        return total + 1
""",
        "total total.raw total.changed after",
        {"x": 3},
    ),
    Case(
        "pipe_output-extract_fields",
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
            {"x": 5},
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

_EMPTY = "Hamilton takes an empty `def` only: there is nothing to await in it"
_IDENTITY = "Hamilton ends the pipe of an `async def` with a function that it cannot use itself"
_EARLY = "Hamilton's wrapper uses the value before anybody can have awaited it"
_MISSPELT = "broken in Hamilton 1.90 (`require_config`): its sync driver raises the same"
# By case and mode: why it is refused, and what the GraphError must say.
REFUSALS: dict[tuple[str, str], tuple[str, str]] = {
    ("dynamic_transform", DEF): (_MISSPELT, "Configuration has no parameter: columns"),
    ("model", DEF): (_MISSPELT, "Configuration has no parameter: columns"),
    ("mutate-of-async", ALL_ASYNC): (_IDENTITY, "total.*async def"),
    **{
        (name, mode): (reason, f"{function}.*async def")
        for name, function, reason in [
            ("does", "total", _EMPTY),
            ("dynamic_transform", "total", _EMPTY),
            ("model", "total", _EMPTY),
            ("pipe_output", "total", _IDENTITY),
            ("parameterize_extract_columns", "frame", _EARLY),
            ("inject-extract_fields-fill_with", "fields", _EARLY),
            ("inject-extract_columns-fill_with", "frame", _EARLY),
        ]
        for mode in (ASYNC, ALL_ASYNC)
    },
}
# On `async def` AsyncDriver, the oracle of executor `hamilton`, is wrong in these cases: it does
# not await a coroutine that comes out of a function which is none itself.
ASYNC_DRIVER_FAILS = {
    "parameterize",
    "parameterize-group",
    "parameterize_sources",
    "parameterized_inputs",
    "parameterize_values",
    "parametrized",
    "parametrized_input",
    "inject",
    "inject-extract_fields",
    "inject-extract_columns",
    "parameterize-check_output-unpack_fields",
    "subdag-decorated",
    "resolve",
    "does-by-async",
    "wrapped",
}
NO_DECORATORS = {
    "InvalidDecoratorException",
    "IS_DATA_VALIDATOR_TAG",
    "DATA_VALIDATOR_ORIGINAL_OUTPUT_TAG",
    "LiteralDependency",
    "UpstreamDependency",
    "ParameterizedExtract",
    "ResolveAt",
    "configuration",
    "group",
    "logger",
    "source",
    "value",
}
# Async generators, as nothing but a list can be awaited.
ASYNC_GENERATORS = {
    "parallel": """
        async def items(x: int) -> Parallelizable[int]:
            yield x
    """,
    "inject": """
        @inject(n=source("x"))
        async def items(n: int) -> Parallelizable[int]:
            yield n
    """,
    "check_output": """
        @check_output(data_type=int, importance="fail")
        async def items(x: int) -> int:
            yield x
    """,
    "extract_fields": """
        @extract_fields({"a": int})
        async def items(x: int) -> dict:
            yield {"a": x}
    """,
    "subdag": """
        async def _part(x: int) -> int:
            yield x

        @subdag(_part, inputs={"x": value(1)})
        def total(_part: int) -> int:
            return _part
    """,
    "subdag-last": """
        def part(x: int) -> int:
            return x

        @subdag(part, inputs={"x": value(1)})
        async def total(part: int) -> int:
            yield part
    """,
    "pipe_input": """
        async def _plus(n: int) -> int:
            yield n

        @pipe_input(step(_plus))
        def total(x: int) -> int:
            return x
    """,
    "does": """
        async def _sum(**numbers: int) -> int:
            yield 1

        @does(_sum)
        def total(x: int) -> int:
            pass
    """,
}
GENERATOR_IMPORTS = """
from hamilton.function_modifiers import *
from hamilton.htypes import Parallelizable
"""

CELLS = [(c, m) for c, m in itertools.product(CASES, MODES) if (c.name, m) not in REFUSALS]
REFUSED = [(c, m) for c, m in itertools.product(CASES, MODES) if (c.name, m) in REFUSALS]
ORACLE_CELLS = [
    (case, mode)
    for case, mode in CELLS
    if not case.parallel and (mode == DEF or case.name not in ASYNC_DRIVER_FAILS)
]


def cells(chosen: list[tuple[Case, str]]) -> pytest.MarkDecorator:
    ids = [f"{case.name}-{mode}" for case, mode in chosen]
    return pytest.mark.parametrize(("case", "mode"), chosen, ids=ids)


local_and_threads = pytest.mark.parametrize("executor", ["local", "threadpool"])
everywhere = pytest.mark.parametrize("executor", ["local", "threadpool", "processpool"])
def_and_async = pytest.mark.parametrize("kind", ["def", "async def"])


def inputs_of(case: Case, folder: Path) -> dict[str, Any]:
    (folder / "given.json").write_text('{"n": 4}')
    return {
        name: value.format(folder=folder) if isinstance(value, str) else value
        for name, value in case.inputs.items()
    }


async def outcome(
    project: Project, case: Case, executor: Any, pipeline: str = "flow"
) -> dict[str, Any]:
    inputs = inputs_of(case, project.root)
    return await project.run(
        pipeline, inputs, case.finals.split(), dict(case.config), executor=executor
    )


_NUMBERS = itertools.count()


def oracle(case: Case, folder: Path) -> dict[str, Any]:
    """What Hamilton's sync driver gives for the source with `def`."""
    # A name of its own: by time and size, the bytecode of another one written in the same second fits.
    file = folder / f"oracle_{next(_NUMBERS)}.py"
    file.write_text(case.written(DEF))
    builder = driver.Builder().with_modules(loaded(file)).with_config(dict(case.config))
    if case.parallel:
        builder = builder.enable_dynamic_execution(allow_experimental_mode=True)
        builder = builder.with_remote_executor(SynchronousLocalTaskExecutor())
    built = builder.with_adapters(base.DictResult()).build()
    return built.execute(case.finals.split(), inputs=inputs_of(case, folder))


def loaded(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # Hamilton asks for the module of every function
    spec.loader.exec_module(module)
    return module


def plain(value: Any) -> Any:
    """The value as something that `==` can compare; fails for what is no value yet."""
    assert not inspect.isawaitable(value)
    assert not inspect.isgenerator(value)
    assert not inspect.isasyncgen(value)
    if isinstance(value, pd.DataFrame | pd.Series):
        return plain(value.to_dict())
    if isinstance(value, pl.DataFrame):
        return value.to_dict(as_series=False)
    if isinstance(value, pl.Series):
        return value.to_list()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(plain(item) for item in value)
    return value


def decorators_in(source: str) -> set[str]:
    """The names that stand in the decorators of a source."""
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    inside = [node for f in functions for d in f.decorator_list for node in ast.walk(d)]
    return {node.id for node in inside if isinstance(node, ast.Name)}


# The matrix ---------------------------------------------------------------------------------


@local_and_threads
@cells(CELLS)
async def test_gives_what_the_sync_driver_gives(
    make_project: MakeProject, case: Case, mode: str, executor: str
) -> None:
    project = make_project(flow=case.written(mode))
    result = await outcome(project, case, executor)
    assert plain(result) == plain(oracle(case, project.root))


async def test_gives_the_same_in_child_processes(make_project: MakeProject) -> None:
    sources = {f"flow_{i}": case.written(mode) for i, (case, mode) in enumerate(CELLS)}
    executor = ExecutorSettings("processpool", max_workers=2)
    wrong = {}
    async with make_project(**sources) as project:
        for pipeline, (case, mode) in zip(sources, CELLS, strict=True):
            try:
                result = plain(await outcome(project, case, executor, pipeline))
            except FlowerPowerError as error:
                result = error
            expected = plain(oracle(case, project.root))
            if result != expected:
                wrong[case.name, mode] = (result, expected)
    assert wrong == {}


@cells(ORACLE_CELLS)
async def test_gives_the_same_through_async_driver(
    make_project: MakeProject, case: Case, mode: str
) -> None:
    project = make_project(flow=case.written(mode))
    result = await outcome(project, case, "hamilton")
    assert plain(result) == plain(oracle(case, project.root))


@cells(REFUSED)
async def test_refuses_clearly(make_project: MakeProject, case: Case, mode: str) -> None:
    _, message = REFUSALS[case.name, mode]
    with pytest.raises(GraphError, match=message):
        make_project(flow=case.written(mode)).flow("flow", config=dict(case.config))


@pytest.mark.parametrize("name", ASYNC_GENERATORS)
def test_refuses_async_generators(make_project: MakeProject, name: str) -> None:
    source = GENERATOR_IMPORTS + textwrap.dedent(ASYNC_GENERATORS[name])
    with pytest.raises(GraphError, match="async generator"):
        make_project(flow=source).flow("flow")


def test_covers_every_decorator() -> None:
    public = {
        name
        for name, value in vars(function_modifiers).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    covered = set().union(*(decorators_in(case.written(DEF)) for case in CASES))
    assert public - NO_DECORATORS - covered == set()


def test_every_refusal_is_of_a_case() -> None:
    names = {case.name for case in CASES}
    assert {name for name, _ in REFUSALS} | ASYNC_DRIVER_FAILS <= names


# Awaitables and checks ----------------------------------------------------------------------


AWAITABLES = """
    import asyncio

    class Later:
        def __init__(self, value: int) -> None:
            self.value = value

        def __await__(self):
            return asyncio.sleep(0, self.value).__await__()

    async def _later(value: int) -> int:
        return await Later(value)

    def custom(x: int) -> int:
        return Later(x)

    def coroutine(custom: int) -> int:
        return _later(custom + 1)

    async def task(coroutine: int) -> int:
        return await asyncio.create_task(_later(coroutine + 1))
"""


@everywhere
async def test_awaits_any_awaitable(make_project: MakeProject, executor: str) -> None:
    project = make_project(flow=AWAITABLES)
    result = await project.run("flow", {"x": 1}, ["custom", "coroutine", "task"], executor=executor)
    assert result == {"custom": 1, "coroutine": 2, "task": 3}


def checked(kind: str, mode: str, importance: str) -> str:
    validator_base = "AsyncDataValidator" if kind == "async def" else "DataValidator"
    source = validator(validator_base, kind, importance)
    return Case("", "check_output_custom", source, "").written(mode)


@everywhere
@def_and_async
@pytest.mark.parametrize("mode", MODES)
async def test_failed_check(make_project: MakeProject, kind: str, mode: str, executor: str) -> None:
    project = make_project(flow=checked(kind, mode, "fail"))
    assert await project.run("flow", {"x": 1}, "after", executor=executor) == {"after": 21}
    with pytest.raises(NodeError, match="must be less than 100") as caught:
        await project.run("flow", {"x": 99}, "after", executor=executor)
    assert isinstance(caught.value.__cause__, DataValidationError)


@local_and_threads
@def_and_async
@pytest.mark.parametrize("mode", MODES)
async def test_failed_check_that_only_warns(
    make_project: MakeProject,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    mode: str,
    executor: str,
) -> None:
    project = make_project(flow=checked(kind, mode, "warn"))
    assert await project.run("flow", {"x": 99}, "after", executor=executor) == {"after": 1001}
    assert "must be less than 100" in caplog.text


# Materializers and caching ------------------------------------------------------------------


MATERIALIZED = """
    {kind} base(x: int, data: dict) -> int:
        return x + data["n"]

    {kind} result(base: int) -> dict:
        return {{"base": base}}
"""


@everywhere
@def_and_async
async def test_materializers(
    make_project: MakeProject, tmp_path: Path, kind: str, executor: str
) -> None:
    given, saved = tmp_path / "given.json", tmp_path / "saved.json"
    given.write_text('{"n": 4}')
    materializers = [
        from_.json(target="data", path=str(given)),
        to.json(id="saved", dependencies=["result"], path=str(saved)),
    ]
    project = make_project(flow=MATERIALIZED.format(kind=kind))
    pipeline = Pipeline("flow", project, materializers=materializers)
    result = await pipeline.run({"x": 1}, final_vars=["result", "saved"], executor=executor)
    assert plain(result)["result"] == {"base": 5} == json.loads(saved.read_text())
    assert result["saved"]["file_metadata"]["size"] == saved.stat().st_size


@def_and_async
async def test_materializers_of_a_run(make_project: MakeProject, tmp_path: Path, kind: str) -> None:
    saved = tmp_path / "saved.json"
    saver = to.json(id="saved", dependencies=["result"], path=str(saved))
    project = make_project(flow=MATERIALIZED.format(kind=kind))
    await project.run("flow", {"x": 1, "data": {"n": 4}}, materializers=[saver])
    assert json.loads(saved.read_text()) == {"base": 5}


CACHED = """
    from pathlib import Path
    from hamilton.function_modifiers import cache

    def _told(log: str, node: str) -> None:
        with Path(log).open("a") as file:
            file.write(node + " ")

    {kind} cached(x: int, log: str) -> int:
        _told(log, "cached")
        return x + 1

    @cache(behavior="recompute")
    {kind} again(cached: int, log: str) -> int:
        _told(log, "again")
        return cached * 10

    {kind} after(again: int, log: str) -> int:
        _told(log, "after")
        return again + 1
"""


@local_and_threads
@def_and_async
@pytest.mark.parametrize("setting", ["true", "kept"])
async def test_cached_nodes_are_not_executed_again(
    make_project: MakeProject,
    tmp_path: Path,
    kind: str,
    executor: str,
    setting: str,
) -> None:
    log = tmp_path / "log"
    config = f"run: {{flow: {{dev: {{cache: {setting}}}}}}}"
    for _ in range(2):
        project = make_project(config, flow=CACHED.format(kind=kind))
        inputs = {"x": 1, "log": str(log)}
        assert await project.run("flow", inputs, "after", executor=executor) == {"after": 21}
    assert log.read_text().split() == ["cached", "again", "after", "again"]
    assert (project.root / ("kept" if setting == "kept" else ".hamilton_cache")).is_dir()


FUTURE = "from __future__ import annotations\n"


@pytest.mark.parametrize("future", ["", FUTURE])
@pytest.mark.parametrize("kind", ["def", "async def"])
async def test_c9_savers_and_loaders_with_annotations_as_text(
    make_project: MakeProject, future: str, kind: str
) -> None:
    """hamilton#1297."""
    flow = f"""
from hamilton.function_modifiers import dataloader, datasaver
@dataloader()
def raw(x: int) -> tuple[int, dict]:
    return x, {{"from": "x"}}
@datasaver()
{kind} saved(raw: int, later: Later = None) -> dict:
    return {{"size": raw}}
class Later:
    pass
""".replace(", later: Later = None" if not future else "\0", "")
    assert await make_project(flow=future + flow).run("flow", {"x": 2}, "saved") == {
        "saved": {"size": 2}
    }


@pytest.mark.parametrize("kind", ["int", "Missing"])
async def test_c9_a_saver_that_gives_no_dict_is_still_refused(
    make_project: MakeProject, kind: str
) -> None:
    flow = f"{FUTURE}from hamilton.function_modifiers import datasaver\n"
    flow += f"@datasaver()\ndef saved(x: int) -> {kind}:\n    return 1\n"
    with pytest.raises(FlowerPowerError, match=r"must return a dict|'Missing' is not defined"):
        await make_project(flow=flow).run("flow", {"x": 2})


async def test_c11_h16_a_key_that_is_missing_while_building_says_what_it_is(
    make_project: MakeProject,
) -> None:
    flow = """
        from hamilton.function_modifiers import ResolveAt, parameterize, resolve, value
        @resolve(
            when=ResolveAt.CONFIG_AVAILABLE,
            decorate_with=lambda k: parameterize(q={"z": value({}["gone"] if k else 1)}),
        )
        def f(x: int, z: int) -> int:
            return z
    """
    project = make_project(flow=flow)
    with pytest.raises(GraphError, match=r"need `hamilton\.enable_power_user_mode: true`"):
        await project.run("flow", {"x": 1}, config={"k": 1})
    power = {"hamilton.enable_power_user_mode": True}
    with pytest.raises(GraphError, match="KeyError: 'gone'"):
        await project.run("flow", {"x": 1}, config={"k": 1, **power})
    assert await project.run("flow", {"x": 1}, config={"k": 0, **power}) == {"q": 1}
