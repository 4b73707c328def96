"""The examples, run as their READMEs say, against calculations that share no code with them."""

from __future__ import annotations

import ast
import asyncio
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

from fp_async import NodeError, NodeEvent, Project

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = ["async_api", "sales_etl", "sensor_window"]
SALES, API, SENSOR = EXAMPLES / "sales_etl", EXAMPLES / "async_api", EXAMPLES / "sensor_window"

Rows = list[dict[str, str]]


def flowerpower(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fp_async", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def output_of(folder: Path, *arguments: object) -> str:
    done = flowerpower(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def rows_of(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# All of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_check_finds_nothing(name: str) -> None:
    output = output_of(EXAMPLES / name, "check", "--strict")
    assert output == "checked 1 pipelines: 0 errors, 0 warnings\n"


@pytest.mark.parametrize("name", NAMES)
def test_data_is_small(name: str) -> None:
    for path in (EXAMPLES / name / "data").iterdir():
        assert path.stat().st_size < 60_000, path


def readme_block(name: str) -> tuple[str, str]:
    """The commands of the README, and what it says that they print."""
    text = (EXAMPLES / name / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\ncd examples/(\w+)\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert block is not None
    assert block[1] == name
    return block[2], block[3]


def run_readme(name: str, folder: Path) -> tuple[str, str]:
    """What the README's commands print in a copy of the example, and what it says."""
    commands, said = readme_block(name)
    copy = folder / name
    shutil.copytree(EXAMPLES / name, copy)
    tools = 'flowerpower() { "$PY" -m fp_async "$@"; }\npython() { "$PY" "$@"; }\n'
    done = subprocess.run(
        ["bash", "-ec", tools + commands],
        cwd=copy,
        env={**os.environ, "PY": sys.executable},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, said


@pytest.mark.parametrize("name", ["sales_etl", "sensor_window"])
def test_readme_prints_what_it_says(name: str, tmp_path: Path) -> None:
    printed, said = run_readme(name, tmp_path)
    assert printed == said


def test_readme_of_the_async_api_prints_what_it_says(tmp_path: Path) -> None:
    printed, said = run_readme("async_api", tmp_path)
    assert settled(printed) == settled(said)
    assert "no plan today: " in printed


def settled(text: str) -> list[str]:
    """The lines of a run whose sources race each other, in no order and with no port."""
    lines = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1", text).splitlines()
    return sorted(line for line in lines if not line.startswith("no plan today: "))


# sales_etl ------------------------------------------------------------------------------------


class Sales:
    """The sales pipeline again, with csv and plain Python."""

    def __init__(self, folder: Path, since: date, until: date) -> None:
        self.regions = {
            row["customer_id"]: row["region"].strip().title() or "Unknown"
            for row in rows_of(folder / "customers.csv")
        }
        self.names = {r["customer_id"]: r["name"] for r in rows_of(folder / "customers.csv")}
        self.rates = {
            (row["month"], row["currency"]): float(row["eur_per_unit"])
            for row in rows_of(folder / "exchange_rates.csv")
        }
        rows = rows_of(folder / "orders.csv")
        orders = {row["order_id"]: row for row in rows}
        self.quality = {"rows": len(rows), "replaced": len(rows) - len(orders)}
        self.rejected: dict[str, str] = {}
        self.revenue: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
        self.customers: defaultdict[str, list[float]] = defaultdict(list)
        for order in orders.values():
            self._count(order, since, until)
        self.quality |= Counter(self.rejected.values())

    def _count(self, order: dict[str, str], since: date, until: date) -> None:
        try:
            at = datetime.strptime(order["ordered_at"] + "Z", "%Y-%m-%dT%H:%M:%S%z")
            quantity, price = float(order["quantity"]), float(order["unit_price"])
        except ValueError:
            self.rejected[order["order_id"]] = "unreadable date or number"
            return
        month = f"{at.year}-{at.month:02d}"
        rate = self.rates.get((month, order["currency"].strip().upper() or "EUR"))
        if not 1 <= quantity <= 500:
            self.rejected[order["order_id"]] = "implausible quantity"
        elif rate is None:
            self.rejected[order["order_id"]] = "no exchange rate"
        elif since <= at.date() <= until:
            customer = order["customer_id"]
            amount = quantity * price * rate
            self.revenue[self.regions.get(customer, "Unknown"), month].append(amount)
            if customer in self.names:
                self.customers[customer].append(amount)

    @property
    def table(self) -> list[dict[str, Any]]:
        return [
            {"region": region, "month": month, "orders": len(a), "revenue_eur": cents(sum(a))}
            for (region, month), a in sorted(self.revenue.items())
        ]

    def best(self, limit: int) -> list[dict[str, Any]]:
        ranked = sorted(self.customers.items(), key=lambda item: -sum(item[1]))
        return [
            {
                "customer_id": customer,
                "name": self.names[customer],
                "orders": len(a),
                "revenue_eur": cents(sum(a)),
            }
            for customer, a in ranked[:limit]
        ]


def cents(value: float) -> Any:
    return pytest.approx(value, abs=0.0051)


@pytest.fixture(scope="module")
def quarter() -> Sales:
    return Sales(SALES / "data", date(2025, 1, 1), date(2025, 3, 31))


@pytest.fixture(scope="module")
def year() -> Sales:
    return Sales(SALES / "data", date(2025, 1, 1), date(2025, 12, 31))


def test_sales_writes_revenue_by_region(tmp_path: Path, quarter: Sales) -> None:
    target = tmp_path / "revenue.csv"
    done = flowerpower(
        SALES, "run", "sales_etl", "--final-vars", "revenue_by_region", "--output", target
    )
    assert done.returncode == 0, done.stderr
    written = [
        {**row, "orders": int(row["orders"]), "revenue_eur": float(row["revenue_eur"])}
        for row in rows_of(target)
    ]
    assert written == quarter.table
    assert len(written) == 15


def test_sales_reports_the_quarter(quarter: Sales) -> None:
    report = json.loads(output_of(SALES, "run", "sales_etl", "--output", "json"))["report"]
    lines = report.splitlines()
    assert lines[0] == "Sales 2025-01-01 to 2025-03-31, EUR"
    total = next(line for line in lines if line.startswith("Total: "))
    expected = sum(sum(amounts) for amounts in quarter.revenue.values())
    assert float(total.removeprefix("Total: ").replace(",", "")) == pytest.approx(expected, abs=0.1)
    ranked = [line.strip() for line in lines if re.match(r" *\d+\. ", line)]
    assert [line.split("  ")[0] for line in ranked] == [
        f"{place}. {row['name']}" for place, row in enumerate(quarter.best(3), start=1)
    ]
    quality = dict(part.split(": ") for part in lines[-1].removeprefix("Export: ").split(", "))
    assert {name: int(count) for name, count in quality.items()} == quarter.quality


def test_sales_in_prod_takes_the_year(year: Sales) -> None:
    result = json.loads(
        output_of(SALES, "run", "sales_etl", "--environment", "prod", "--output", "json")
    )
    assert list(result) == ["revenue_by_region", "top_customers", "rejected_orders", "report"]
    assert result["revenue_by_region"] == year.table
    assert result["top_customers"] == year.best(10)
    rejected = {row["order_id"]: row["problem"] for row in result["rejected_orders"]}
    assert rejected == year.rejected
    assert set(rejected.values()) == {
        "unreadable date or number",
        "implausible quantity",
        "no exchange rate",
    }


def test_sales_with_inputs_and_parameters_of_the_command_line() -> None:
    may = Sales(SALES / "data", date(2025, 5, 1), date(2025, 5, 31))
    output = output_of(
        SALES,
        *("run", "sales_etl", "--inputs", "since=2025-05-01,until=2025-05-31"),
        *("--final-vars", "top_customers", "--param", "top_customers.limit=2", "--output", "json"),
    )
    assert json.loads(output)["top_customers"] == may.best(2)


def sales_inputs(folder: Path) -> dict[str, Any]:
    return {
        "orders_path": str(folder / "orders.csv"),
        "customers_path": str(folder / "customers.csv"),
        "rates_path": str(folder / "exchange_rates.csv"),
        "since": date(2025, 1, 1),
        "until": date(2025, 12, 31),
    }


async def test_sales_through_the_api(year: Sales) -> None:
    result = await Project(SALES).run(
        "sales_etl", sales_inputs(SALES / "data"), ["revenue_by_region", "data_quality"]
    )
    assert result["revenue_by_region"].to_dict(orient="records") == year.table
    assert result["data_quality"] == year.quality


async def test_sales_counts_an_order_once_and_on_its_day(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(SALES / "data", folder)
    (folder / "orders.csv").write_text(
        "order_id,ordered_at,customer_id,quantity,unit_price,currency\n"
        "O1,2025-01-01T00:00:00,C001,1,10.00,EUR\n"
        "O2,2025-01-31T23:59:59,C001,1,3.00,EUR\n"
        "O3,2025-02-01T00:00:00,C001,1,500.00,EUR\n"
        "O2,2025-01-31T23:59:59,C001,1,4.50,eur\n"
        "O4,2025-01-15T12:00:00,C999,2,1.00,\n"
    )
    january = {**sales_inputs(folder), "until": date(2025, 1, 31)}
    result = await Project(SALES).run("sales_etl", january, ["revenue_by_region", "data_quality"])
    region = next(row["region"] for row in rows_of(folder / "customers.csv"))
    assert result["revenue_by_region"].values.tolist() == [
        [region, "2025-01", 2, 14.5],
        ["Unknown", "2025-01", 1, 2.0],
    ]
    assert result["data_quality"] == {"rows": 5, "replaced": 1}


async def test_sales_refuses_a_broken_export(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(SALES / "data", folder)
    rows = rows_of(folder / "orders.csv")
    with (folder / "orders.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        # Decimal commas in every tenth price.
        writer.writerows(
            {**row, "unit_price": "9,90" if index % 10 == 0 else row["unit_price"]}
            for index, row in enumerate(rows)
        )
    with pytest.raises(NodeError, match="max_fraction_nans_validator") as failure:
        await Project(SALES).run("sales_etl", sales_inputs(folder), ["revenue_by_region"])
    assert failure.value.node == "amount_eur"


# async_api ------------------------------------------------------------------------------------


def load_server() -> Any:
    spec = importlib.util.spec_from_file_location("example_serve", API / "serve.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ShopApi: Callable[..., Any] = load_server().ShopApi
REQUIRED = {"users", "orders", "inventory"}
RETRIED_ORDERS = ("orders", "retrying")


def expected_plan(*, discounts: bool = True) -> dict[str, Any]:
    """The summary, worked out order by order."""

    def load(name: str) -> Any:
        return json.loads((API / "data" / f"{name}.json").read_text())

    users = {user["user_id"]: user for user in load("users")}
    goods = {item["sku"]: item for item in load("inventory")}
    off = {row["sku"]: row["percent_off"] for row in load("promotions")} if discounts else {}
    tiers = ["gold", "silver", "basic"]
    waiting = [order for order in load("orders") if order["status"] == "open"]
    waiting.sort(key=lambda o: o["ordered_at"])
    waiting.sort(key=lambda o: tiers.index(users[o["user_id"]]["tier"]))
    value, ships, missing = 0.0, 0, Counter[str]()
    for order in waiting:
        item = goods[order["sku"]]
        if order["quantity"] > item["on_hand"]:
            missing[order["sku"]] += order["quantity"]
            continue
        item["on_hand"] -= order["quantity"]
        ships += 1
        value += order["quantity"] * item["price_eur"] * (1 - off.get(order["sku"], 0) / 100)
    return {
        "ships": ships,
        "waits": len(waiting) - ships,
        "value_eur": pytest.approx(value, abs=0.1),
        "to_reorder": dict(missing),
        "discounts_known": discounts,
    }


async def summary(api: Any, environment: str = "dev", **options: Any) -> dict[str, Any]:
    result = await Project(API).run(
        "fulfilment",
        {"api_url": api.url},
        final_vars="summary",
        environment=environment,
        timeout=60,
        **options,
    )
    return result["summary"]


async def test_api_from_the_command_line() -> None:
    async with ShopApi() as api:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fp_async", "run", "fulfilment", "--output", "json"),
            cwd=API,
            env={**os.environ, "SHOP_API": api.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    result = json.loads(out)
    assert result["summary"] == expected_plan()
    assert sum(row["ships"] for row in result["shipments"]) == result["summary"]["ships"]


async def test_api_sources_are_asked_at_the_same_time() -> None:
    together = asyncio.Barrier(len(REQUIRED))
    events: list[NodeEvent] = []

    async def gate(source: str) -> None:
        if source in REQUIRED:
            await together.wait()  # nobody is answered before all of them were asked

    async with ShopApi(before_answer=gate) as api:
        assert await summary(api, progress=events.append) == expected_plan()
        log = [(what, source) for what, source in api.log if source in REQUIRED]
    assert set(log[:3]) == {("asked", source) for source in REQUIRED}
    assert set(log[3:]) == {("answered", source) for source in REQUIRED}
    told = [event.status for event in events if event.node in REQUIRED]
    assert told == ["started"] * 3 + ["succeeded"] * 3


async def test_api_tries_a_failing_source_again() -> None:
    events: list[NodeEvent] = []
    async with ShopApi(failures={"inventory": 2}) as api:
        assert await summary(api, progress=events.append) == expected_plan()
        asked = Counter(source for what, source in api.log if what == "asked")
    assert asked == {"users": 1, "orders": 1, "inventory": 3, "promotions": 1}
    retries = [event for event in events if event.status == "retrying"]
    assert [event.node for event in retries] == ["inventory", "inventory"]
    assert all("ApiUnavailableError" in event.error for event in retries)


def hold_first(held: str) -> Callable[[str], Awaitable[None]]:
    """A gate that never answers the first request for `held`."""
    seen: set[str] = set()

    async def gate(source: str) -> None:
        if source == held and source not in seen:
            seen.add(source)
            await asyncio.Event().wait()

    return gate


async def test_api_tries_again_after_a_timeout() -> None:
    events: list[NodeEvent] = []
    patient = {"promotions": {"patience": 5.0}}
    async with ShopApi(before_answer=hold_first("orders")) as api:
        result = await summary(api, "prod", params=patient, progress=events.append)
    assert result == expected_plan()
    retries = [event.error for event in events if (event.node, event.status) == RETRIED_ORDERS]
    assert any("took longer than its timeout of 0.5 s" in error for error in retries)


async def test_api_does_without_promotions() -> None:
    async with ShopApi(failures={"promotions": 1}) as api:
        assert await summary(api) == expected_plan(discounts=False)


async def test_api_does_not_wait_for_promotions() -> None:
    async with ShopApi(before_answer=hold_first("promotions")) as api:
        impatient = {"promotions": {"patience": 0.1}}
        assert await summary(api, params=impatient) == expected_plan(discounts=False)


async def test_api_gives_up_where_asking_again_is_useless() -> None:
    events: list[NodeEvent] = []
    async with ShopApi() as api:
        api.url += "/v2"
        with pytest.raises(NodeError) as failure:
            await summary(api, progress=events.append)
    assert type(failure.value.__cause__).__name__ == "ApiError"
    assert failure.value.node in REQUIRED
    assert not [event for event in events if event.status == "retrying"]


async def test_api_gives_up_after_the_last_attempt() -> None:
    events: list[NodeEvent] = []
    async with ShopApi() as api:
        pass
    with pytest.raises(NodeError) as failure:
        await summary(api, "prod", progress=events.append)
    assert isinstance(failure.value.__cause__, ConnectionRefusedError)
    tried = [e for e in events if e.node == failure.value.node and e.status == "retrying"]
    assert len(tried) == 3


# sensor_window --------------------------------------------------------------------------------


def test_sensor_window_needs_the_standard_library_only() -> None:
    tree = ast.parse((SENSOR / "pipelines" / "sensor_window.py").read_text(encoding="utf-8"))
    used = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert used - sys.stdlib_module_names == {"hamilton", "fp_async"}


def plausible(path: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, int]]:
    """Readings by sensor without glitches, and how many lines were thrown away."""
    series: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    counts = {"lines": 0, "unreadable": 0, "glitches": 0}
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        counts["lines"] += 1
        match = re.fullmatch(r"(2025-[^,]+Z),([^,]+),(-?\d+\.\d+)", line)
        if match is None:
            counts["unreadable"] += 1
            continue
        at = datetime.strptime(match[1], "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
        series[match[2]].append((int(at.timestamp()), float(match[3])))
    kept: dict[str, list[tuple[int, float]]] = {}
    for sensor, points in series.items():
        points.sort(key=lambda point: point[0])
        kept[sensor] = [
            (at, value)
            for place, (at, value) in enumerate(points)
            if abs(value - median([v for _, v in points[max(place - 2, 0) : place + 3]])) <= 10
        ]
        counts["glitches"] += len(points) - len(kept[sensor])
    return kept, counts


def expected_windows(series: dict[str, list[tuple[int, float]]], seconds: int) -> Any:
    windows = []
    for sensor in sorted(series):
        points = series[sensor]
        begin, end = points[0][0] // seconds * seconds, points[-1][0]
        for start in range(begin, end + 1, seconds):
            inside = [value for at, value in points if start <= at < start + seconds]
            if inside:
                windows.append(
                    {
                        "sensor": sensor,
                        "start": datetime.fromtimestamp(start, UTC)
                        .isoformat()
                        .replace("+00:00", "Z"),
                        "count": len(inside),
                        "mean": pytest.approx(mean(inside), abs=0.00051),
                        "min": min(inside),
                        "max": max(inside),
                    }
                )
    return windows


@pytest.mark.parametrize("seconds", [60, 300, 3600])
async def test_sensor_windows(seconds: int) -> None:
    series, counts = plausible(SENSOR / "data" / "readings.csv")
    result = await Project(SENSOR).run(
        "sensor_window",
        {"readings_path": str(SENSOR / "data" / "readings.csv")},
        ["windows", "skipped"],
        params={"windows": {"window_seconds": seconds}},
    )
    assert result["windows"] == expected_windows(series, seconds)
    assert result["skipped"] == counts
    assert counts["unreadable"] > 5
    assert counts["glitches"] > 5


def out_of_limits(windows: list[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for window in windows:
        if window["sensor"] == "return-line" and window["mean"] < 35:
            found["return-line", "low"].append(window)
        if window["sensor"] != "return-line" and window["mean"] > 80:
            found[window["sensor"], "high"].append(window)
    return found


@pytest.mark.parametrize("environment", ["dev", "edge"])
def test_sensor_window_raises_alarms(environment: str) -> None:
    output = output_of(
        SENSOR,
        *("run", "sensor_window", "--environment", environment),
        *("--final-vars", "windows,alarms", "--output", "json"),
    )
    result = json.loads(output)
    series, _ = plausible(SENSOR / "data" / "readings.csv")
    seconds = {"dev": 300, "edge": 60}[environment]
    assert result["windows"] == expected_windows(series, seconds)
    # In this hour each sensor is beyond its limit at most once.
    expected = [
        {
            "sensor": sensor,
            "limit": limit,
            "first_window": beyond[0]["start"],
            "windows": len(beyond),
            "worst_mean": {"high": max, "low": min}[limit](w["mean"] for w in beyond),
        }
        for (sensor, limit), beyond in out_of_limits(result["windows"]).items()
    ]
    assert result["alarms"] == expected
    assert [(alarm["sensor"], alarm["limit"]) for alarm in expected] == [
        ("boiler-1", "high"),
        ("return-line", "low"),
    ]


async def test_sensor_window_tells_a_glitch_from_a_rise(tmp_path: Path) -> None:
    values = [50.0, 51.0, 50.0, 120.0, 50.0, 51.0, 50.0, 51.0, 90.0, 91.0, 92.0, 91.0, 90.0]
    lines = [f"2025-03-03T06:00:{i:02d}Z,boiler-1,{v}" for i, v in enumerate(values)]
    path = tmp_path / "readings.csv"
    path.write_text("\n".join(["timestamp,sensor,value", *reversed(lines)]) + "\n")
    result = await Project(SENSOR).run("sensor_window", {"readings_path": str(path)})
    (window,) = result["windows"]
    assert (window["count"], window["min"], window["max"]) == (12, 50.0, 92.0)
    assert result["skipped"] == {"lines": 13, "unreadable": 0, "glitches": 1}

    path.write_text("\n".join(["timestamp,sensor,value", *lines[::2], *lines[1::2]]) + "\n")
    again = await Project(SENSOR).run("sensor_window", {"readings_path": str(path)})
    assert again == result


async def test_sensor_window_on_a_file_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "readings.csv"
    path.write_text("timestamp,sensor,value\n2025-03-03T07:00:00+01:00,boiler-2,99.5\n")
    result = await Project(SENSOR).run("sensor_window", {"readings_path": str(path)})
    window = {"start": "2025-03-03T06:00:00Z", "count": 1, "mean": 99.5, "min": 99.5, "max": 99.5}
    assert result["windows"] == [{"sensor": "boiler-2", **window}]
    assert [alarm["sensor"] for alarm in result["alarms"]] == ["boiler-2"]
    assert result["skipped"] == {"lines": 1, "unreadable": 0, "glitches": 0}
