"""Every command and snippet of the user's document that concerns projects, pipelines, parameters
and runs, as written there: the package's name aside, and with `await` before coroutine functions.
Python snippets are typed into `python -m asyncio`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PIPELINE = """
from hamilton.function_modifiers import parameterize
import pandas as pd
from fp_async import load_params

PARAMS = load_params(__file__)


def df(data_path: str, fs_protocol: str = "file") -> pd.DataFrame:
    return pd.read_csv(data_path).assign(read_by=fs_protocol)


@parameterize(**PARAMS.add_int_col)
def add_int_col(df: pd.DataFrame, col_name: str, values:int) -> pd.DataFrame:
    return df.assign(**{col_name: values})


def final_df(add_int_col: pd.DataFrame) -> pd.DataFrame:
    return add_int_col.tail(1)
"""

CONFIG = """
params:
  my_flow:
    add_int_col:
      col_name: foo
      values: bar

run:
  my_flow:
    # dev and prod are the run environments. You can define as many environments as you want
    dev:
      # define all the pipeline input parameters here
      inputs:
        data_path: path/to/data.csv
        fs_profile:
        fs_prtocol: local
      # here you define the pipeline functions, for which you want to store the final result
      final_vars:
        [
            add_int_col,
            final_df
        ]
      # wheter to use the Hamilton UI tracker or not. Note: Hamilton UI needs to be installed and running
      with_tracker: false
    prod:
      final_vars: [final_df]
"""


def shell(script: str, cwd: Path) -> str:
    """Paste the lines into a shell in which the command is installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-eu", "-c", textwrap.dedent(script)],
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def type_in(snippet: str, cwd: Path) -> str:
    """Type the lines into `python -m asyncio`."""
    done = subprocess.run(
        [sys.executable, "-m", "asyncio"],
        input=textwrap.dedent(snippet) + "\n",
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def flow(tmp_path):
    """The document's pipeline, in a project made by its commands."""
    shell("flowerpower init new-project", tmp_path)
    root = tmp_path / "new-project"
    (root / "pipelines" / "my_flow.py").write_text(PIPELINE)
    (root / "conf" / "pipelines.yml").write_text(CONFIG)
    (root / "path" / "to").mkdir(parents=True)
    (root / "path" / "to" / "data.csv").write_text("n\n1\n2\n")
    return root


def test_initialize_and_add_in_a_shell(tmp_path):
    shell(
        """
        flowerpower init new-project
        cd new-project
        flowerpower add my_flow
        # or
        flowerpower new my_flow
        flowerpower run my_flow
        """,
        tmp_path,
    )
    conf = tmp_path / "new-project" / "conf"
    assert {"pipelines.yml", "scheduler.yml", "tracker.yml"} <= {p.name for p in conf.iterdir()}
    assert (tmp_path / "new-project" / "pipelines" / "my_flow.py").exists()


def test_initialize_and_add_in_python(tmp_path):
    type_in('from fp_async import init\ninit("new-project")', tmp_path)
    type_in(
        """
        from fp_async.pipeline import PipelineManager, new

        # using the PipelineManager
        pm = PipelineManager()
        pm.new("my_flow")

        # or using the new function
        new("my_flow")
        """,
        tmp_path / "new-project",
    )
    assert (tmp_path / "new-project" / "pipelines" / "my_flow.py").exists()


def test_default_values_in_the_function_definition(tmp_path):
    shell("flowerpower init new-project", tmp_path)
    root = tmp_path / "new-project"
    (root / "pipelines" / "my_flow.py").write_text(
        "import pandas as pd\n"
        "def df() -> pd.DataFrame:\n    return pd.DataFrame({'n': [1]})\n"
        'def add_int_col(df: pd.DataFrame, col_name: str="foo", values:str="bar") -> pd.DataFrame:\n'
        "    return df.assign(**{col_name: values})\n"
    )
    assert "bar" in shell("flowerpower run my_flow", root)


def test_run_in_a_shell(flow):
    output = shell("flowerpower run my_flow", flow)
    assert output.index("add_int_col") < output.index("final_df")
    assert "foo" in output


def test_overwrite_the_default_parameters_in_a_shell(flow):
    output = shell(
        "flowerpower run my_flow --inputs data_path=path/to/data.csv,fs_protocol=local "
        "--final-vars final_df --enviroment prod",
        flow,
    )
    assert "local" in output
    assert "add_int_col" not in output


def test_run_in_python(flow):
    output = type_in(
        """
        from fp_async.pipeline import Pipeline, run, run_job, add_job

        # using the Pipeline class
        p = Pipeline("my_flow")
        res = await p.run()

        # or using the run function
        res = await run("my_flow")
        print(list(res), res["final_df"]["foo"].tolist())
        """,
        flow,
    )
    assert "['add_int_col', 'final_df'] ['bar']" in output


@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="its asyncio REPL takes no statement of several lines"
)
def test_overwrite_the_default_parameters_in_python(flow):
    output = type_in(
        """
        from fp_async.pipeline import run
        res=await run(
            "my_flow",
            inputs={"data_path": "path/to/data.csv", "fs_protocol": "local"},
            final_vars=["final_df"],
            environment="prod"
        )
        print(list(res), res["final_df"]["read_by"].tolist())
        """,
        flow,
    )
    assert "['final_df'] ['local']" in output


def test_check_only_warns_of_the_documents_typos(flow):
    output = shell("flowerpower check", flow)
    assert "run.my_flow.dev.inputs.fs_prtocol: no node reads this input" in output
    assert "params.my_flow.add_int_col.values: the function says int, the value is str" in output
    assert "0 errors" in output
