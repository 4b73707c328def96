"""Every command and snippet of the user's document that concerns projects, pipelines, parameters,
runs, jobs, schedules, workers, data stores and event brokers, as written there: the package's name
aside, and with `await` before coroutine functions. Python snippets are typed into
`python -m asyncio`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import services

from fp_async import config, config_files, events, stores

PIPELINE = """
from hamilton.function_modifiers import parameterize
import pandas as pd
from fp_async import load_params

PARAMS = load_params(__file__)


def df(data_path: str, fs_protocol: str = "file") -> pd.DataFrame:
    return pd.read_csv(data_path).assign(read_by=fs_protocol)


@parameterize(**PARAMS.add_int_col)
def add_int_col(df: pd.DataFrame, col_name: str, values:str) -> pd.DataFrame:
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


def pasted(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """What comes of lines that are pasted into a shell."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-eu", "-c", textwrap.dedent(script)],
        check=False,
        cwd=cwd,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


def shell(script: str, cwd: Path) -> str:
    """Paste the lines into a shell in which the command is installed."""
    done = pasted(script, cwd)
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
    return make_flow(tmp_path)


def make_flow(folder: Path) -> Path:
    shell("flowerpower init new-project", folder)
    root = folder / "new-project"
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
    assert "0 errors" in output


def test_a1_the_documents_text_for_an_int_is_refused(flow):
    """The document writes `values:int` beside `values: bar`: a slip, which is told as one."""
    path = flow / "pipelines/my_flow.py"
    path.write_text(path.read_text().replace("values:str", "values:int"))
    for command in ("flowerpower run my_flow", "flowerpower add-job my_flow", "flowerpower check"):
        done = pasted(command, flow)
        assert done.returncode == 2
        told = done.stdout + done.stderr
        assert "param add_int_col.values: expected int, got 'bar'" in told


# Jobs, schedules, workers -----------------------------------------------------------------------


@contextmanager
def begun(command: list[str], cwd: Path, typed: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that works until the block ends; its stdin stays open."""
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        process.stdin.write(textwrap.dedent(typed))
        process.stdin.flush()
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)


@contextmanager
def worker(cwd: Path) -> Iterator[None]:
    """`flowerpower start-worker`, from when it is connected."""
    command = Path(sys.executable).with_name("flowerpower")
    with begun([str(command), "start-worker"], cwd) as process:
        assert "queues default" in process.stderr.readline()
        yield


@pytest.fixture(scope="module")
def worked(tmp_path_factory):
    """The document's pipeline, in a project with a worker."""
    root = make_flow(tmp_path_factory.mktemp("worked"))
    with worker(root):
        yield root


def test_run_as_a_job_in_a_shell(worked):
    output = shell("flowerpower run-job my_flow", worked)
    assert output == shell("flowerpower run my_flow", worked)


def test_add_a_job_and_fetch_its_result_in_a_shell(worked):
    output = shell(
        """
        job_id=$(flowerpower add-job my_flow)
        flowerpower result $job_id --wait 60
        """,
        worked,
    )
    assert output == shell("flowerpower run my_flow", worked)


def test_run_as_a_job_in_python(worked):
    output = type_in(
        """
        from fp_async.pipeline import Pipeline, run, run_job, add_job

        # or using the run_job function
        res = await run_job("my_flow")
        print(list(res), res["final_df"]["foo"].tolist())

        # or using the add_job function
        job_id = await add_job("my_flow") # job_id can be used to fetch the job result
        from fp_async import get_result
        print((await get_result(job_id, wait=60))["final_df"].equals(res["final_df"]))
        """,
        worked,
    )
    assert "['add_int_col', 'final_df'] ['bar']" in output
    assert "True" in output


def test_schedule_in_a_shell(flow):
    output = shell(
        """
        # schedule the pipeline to run every 30 seconds
        flowerpower schedule my_flow --type interval --interval-params seconds=30
        # schedule the pipeline to run at a specific time
        flowerpower schedule my_flow --type date --date-params year=2022,month=1,day=1,hour=0,minute=0,second=0
        # schedule the pipeline to run based on a cron
        flowerpower schedule my_flow --type cron --cron-params second=0,minute=0,hour=0,day=1,month=1,day_of_week=0
        # schedule the pipeline to run based on a crontab expression
        flowerpower schedule my_flow --type cron --crontab "0 0 1 1 0"
        """,
        flow,
    )
    assert "every 30 s" in output
    assert "it will not fire: its time has passed" in output
    nexts = [text.split()[1] for text in re.findall(r"next  .*", output)]
    assert nexts[4][:19].endswith("-01-01T00:00:00")  # a Monday: cron, in which 0 is Monday
    assert len(json.loads(shell("flowerpower schedules --output json", flow))) == 4


def test_schedule_in_python(flow):
    output = type_in(
        """
        from fp_async.scheduler import schedule, Pipeline

        # using the Pipeline class
        p = Pipeline("my_flow")
        one = await p.schedule("interval", seconds=30)

        # or using the schedule function
        two = await schedule("my_flow", "interval", seconds=30)
        print(one == two, (one.next_fire_time - one.created_at).total_seconds())
        """,
        flow,
    )
    assert any(f"True {seconds}." in output for seconds in (27, 28, 29, 30))


