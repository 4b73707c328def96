"""What the command says to bad input: a table of cases, each run as a process of its own.

Every case is a small project and one command. Checked are the exit code, what the message says
(file, line, key path, nearest valid name, the user's own line), and what must never happen: a
traceback, a path or a name of our insides or Hamilton's, an advert, a file changed or left
behind, a command that does not end.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import dedent

import pytest

SECONDS = 60  # far more than any case takes; a command that hangs fails its case
NEVER = re.compile(
    r"Traceback|fp_async/|/hamilton/|importlib/|fp_pipelines_|<frozen|<unicode string>| at 0x"
    r"|slack|If you believe"
    r"|was never awaited|never retrieved|Exception ignored|RuntimeWarning",
    re.IGNORECASE,
)
# Runs the rest of its command line without root's right to pass over permissions.
BOUND_BY_PERMISSIONS = (
    "import ctypes, os, sys; drop = getattr(ctypes.CDLL(None), 'prctl', lambda *_: 0);"
    "[drop(24, capability, 0, 0, 0) for capability in (1, 2)];"
    "os.execv(sys.argv[1], sys.argv[1:])"
)

CONF = """\
run:
  flow:
    dev:
      inputs:
        count: 3
    prod:
      inputs:
        count: 30
"""
FLOW = """\
def doubled(count: int) -> int:
    return count * 2


def total(doubled: int, extra: int = 0) -> int:
    return doubled + extra
"""
PROJECT = {"conf/pipelines.yml": CONF, "pipelines/flow.py": FLOW}
FOLDER = None  # in place of a file's text


@dataclass(frozen=True)
class Case:
    """A command in a project, and the message and exit code that it has to end with."""

    name: str
    command: str
    says: tuple[str, ...]
    code: int = 2
    files: Mapping[str, str | bytes | None] = field(default_factory=dict)
    stream: str = "stderr"
    variables: Mapping[str, str] = field(default_factory=dict)
    modes: Mapping[str, int] = field(default_factory=dict)
    bare: bool = False  # without the files of PROJECT


def call(name: str, command: str, *says: str, code: int = 2, **more) -> Case:
    """A command in a project that is all right."""
    return Case(name, command, says, code, **more)


def conf(name: str, text: str | bytes | None, *says: str, command="run flow", code=2) -> Case:
    """A bad conf/pipelines.yml."""
    return Case(name, command, says, code, {"conf/pipelines.yml": _text(text)})


def other(name: str, file: str, text: str, *says: str) -> Case:
    """Another bad file of conf/, which `check` reports on stdout."""
    return Case(name, "check", says, 2, {f"conf/{file}": _text(text)}, stream="stdout")


def flow(name: str, source: str | bytes, *says: str, command="run flow", code=2, **more) -> Case:
    """A bad pipelines/flow.py."""
    return Case(name, command, says, code, {"pipelines/flow.py": _text(source), **more})


def node(name: str, body: str, *says: str, code=1, options="", kind="def") -> Case:
    """A node that misbehaves; its body begins on line 8."""
    head = "import asyncio\nimport os\nimport signal\nimport sys\nimport time\n\n"
    source = f"{head}{kind} total(count: int) -> object:\n{_indented(body)}"
    return Case(name, f"run flow {options}", says, code, {"pipelines/flow.py": source})


def _text(text: str | bytes | None) -> str | bytes | None:
    return dedent(text).lstrip("\n") if isinstance(text, str) else text


def _indented(body: str) -> str:
    lines = dedent(body).strip("\n").splitlines()
    return "".join(f"    {line}\n" if line else "\n" for line in lines)


CONFIGURATION = [
    conf(
        "YAML: bracket left open",
        """
        run:
          flow:
            dev: {inputs: [1, 2}
        """,
        "conf/pipelines.yml:3:24: not valid YAML",
    ),
    conf("YAML: tabs", "run:\n\tflow:\n", "conf/pipelines.yml:2:1: not valid YAML", "tab"),
    conf("YAML: two documents", "run:\n---\nrun:\n", "conf/pipelines.yml:2:1: not valid YAML"),
    conf(
        "YAML: a Python object",
        "run:\n  flow: !!python/name:os.system\n",
        "conf/pipelines.yml:2:9: not valid YAML",
        "tag",
    ),
    conf(
        "YAML: an undefined alias", "run: *nothing\n", "conf/pipelines.yml:1:6", "undefined alias"
    ),
    conf("YAML: an alias of itself", "params: &a\n  b: *a\n", "conf/pipelines.yml:", "alias"),
    conf(
        "YAML: bottomless nesting", "run: " + "[" * 5000 + "]" * 5000, "conf/pipelines.yml", "nest"
    ),
    conf("YAML: a list as key", "run:\n  ? [a]\n  : b\n", "conf/pipelines.yml:2:"),
    conf(
        "YAML: duplicate key",
        """
        run:
          flow:
            dev:
              inputs: {count: 1}
            dev:
              timeout: 5
        """,
        "conf/pipelines.yml:3: run.flow.dev: stands twice, here and on line 5",
    ),
    conf("file: a list", "- run\n- params\n", "conf/pipelines.yml: ", "mapping", "list"),
    conf("file: one word", "pipelines\n", "conf/pipelines.yml: ", "mapping", "str"),
    conf("file: not UTF-8", b"run:\n  flow: \xff\xfe\n", "conf/pipelines.yml", "utf-8"),
    conf("file: a control character", "run:\n  flow: \x01\n", "conf/pipelines.yml:2", "control"),
    conf("file: a folder in its place", FOLDER, "conf/pipelines.yml", "directory"),
    call(
        "file: unreadable",
        "run flow",
        "cannot read conf/pipelines.yml: Permission denied",
        modes={"conf/pipelines.yml": 0o000},
    ),
    conf(
        "unknown key: at the top",
        "parms:\n  flow:\n",
        "conf/pipelines.yml:1: parms: unknown key",
        "did you mean 'params'?",
    ),
    conf(
        "unknown key: in an environment",
        """
        run:
          flow:
            dev:
              inputs: {count: 1}
              final_var: [total]
        """,
        "conf/pipelines.yml:5: run.flow.dev.final_var: unknown key",
        "did you mean 'final_vars'?",
    ),
    conf(
        "unknown key: in the environment that is run",
        "run:\n  flow:\n    dev:\n    prod:\n      timeot: 5\n",
        "conf/pipelines.yml:5: run.flow.prod.timeot",
        "did you mean 'timeout'?",
        command="run flow --environment prod",
    ),
    conf(
        "unknown key: in retry",
        "run:\n  flow:\n    dev:\n      retry:\n        max_attempt: 2\n",
        "conf/pipelines.yml:5: run.flow.dev.retry.max_attempt",
        "did you mean 'max_attempts'?",
    ),
    conf(
        "unknown key: of a node",
        "run:\n  flow:\n    dev:\n      nodes:\n        total: {timout: 2}\n",
        "conf/pipelines.yml:5: run.flow.dev.nodes.total.timout",
        "did you mean 'timeout'?",
    ),
    conf(
        "unknown key: in an executor",
        "run:\n  flow:\n    dev:\n      executor: {type: local, max_worker: 2}\n",
        "conf/pipelines.yml:4: run.flow.dev.executor.max_worker",
        "did you mean 'max_workers'?",
    ),
    other(
        "unknown key: scheduler.yml",
        "scheduler.yml",
        "data_store:\n  typ: sqlite\n",
        "conf/scheduler.yml:2: data_store.typ: unknown key",
        "did you mean 'type'?",
    ),
    other(
        "unknown key: tracker.yml",
        "tracker.yml",
        "pipeline:\n  flow:\n    tag: {a: 1}\n",
        "conf/tracker.yml:3: pipeline.flow.tag",
        "did you mean 'tags'?",
    ),
    other(
        "unknown key: mqtt.yml",
        "mqtt.yml",
        "prefix: fp\nbroker:\n  hots: localhost\n",
        "conf/mqtt.yml:3: broker.hots",
        "did you mean 'host'?",
    ),
    conf("wrong type: run", "run:\n  - flow\n", "conf/pipelines.yml:1: run: expected a mapping"),
    conf(
        "wrong type: a pipeline",
        "run:\n  flow: dev\n",
        "conf/pipelines.yml:2: run.flow: expected a mapping",
        "got str",
    ),
    conf(
        "wrong type: an environment",
        "run:\n  flow:\n    dev: [total]\n",
        "conf/pipelines.yml:3: run.flow.dev: expected a mapping",
        "got a list",
    ),
    conf(
        "wrong type: inputs",
        "run:\n  flow:\n    dev:\n      inputs: [count]\n",
        "conf/pipelines.yml:4: run.flow.dev.inputs: expected a mapping",
    ),
    conf(
        "wrong type: a final variable",
        "run:\n  flow:\n    dev:\n      final_vars:\n        - total\n        - [a]\n",
        "conf/pipelines.yml:6: run.flow.dev.final_vars.1: expected str",
    ),
    conf(
        "wrong type: timeout",
        "run:\n  flow:\n    dev:\n      timeout: soon\n",
        "conf/pipelines.yml:4: run.flow.dev.timeout: expected float",
    ),
    conf(
        "wrong type: retry",
        "run:\n  flow:\n    dev:\n      retry: 3\n",
        "conf/pipelines.yml:4: run.flow.dev.retry: expected a mapping",
        "got int",
    ),
    conf(
        "wrong type: a node's retry",
        "run:\n  flow:\n    dev:\n      nodes:\n        total:\n          retry: {backoff: x}\n",
        "conf/pipelines.yml:6: run.flow.dev.nodes.total.retry.backoff: expected float",
    ),
    other(
        "wrong type: a pipeline named by a number",
        "pipelines.yml",
        "run:\n  1:\n    dev: 5\n",
        "conf/pipelines.yml:3: run.1.dev: expected a mapping",
    ),
    conf(
        "wrong type: params of a function",
        "params:\n  flow:\n    total: 5\n",
        "conf/pipelines.yml:3: params.flow.total: expected a mapping",
        "got int",
    ),
    other(
        "wrong type: port",
        "mqtt.yml",
        "broker:\n  port: 99999\n",
        "conf/mqtt.yml:2: broker.port: expected int <= 65535",
    ),
    other(
        "wrong value: data store",
        "scheduler.yml",
        "data_store:\n  type: sqllite\n",
        "conf/scheduler.yml:2: data_store.type: ",
        "'sqllite'",
        "did you mean 'sqlite'?",
    ),
    conf(
        "wrong value: negative timeout",
        "run:\n  flow:\n    dev:\n      timeout: -5\n",
        "conf/pipelines.yml:4: run.flow.dev.timeout: expected float > 0",
    ),
    conf(
        "wrong value: timeout is not a number",
        "run:\n  flow:\n    dev:\n      inputs: {count: 1}\n      timeout: .nan\n",
        "conf/pipelines.yml:5: run.flow.dev.timeout: ",
    ),
    conf(
        "wrong value: a day that does not exist",
        "run:\n  flow:\n    dev:\n      inputs: {count: 2024-13-45}\n",
        "conf/pipelines.yml:4:",
        "this is no timestamp; a text stands in quotes",
    ),
    conf(
        "wrong value: a cache in a file's place",
        "run:\n  flow:\n    dev:\n      inputs: {count: 1}\n      cache: pipelines/flow.py\n",
        "cache",
        "pipelines/flow.py",
    ),
    conf(
        "wrong value: no attempt at all",
        "run:\n  flow:\n    dev:\n      retry: {max_attempts: 0}\n",
        "conf/pipelines.yml:4: run.flow.dev.retry.max_attempts: expected int >= 1",
    ),
    conf(
        "variable that is not set",
        "run:\n  flow:\n    dev:\n      inputs: {count: '${FLOW_COUNT}'}\n",
        "conf/pipelines.yml:4: run.flow.dev.inputs.count: ",
        "FLOW_COUNT is not set",
        "${FLOW_COUNT:-default}",
    ),
    Case(
        "variable of the wrong type",
        "run flow",
        ("conf/pipelines.yml:4: run.flow.dev.timeout: expected float",),
        files={"conf/pipelines.yml": "run:\n  flow:\n    dev:\n      timeout: ${FLOW_TIMEOUT}\n"},
        variables={"FLOW_TIMEOUT": "soon"},
    ),
    conf("list: broken configuration", "run: [\n", "conf/pipelines.yml:2:1", command="list"),
    conf("show: broken configuration", "run: [\n", "conf/pipelines.yml:2:1", command="show flow"),
]

NAMES = [
    call("unknown pipeline", "run flwo", "unknown pipeline 'flwo'", "did you mean 'flow'?"),
    call("unknown pipeline, none near", "run xyz", "unknown pipeline 'xyz'", "valid: flow"),
    call("unknown pipeline: show", "show flo", "unknown pipeline 'flo'", "did you mean 'flow'?"),
    call(
        "unknown pipeline: delete",
        "delete flwo --yes",
        "unknown pipeline 'flwo'",
        "did you mean 'flow'?",
    ),
    call("pipeline outside of the folder", "run ../flow", "unknown pipeline '../flow'"),
    call(
        "unknown environment",
        "run flow -e prd",
        "unknown environment 'prd' of pipeline 'flow'",
        "run.flow",
        "did you mean 'prod'?",
    ),
    call(
        "unknown executor",
        "run flow --executor threadpol",
        "unknown executor 'threadpol'",
        "did you mean 'threadpool'?",
    ),
    conf(
        "unknown executor in the configuration",
        "run:\n  flow:\n    dev:\n      inputs: {count: 1}\n      executor: {type: proces}\n",
        "unknown executor 'proces'",
        "did you mean 'processpool'?",
    ),
    call(
        "unknown format",
        "show flow --format mermade",
        "unknown format 'mermade'",
        "did you mean 'mermaid'?",
    ),
    call("unknown format: by the file's ending", "show flow -o flow.pdf", "pdf", "svg"),
    call(
        "unknown final variable",
        "run flow --final-vars totl",
        "unknown final variable 'totl' of pipeline 'flow'",
        "did you mean 'total'?",
    ),
    call(
        "unknown input",
        "run flow --inputs cout=3",
        "unknown input 'cout' of pipeline 'flow'",
        "did you mean 'count'?",
    ),
    call(
        "input that a function computes",
        "run flow --inputs doubled=3",
        "'doubled' of pipeline 'flow' is computed by a function, not an input",
    ),
    call(
        "unknown function of a parameter",
        "run flow --param totl.extra=3",
        "totl",
        "did you mean 'total'?",
    ),
    conf(
        "unknown node with a timeout",
        "run:\n  flow:\n    dev:\n      nodes:\n        totl: {timeout: 5}\n",
        "unknown node 'totl'",
        "run.flow",
        "did you mean 'total'?",
    ),
    conf(
        "unknown module",
        "run:\n  flow:\n    dev:\n      modules: [flow, flwo]\n",
        "'flwo'",
        "run.flow.dev.modules",
        "did you mean 'flow'?",
    ),
    call("a key twice", "add-job flow --inputs count=1,count=2", "'count' is given twice in"),
    call("--all and a trigger", "schedule --all --type cron", "--type is not for --all"),
    call("--all and now", "schedule --all --now", "--now is not for --all"),
    call("--all and inputs", "schedule --all --inputs count=1", "--inputs is not for --all"),
    call("--all and dev", "schedule --all -e dev", "--environment is not for --all"),
    call(
        "a host without a port",
        "start-worker --metrics-host 0.0.0.0",
        "--metrics-host is nothing without --metrics-port",
    ),
    call("a limit that no store has", "jobs --limit 9223372036854775808", "limit is a number from"),
    call("a limit of letters", "letters --limit 9223372036854775808", "limit is a number from"),
    call("unknown command", "rnu flow", "no such command 'rnu'", "did you mean 'run'?"),
    call("unknown option", "run flow --input count=3", "--input", "--inputs"),
    call("argument left out", "run", "NAME"),
    call("argument too many", "run flow prod", "prod"),
]

PIPELINES = [
    flow(
        "module: syntax error",
        "def total(count: int) -> int:\n    return (count\n",
        "cannot import pipeline module 'flow': SyntaxError: '(' was never closed",
        "pipelines/flow.py:2: return (count",
    ),
    flow(
        "module: indentation",
        "def total() -> int:\n    a = 1\n   return a\n",
        "IndentationError",
        "pipelines/flow.py:3",
    ),
    flow(
        "module: not UTF-8", b"NAME = '\xff'\n", "'flow': SyntaxError", "utf-8", "pipelines/flow.py"
    ),
    flow("module: a zero byte", b"a = 1\0\n", "cannot import pipeline module 'flow'", "null"),
    flow(
        "module: raises when imported",
        "import math\n\nRATE = math.sqrt(-1)\n",
        "cannot import pipeline module 'flow': ValueError: ",
        "pipelines/flow.py:3: RATE = math.sqrt(-1)",
    ),
    flow(
        "module: missing dependency",
        "import os\n\nimport nosuchlibrary.parts\n",
        "No module named 'nosuchlibrary'",
        "pipelines/flow.py:3: import nosuchlibrary.parts",
    ),
    flow(
        "module: missing name in a dependency",
        "from json import nothing\n",
        "ImportError: cannot import name 'nothing' from 'json'",
        "pipelines/flow.py:1",
    ),
    flow(
        "module: error in a module that it imports",
        "import helpers\n",
        "ZeroDivisionError",
        "pipelines/helpers.py:1: 1 / 0",
        **{"pipelines/helpers.py": "1 / 0\n"},
    ),
    flow(
        "module: imports in a circle",
        "from helpers import a\n",
        "ImportError: cannot import name",
        "pipelines/helpers.py:1: from flow import b",
        **{"pipelines/helpers.py": "from flow import b\n"},
    ),
    flow(
        "module: sys.exit",
        "import sys\n\nsys.exit('no licence')\n",
        "cannot import pipeline module 'flow': SystemExit: no licence",
        "pipelines/flow.py:3: sys.exit('no licence')",
    ),
    flow(
        "module: an exception that is none",
        "class Stop(BaseException):\n    pass\n\n\nraise Stop('now')\n",
        "cannot import pipeline module 'flow': Stop: now",
        "pipelines/flow.py:5: raise Stop('now')",
    ),
    flow("module: empty", "", "'flow'", "no function"),
    flow(
        "DAG: cycle",
        """
        def a(b: int) -> int:
            return b


        def b(c: int) -> int:
            return c


        def c(a: int) -> int:
            return a
        """,
        "pipeline 'flow' has a cycle: a -> b -> c -> a",
    ),
    flow(
        "DAG: a node that reads itself",
        "def total(total: int) -> int:\n    return total\n",
        "pipeline 'flow' has a cycle: total -> total",
    ),
    flow(
        "DAG: types do not match",
        """
        def name() -> str:
            return "x"


        def total(name: int) -> int:
            return name
        """,
        "pipeline 'flow'",
        "total",
        "name",
        "str",
        "int",
    ),
    flow(
        "DAG: types of an input do not match",
        """
        def a(count: int) -> int:
            return count


        def b(count: str) -> str:
            return count
        """,
        "pipeline 'flow'",
        "count",
        "str",
        "int",
    ),
    flow(
        "DAG: one function in two modules",
        FLOW,
        "pipeline 'flow'",
        "total",
        "module_overrides",
        **{
            "pipelines/more.py": "def total(count: int) -> int:\n    return count\n",
            "conf/pipelines.yml": "run:\n  flow:\n    dev:\n      modules: [flow, more]\n",
        },
    ),
    flow(
        "DAG: parameter without a type",
        "def total(count) -> int:\n    return count\n",
        "pipeline 'flow'",
        "type hint",
        "count",
        "total",
    ),
    flow(
        "DAG: result without a type",
        "def total(count: int):\n    return count\n",
        "pipeline 'flow'",
        "type hint",
        "total",
    ),
    flow(
        "DAG: type that does not exist",
        "from __future__ import annotations\n\n\ndef total(count: Munber) -> int:\n    return 1\n",
        "pipeline 'flow'",
        "Munber",
        "total",
    ),
    flow(
        "DAG: async generator",
        "async def total(count: int) -> list[int]:\n    yield count\n",
        "node 'total' of pipeline 'flow' is an async generator",
    ),
    flow(
        "PARAMS: no such entry",
        """
        from fp_async import load_params

        PARAMS = load_params(__file__)
        FACTOR = PARAMS.total.factr
        """,
        "no entry params.flow.total.factr in conf/pipelines.yml",
        "did you mean 'factor'?",
        **{"conf/pipelines.yml": "params:\n  flow:\n    total: {factor: 2}\n"},
    ),
    flow(
        "PARAMS: no such function",
        """
        from hamilton.function_modifiers import parameterize

        from fp_async import load_params

        PARAMS = load_params(__file__)


        @parameterize(**PARAMS.totl)
        def total(factor: int) -> int:
            return factor
        """,
        "no entry params.flow.totl in conf/pipelines.yml",
    ),
    flow(
        "decorator: argument that the function has not",
        """
        from hamilton.function_modifiers import parameterize, value


        @parameterize(total={"factr": value(2)})
        def total(factor: int) -> int:
            return factor
        """,
        "'flow'",
        "total",
        "factr",
    ),
    flow(
        "decorator: fields of what is no dict",
        """
        from hamilton.function_modifiers import extract_fields


        @extract_fields({"a": int})
        def total(count: int) -> int:
            return count
        """,
        "'flow'",
        "dict",
        "pipelines/flow.py:4: @extract_fields",
    ),
    flow(
        "decorator: not called",
        """
        from hamilton.function_modifiers import parameterize


        @parameterize
        def total(count: int) -> int:
            return count
        """,
        "'flow'",
        "pipelines/flow.py:4: @parameterize",
    ),
]

INPUTS = [
    flow(
        "input: missing",
        "def total(count: int, unit: str) -> str:\n    return unit * count\n",
        "pipeline 'flow' needs inputs that were not given",
        "unit: str (for total)",
    ),
    call(
        "input: wrong type",
        "run flow --inputs count=three",
        "inputs of the wrong type for pipeline 'flow'",
        "count: expected int, got str",
    ),
    call(
        "input: wrong type in JSON",
        """run flow --inputs '{"count": [1]}'""",
        "count: expected int, got list",
    ),
    conf(
        "input: wrong type in the configuration",
        "run:\n  flow:\n    dev:\n      inputs: {count: many}\n",
        "count: expected int, got str",
    ),
    call(
        "--inputs: no value",
        "run flow --inputs count",
        "--inputs: cannot read 'count'",
        "name=value",
    ),
    call("--inputs: no name", "run flow --inputs =3", "--inputs: cannot read '=3'"),
    call("--inputs: a list", "run flow --inputs [1,2]", "--inputs: cannot read '[1,2]'"),
    call(
        "--inputs: broken JSON",
        """run flow --inputs '{"count": 3'""",
        "--inputs: the value is not valid JSON",
    ),
    call(
        "--inputs: bottomless JSON",
        f"""run flow --inputs '{{"count": {"[" * 50_000}{"]" * 50_000}}}'""",
        "--inputs: the value is not valid JSON",
        "nested too deeply",
    ),
    call(
        "--inputs: a file that is missing",
        "run flow --inputs @missing.json",
        "--inputs: cannot read ",
        "/missing.json: No such file or directory",
    ),
    call(
        "--inputs: a folder",
        "run flow --inputs @conf",
        "--inputs: cannot read ",
        "conf: Is a directory",
        "direct",
    ),
    call(
        "--inputs: a broken file",
        "run flow --inputs @in.json",
        "in.json is not valid JSON",
        files={"in.json": "{count: 3}"},
    ),
    call(
        "--inputs: a file that is not text",
        "run flow --inputs @in.json",
        "in.json is not valid JSON",
        files={"in.json": b'{"\xff": 3}'},
    ),
    call(
        "--inputs: a file with a list",
        "run flow --inputs @in.json",
        "in.json must be a JSON object",
        files={"in.json": "[1, 2]"},
    ),
    call("--param: no function", "run flow --param extra=3", "--param extra: write FUNCTION."),
    call("--timeout: negative", "run flow --timeout -1", "--timeout", "-1"),
    call("--timeout: a word", "run flow --timeout soon", "--timeout", "'soon'"),
    call("--timeout: not a number", "run flow --timeout nan", "--timeout", "nan"),
    call("--output: unknown ending", "run flow --output out.xls", "out.xls: use table", "FILE.csv"),
    call(
        "--output: a missing folder", "run flow --output no/out.csv", "there is no folder ", "/no"
    ),
    call(
        "--output: a folder in its place",
        "run flow --output out.json",
        "out.json: Is a directory",
        files={"out.json": FOLDER},
    ),
    call(
        "--output: csv of a number",
        "run flow --output out.csv",
        "out.csv: 'total' is int, which is no table",
    ),
    call(
        "--output: csv of two variables",
        "run flow --final-vars doubled,total --output out.csv",
        "out.csv: a table holds one value",
        "doubled, total",
    ),
    flow(
        "--output: csv that breaks off",
        "def total() -> list:\n    return [{'a': 1}, {'a': chr(0xD800)}]\n",
        "out.csv: ",
        "surrogates not allowed",
        command="run flow --output out.csv",
    ),
    *[
        flow(
            f"--output: json of {name}",
            f"def total() -> object:\n    {make}\n    return value\n",
            "--output json: ",
            said,
            command="run flow --output json",
        )
        for name, make, said in (
            ("an object", "value = object()", "type object"),
            ("a list in itself", "value = []; value.append(value)", "recursion"),
            ("half a character", "value = chr(0xD800)", "surrogate"),
        )
    ],
    flow(
        "a result that cannot be printed",
        """
        class Broken:
            def __str__(self) -> str:
                raise ValueError("no text")


        def total() -> object:
            return Broken()
        """,
        "total",
        "ValueError: no text",
    ),
    flow(
        "a result with half a character",
        "def total() -> str:\n    return chr(0xD800)\n",
        "total",
        "surrogates not allowed",
    ),
    call(
        "an option that executors do not have",
        "run flow --executor dask --executor-option max_worker=2",
        "--executor-option: max_worker: unknown key; did you mean 'max_workers'?",
    ),
    call(
        "an option for another executor",
        "run flow --executor-option resources.num_cpus=2",
        "executor 'threadpool' has no resources; ray and dask have",
    ),
]

RAISED = "node 'total' of pipeline 'flow' raised "
NODES = [
    node(
        "raises",
        "\nrate = count - 3\nreturn 1 / rate",
        f"{RAISED}ZeroDivisionError: division by zero",
        "at pipelines/flow.py:9: return 1 / rate",
        "inputs: count: int",
    ),
    node("raises without a text", "raise ValueError", f"{RAISED}ValueError\n", ":8: raise Value"),
    node(
        "raises a chain",
        """
        try:
            return {}["key"]
        except KeyError as error:
            raise ValueError("no key") from error
        """,
        f"{RAISED}ValueError: no key",
        """pipelines/flow.py:11: raise ValueError("no key") from error""",
    ),
    node(
        "raises a text of several lines",
        'raise ValueError("first\\nsecond")',
        f"{RAISED}ValueError: first\nsecond",
        "pipelines/flow.py:8: raise ValueError",
    ),
    node(
        "raises a group",
        'raise ExceptionGroup("many", [ValueError("a"), KeyError("b")])',
        f"{RAISED}ExceptionGroup: many",
        "pipelines/flow.py:8: ",
    ),
    node(
        "raises in a library",
        'import json\n\nreturn json.loads("{")',
        f"{RAISED}JSONDecodeError",
        'pipelines/flow.py:10: return json.loads("{")',
    ),
    node(
        "raises what has no text",
        """
        class Broken(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        raise Broken
        """,
        f"{RAISED}Broken",
        "pipelines/flow.py:12: raise Broken",
    ),
    node(
        "raises what has no text, in a process",
        """
        class Broken(Exception):
            def __str__(self) -> str:
                raise RuntimeError("no text")

        raise Broken
        """,
        RAISED,
        "Broken",
        "pipelines/flow.py:12: raise Broken",
        options="--executor processpool",
    ),
    node("raises StopIteration", "raise StopIteration(5)", f"{RAISED}StopIteration: 5", ":8: "),
    node(
        "raises StopIteration on the loop",
        "raise StopIteration(5)",
        f"{RAISED}StopIteration: 5",
        ":8: ",
        options="--executor local",
    ),
    *[
        node(f"{what}, {where}", body, f"{RAISED}{said}", ":8: ", options=options, kind=kind)
        for what, body, said in (
            ("SystemExit", "sys.exit(3)", "SystemExit: 3"),
            ("BaseException", 'raise BaseException("stop")', "BaseException: stop"),
            ("CancelledError", "raise asyncio.CancelledError", "CancelledError"),
        )
        for where, kind, options in (
            ("in a thread", "def", ""),
            ("on the loop", "def", "--executor local"),
            ("async", "async def", ""),
            ("in a process", "def", "--executor processpool"),
            ("in Hamilton's driver", "async def", "--executor hamilton"),
        )
    ],
    node(
        "raises in a process",
        "return 1 / (count - 3)",
        f"{RAISED}ZeroDivisionError",
        "pipelines/flow.py:8: return 1 / (count - 3)",
        options="--executor processpool",
    ),
    node(
        "raises in Hamilton's driver",
        "return 1 / (count - 3)",
        f"{RAISED}ZeroDivisionError",
        "pipelines/flow.py:8: return 1 / (count - 3)",
        options="--executor hamilton",
    ),
    *[
        flow(
            f"{what} in one of parallel branches",
            f"""
            import sys

            from hamilton.htypes import Collect, Parallelizable


            def item(count: int) -> Parallelizable[int]:
                yield from range(count)


            def share(item: int) -> float:
                {body}


            def total(share: Collect[float]) -> float:
                return sum(share)
            """,
            f"node 'share' of pipeline 'flow' raised {said}",
            f"pipelines/flow.py:11: {body}",
            code=1,
        )
        for what, body, said in (
            ("an error", "return 1 / item", "ZeroDivisionError"),
            ("SystemExit", "sys.exit(3)", "SystemExit: 3"),
        )
    ],
    node(
        "process that leaves",
        "os._exit(7)",
        "node 'total' of pipeline 'flow'",
        "process died (exit code 7)",
        options="--executor processpool",
    ),
    node(
        "process that is killed",
        "os.kill(os.getpid(), signal.SIGKILL)",
        "node 'total' of pipeline 'flow'",
        "process died (killed by SIGKILL)",
        options="--executor processpool",
    ),
    node(
        "value that cannot leave its process",
        "return lambda: 1",
        "node 'total' of pipeline 'flow'",
        "its value (function) cannot leave its process",
        options="--executor processpool",
    ),
    node(
        "run timeout, async",
        "await asyncio.sleep(50)",
        "run of pipeline 'flow' took longer than its timeout of 0.2 s",
        code=124,
        options="--timeout 0.2",
        kind="async def",
    ),
    node(
        "run timeout, in a thread",
        "time.sleep(50)",
        "took longer than its timeout of 0.2 s",
        "abandoned in threads: total",
        code=124,
        options="--timeout 0.2",
    ),
    node(
        "run timeout, in a process",
        "time.sleep(50)",
        "took longer than its timeout of 1 s",
        code=124,
        options="--timeout 1 --executor processpool",
    ),
    *[
        Case(
            f"node timeout, {where}",
            "run flow",
            ("node 'total' of pipeline 'flow'", "took longer than its timeout of 0.2 s"),
            code=124,
            files={
                "conf/pipelines.yml": "run:\n  flow:\n    dev:\n"
                f"      nodes:\n        total: {{timeout: 0.2}}\n      executor: {executor}\n",
                "pipelines/flow.py": source,
            },
        )
        for where, executor, source in (
            (
                "async",
                "threadpool",
                "import asyncio\n\n\nasync def total() -> None:\n    await asyncio.sleep(50)\n",
            ),
            (
                "in a thread",
                "threadpool",
                "import time\n\n\ndef total() -> None:\n    time.sleep(50)\n",
            ),
            (
                "in a process",
                "processpool",
                "import time\n\n\ndef total() -> None:\n    time.sleep(50)\n",
            ),
        )
    ],
]

FOLDERS = [
    *[
        call(f"no project: {command}", command, "is no project", "flowerpower init", bare=True)
        for command in ("run flow", "list", "check", "show flow", "new flow", "delete flow --yes")
    ],
    call("--base-dir: no project", "run flow --base-dir conf", "conf is no project"),
    call("--base-dir: missing", "list --base-dir nowhere", "nowhere is no project"),
    call("init: a project already", "init", "is a project already", "--overwrite"),
    call("init: a file in its place", "init here", "here", files={"here": "text"}, bare=True),
    call(
        "init: read-only folder",
        "init here",
        "cannot write",
        "ermission denied",
        modes={".": 0o555},
        bare=True,
    ),
    call(
        "init: read-only conf/",
        "init --overwrite",
        "cannot write",
        "conf",
        "ermission denied",
        modes={"conf": 0o555},
    ),
    *[
        call(
            f"new: read-only {folder}/",
            "new another",
            "cannot write",
            folder,
            "ermission denied",
            modes={folder: 0o555},
        )
        for folder in ("conf", "pipelines")
    ],
    call(
        "delete: read-only pipelines/",
        "delete flow --yes",
        "pipelines/flow.py",
        "ermission denied",
        modes={"pipelines": 0o555},
    ),
    call("new: exists", "new flow", "pipeline 'flow' exists already", "--overwrite"),
    *[
        call(f"new: the name {name}", f"new '{name}'", f"'{name}' cannot be a pipeline's name")
        for name in ("my-flow", "class", "../evil", "2nd", "_hidden", "")
    ],
    *[
        conf(f"{command.split()[0]}: {what}", text, "conf/pipelines.yml", said, command=command)
        for command in ("new another", "delete flow --yes")
        for what, text, said in (
            ("broken YAML", "run:\n  flow: [\n", "not valid YAML"),
            ("duplicate key", "run:\n  flow:\n  flow:\n", "flow"),
            ("not UTF-8", b"run:\n  flow: \xff\n", "utf-8"),
            ("a list", "- run\n", "mapping"),
            ("a list in a section", "run:\n  - flow\n", "run: expected"),
            ("a folder in its place", FOLDER, "directory"),
        )
    ],
    call(
        "delete: broken tracker.yml",
        "delete flow --yes",
        "conf/tracker.yml",
        "not valid YAML",
        files={"conf/tracker.yml": "pipeline:\n  flow: [\n"},
    ),
    call("delete: nobody to ask", "delete flow", "delete asks", "--yes"),
    call(
        "delete: outside of pipelines/",
        "delete ../setup --yes",
        "../setup",
        files={"setup.py": "import this\n"},
    ),
    call(
        "delete: a pipeline that is a folder",
        "delete pack --yes",
        "pipelines/pack/",
        files={"pipelines/pack/__init__.py": FLOW},
    ),
    call("tracker: nobody", "run flow --with-tracker", "conf/tracker.yml", "needs `username`"),
    call(
        "tracker: no project",
        "add-job flow --with-tracker",
        "`pipeline.flow.project_id`",
        "flowerpower tracker setup flow",
        files={"conf/tracker.yml": "username: me\n"},
    ),
    call(
        "tracker: a UI that is not there",
        "tracker setup flow --username me --api-url http://127.0.0.1:9",
        "http://127.0.0.1:9 does not answer: Connection refused",
        code=3,
    ),
    call("tracker: no such pipeline", "tracker setup flwo --username me", "did you mean 'flow'?"),
    call(
        "hamilton-ui: a deployment without its file",
        "hamilton-ui --no-open --port 0 --base-dir ui --settings-file deploy",
        "needs a --config-file",
    ),
    call(
        "hamilton-ui: an address of another machine",
        "hamilton-ui --no-open --host 192.0.2.1",
        "cannot listen on 192.0.2.1:8241",
    ),
    other(
        "tracker.yml: no address",
        "tracker.yml",
        "api_url: localhost:8241\n",
        "conf/tracker.yml:1: api_url: an address begins with http://",
    ),
    call("show: a missing folder", "show flow -o no/flow.svg", "no/flow.svg: No such"),
]

WARNED = {"conf/pipelines.yml": CONF.replace("count: 30", "cuont: 30")}
CHECKS = [
    Case(
        "check: errors",
        "check",
        ("error: ", "run.flow.dev", "has a cycle: total -> total", "1 errors"),
        files={
            "conf/pipelines.yml": "",
            "pipelines/flow.py": "def total(total: int) -> int:\n    return 1\n",
        },
        stream="stdout",
    ),
    Case(
        "check: an error in every file",
        "check",
        ("conf/pipelines.yml:1", "conf/tracker.yml:1", "conf/mqtt.yml:1", "3 errors"),
        files={f"conf/{name}.yml": "nonsense: 1\n" for name in ("pipelines", "tracker", "mqtt")},
        stream="stdout",
    ),
    Case(
        "check: unknown final variable",
        "check",
        ("error: run.flow.dev: unknown final variable 'totl'", "did you mean 'total'?"),
        files={"conf/pipelines.yml": "run:\n  flow:\n    dev:\n      final_vars: totl\n"},
        stream="stdout",
    ),
    Case(
        "check: a module that raises",
        "check",
        ("error: run.flow.dev: cannot import pipeline module 'flow'", "pipelines/flow.py:1: 1 / 0"),
        files={"pipelines/flow.py": "1 / 0\n"},
        stream="stdout",
    ),
    Case(
        "check: warnings only",
        "check",
        ("warning: run.flow.prod.inputs.cuont", "did you mean 'count'?", "0 errors, 1 warnings"),
        code=0,
        files=WARNED,
        stream="stdout",
    ),
    Case(
        "check --strict: warnings only",
        "check --strict",
        ("warning: run.flow.prod.inputs.cuont", "0 errors, 1 warnings"),
        files=WARNED,
        stream="stdout",
    ),
]

CASES = [*CONFIGURATION, *NAMES, *PIPELINES, *INPUTS, *NODES, *FOLDERS, *CHECKS]


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str
    before: dict[str, bytes | None]
    after: dict[str, bytes | None]


def written(root: Path, case: Case) -> Path:
    for name, text in {**({} if case.bare else PROJECT), **case.files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is FOLDER:
            path.mkdir()
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def command_line(command: str) -> list[str]:
    return [sys.executable, "-m", "fp_async", *shlex.split(command)]


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}


def contents(root: Path) -> dict[str, bytes | None]:
    """Every file below `root`, hidden ones and folders included."""
    found = sorted(root.rglob("*"))
    return {str(p.relative_to(root)): None if p.is_dir() else p.read_bytes() for p in found}


def outcome(case: Case, root: Path) -> Outcome:
    """Run the case. It ends when every process that holds its stderr has ended."""
    before = contents(written(root, case))
    bound = [sys.executable, "-c", BOUND_BY_PERMISSIONS] if case.modes else []
    for name, mode in case.modes.items():
        (root / name).chmod(mode)
    try:
        done = subprocess.run(
            bound + command_line(case.command),
            cwd=root,
            env=environment(**case.variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    finally:
        for name in case.modes:
            (root / name).chmod(0o755)
    return Outcome(done.returncode, done.stdout, done.stderr, before, contents(root))


def test_every_case_has_its_own_name() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 55


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, tmp_path: Path) -> None:
    done = outcome(case, tmp_path)
    said = getattr(done, case.stream)
    for fragment in case.says:
        assert fragment in said
    for stream in (done.stdout, done.stderr):
        assert not NEVER.search(stream), stream
    assert done.code == case.code
    if case.stream == "stderr":
        assert len(re.findall(r"(?mi)^error: ", done.stderr)) == 1, done.stderr
    assert done.after == done.before


def test_the_traceback_on_request_is_the_users_own(tmp_path: Path) -> None:
    source = """
    def total(count: int) -> int:
        try:
            return {}["key"]
        except KeyError as error:
            raise ValueError("no key") from error
    """
    case = flow("traceback", source, command="run flow --traceback")
    done = outcome(case, tmp_path)
    assert done.code == 1
    assert 'pipelines/flow.py", line 5, in total' in done.stderr
    assert "direct cause" in done.stderr
    assert "fp_async/" not in done.stderr
    assert "/hamilton/" not in done.stderr


def test_a_full_disk_behind_stdout_is_an_error(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    written(tmp_path, Case("full", "run flow", ()))
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command_line("run flow"),
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=SECONDS,
        )
    assert done.returncode == 2
    assert "No space left on device" in done.stderr
    assert not NEVER.search(done.stderr)


STUCK = """\
import asyncio
import sys
import time


{kind} total(count: int) -> int:
    print("begun", file=sys.stderr, flush=True)
    {wait}
    return 1
"""
WHERE = {
    "async": ("async def", "await asyncio.sleep(50)", ""),
    "thread": ("def", "time.sleep(50)", ""),
    "loop": ("def", "time.sleep(50)", "--executor local"),
    "process": ("def", "time.sleep(50)", "--executor processpool"),
    "hamilton": ("async def", "await asyncio.sleep(50)", "--executor hamilton"),
}


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["SIGINT", "SIGTERM"],
)
def test_signal(where: str, number: int, code: int, said: str, tmp_path: Path) -> None:
    kind, wait, options = WHERE[where]
    written(tmp_path, flow("stuck", STUCK.format(kind=kind, wait=wait)))
    process = subprocess.Popen(
        command_line(f"run flow {options}"),
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stderr is not None
            assert "begun" in process.stderr.readline()
            process.send_signal(number)
            # stderr ends when the last process that holds it has ended, node processes included
            _, stderr = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == code
    assert f"error: {said}" in stderr
    assert not NEVER.search(stderr)