def test_start_a_worker_in_python(flow):
    lines = "from fp_async.scheduler import start_worker\nawait start_worker()\n"
    with begun([sys.executable, "-m", "asyncio"], flow, lines):
        job_id = shell("flowerpower add-job my_flow", flow).strip()
        assert "foo" in shell(f"flowerpower result {job_id} --wait 60", flow)


def test_a_worker_in_the_current_process_needs_no_data_store_and_no_event_broker(flow):
    (flow / "conf" / "scheduler.yml").write_text("data_store:\n  type: memory\n")
    output = type_in(
        """
        import asyncio
        from fp_async.pipeline import run_job
        from fp_async.scheduler import start_worker
        working = asyncio.create_task(start_worker(runner="inline"))
        print(list(await run_job("my_flow")), working.cancel())
        """,
        flow,
    )
    assert "['add_int_col', 'final_df'] True" in output
    assert not list(flow.glob("*.db"))


# Data stores and event brokers ------------------------------------------------------------------

SCHEDULER = """
data_store:
  type: postgres # postgres is  can be replaced with sqlalchemy
  uri: postgresql+asyncpq://user:password@localhost:5432/flowerpower

# other data store options

# - sqlite
# data_store:
#  type: sqlite # sqlite is can be replaced with sqlalchemy
#  uri: sqlite+aiosqlite:///flowerpower.db

# - mysql
# data_store:
#  type: mysql # mysql is can be replaced with sqlalchemy
#  uri: mysql+aiomysql://user:password@localhost:3306/flowerpower

# - mongodb
# data_store:
#   type: mongodb
#   uri: mongodb://localhost:27017/flowerpower

# - memory
# data_store:
#   type: memory

event_broker:
  type: redis
  uri: redis://localhost:6379
  # or use host and port instead of uri
  # host: localhost
  # port: 6379

# - mqtt
# event_broker:
#   type: mqtt
#   host: localhost
#   port: 1883
#   # optional username and password
#   username: edge
#   password: edge

# - memory
# event_broker:
#   type: memory
"""


def blocks(key: str) -> dict[str, str]:
    """Every block of a key, by type; commented ones without their `# `, as a user edits them."""
    plain = re.sub(r"^# ", "", SCHEDULER, flags=re.MULTILINE)
    found = re.findall(rf"^{key}:\n(?:[ #].*\n)+", plain, re.MULTILINE)
    return {re.search(r"type: (\w+)", block)[1]: block for block in found}


STORES, BROKERS = blocks("data_store"), blocks("event_broker")
REDIS_BY_HOST = re.sub(r"  uri: .*\n", "", BROKERS["redis"]).replace("  # host", "  host")
REDIS_BY_HOST = REDIS_BY_HOST.replace("  # port", "  port")


def configured(root: Path, text: str) -> config.SchedulerFile:
    (root / "conf").mkdir(exist_ok=True)
    (root / "conf" / "scheduler.yml").write_text(text)
    return config_files.read(root, "scheduler.yml")


REPLACED = [kind for kind in STORES if "can be replaced with sqlalchemy" in STORES[kind]]


def test_the_document_has_these_blocks():
    assert list(STORES) == ["postgres", "sqlite", "mysql", "mongodb", "memory"]
    assert list(BROKERS) == ["redis", "mqtt", "memory"]
    assert REPLACED == ["postgres", "sqlite", "mysql"]
    assert "port: 6379" in REDIS_BY_HOST


@pytest.mark.parametrize(
    ("kind", "named"), [*zip(STORES, STORES, strict=True), *((k, "sqlalchemy") for k in REPLACED)]
)
def test_every_data_store_of_the_document_is_accepted(kind, named, tmp_path):
    text = STORES[kind].replace(f"type: {kind}", f"type: {named}")
    file = configured(tmp_path, text)
    assert file.data_store.type == named
    assert stores.backend(file.data_store)[0] == kind
    assert stores.connect(file.data_store, tmp_path).shared == (kind != "memory")


@pytest.mark.parametrize("text", [*BROKERS.values(), REDIS_BY_HOST], ids=[*BROKERS, "redis, host"])
async def test_every_event_broker_of_the_document_is_accepted(text, tmp_path):
    broker = configured(tmp_path, text).event_broker
    made = events.transport(broker, "flowerpower")
    assert (made is None) == (broker.type == "memory")


def test_jobs_with_the_documents_data_store_and_event_broker(flow):
    """On the servers of this machine, whose addresses replace the document's."""
    broker = services.require("redis")
    with services.fresh_postgres() as uri:
        text = STORES["postgres"] + BROKERS["redis"]
        text = re.sub(r"(postgresql\+asyncpq)://.*", rf"\1{uri.removeprefix('postgresql')}", text)
        text = text.replace("redis://localhost:6379", broker)
        configured(flow, text)
        with worker(flow):
            output = shell("flowerpower run-job my_flow", flow)
    assert output == shell("flowerpower run my_flow", flow)
