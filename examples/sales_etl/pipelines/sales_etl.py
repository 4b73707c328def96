"""sales_etl: turns the shop's raw order export into revenue in EUR by region and month.

An order counts once, in the currency rate of its month. Orders that cannot be valued are
rejected with a reason instead of being guessed; if they are too many, the export is broken and
nothing is reported.
"""

import datetime as dt

import pandas as pd
from hamilton.function_modifiers import check_output, parameterize

from fp_async import load_params

PARAMS = load_params(__file__)  # params.sales_etl in conf/pipelines.yml

UNKNOWN_REGION = "Unknown"


def orders_file(orders_path: str) -> pd.DataFrame:
    """The export as it was written: every cell is text, nothing is interpreted yet."""
    return pd.read_csv(orders_path, dtype="string", keep_default_na=False)


def customers(customers_path: str) -> pd.DataFrame:
    """Customers with a tidy region; those that sales has not assigned yet are 'Unknown'."""
    frame = pd.read_csv(customers_path, dtype="string", keep_default_na=False)
    region = frame["region"].str.strip().str.title()
    return frame.assign(region=region.where(region != "", UNKNOWN_REGION))


def exchange_rates(rates_path: str) -> pd.DataFrame:
    """EUR per unit of each currency, one rate a month as accounting fixes it."""
    return pd.read_csv(rates_path, dtype={"month": "string", "currency": "string"})


def latest_orders(orders_file: pd.DataFrame) -> pd.DataFrame:
    """One row per order: the shop exports a corrected order again, so the last row is right."""
    return orders_file.drop_duplicates("order_id", keep="last", ignore_index=True)


@parameterize(**PARAMS.typed_orders)
def typed_orders(latest_orders: pd.DataFrame, default_currency: str) -> pd.DataFrame:
    """Dates, numbers and currencies instead of text; what cannot be read becomes missing."""
    currency = latest_orders["currency"].str.strip().str.upper()
    ordered_at = pd.to_datetime(
        latest_orders["ordered_at"], format="%Y-%m-%dT%H:%M:%S", errors="coerce"
    )
    return latest_orders.assign(
        ordered_at=ordered_at,
        month=ordered_at.dt.strftime("%Y-%m").astype("string"),
        quantity=_numbers(latest_orders["quantity"]),
        unit_price=_numbers(latest_orders["unit_price"]),
        currency=currency.where(currency != "", default_currency),
    )


def _numbers(column: pd.Series) -> pd.Series:
    return pd.to_numeric(column, errors="coerce").astype("float64")


def priced_orders(typed_orders: pd.DataFrame, exchange_rates: pd.DataFrame) -> pd.DataFrame:
    """Each order with the exchange rate of its month, missing where there is none."""
    return typed_orders.merge(
        exchange_rates, on=["month", "currency"], how="left", validate="many_to_one"
    )


@parameterize(**PARAMS.problem)
def problem(priced_orders: pd.DataFrame, max_quantity: int) -> pd.Series:
    """Why an order cannot be counted; empty for a good one. The gravest is named."""
    unreadable = priced_orders[["ordered_at", "quantity", "unit_price"]].isna().any(axis="columns")
    reason = pd.Series("", index=priced_orders.index, dtype="string", name="problem")
    reason = reason.mask(priced_orders["eur_per_unit"].isna(), "no exchange rate")
    plausible = priced_orders["quantity"].between(1, max_quantity)
    reason = reason.mask(~plausible, "implausible quantity")
    return reason.mask(unreadable, "unreadable date or number")


@check_output(max_fraction_nans=0.05, data_type=float, importance="fail")
def amount_eur(priced_orders: pd.DataFrame, problem: pd.Series) -> pd.Series:
    """What each order is worth in EUR, missing for rejected ones.

    More than 5 % rejected orders mean that the export is broken: the run fails.
    """
    amount = priced_orders["quantity"] * priced_orders["unit_price"] * priced_orders["eur_per_unit"]
    return amount.where(problem == "")


def rejected_orders(latest_orders: pd.DataFrame, problem: pd.Series) -> pd.DataFrame:
    """The orders that were not counted, as exported, for the shop to correct."""
    return latest_orders.assign(problem=problem)[problem != ""].reset_index(drop=True)


def sales(
    priced_orders: pd.DataFrame,
    amount_eur: pd.Series,
    customers: pd.DataFrame,
    since: dt.date,
    until: dt.date,
) -> pd.DataFrame:
    """The counted orders of the period with their customers.

    Revenue is real even where nobody knows the customer: such orders stay, region 'Unknown'.
    """
    first, end = pd.Timestamp(since), pd.Timestamp(until) + pd.Timedelta(days=1)
    in_period = priced_orders["ordered_at"].between(first, end, inclusive="left")
    orders = priced_orders.assign(amount_eur=amount_eur)[amount_eur.notna() & in_period]
    joined = orders.merge(customers, on="customer_id", how="left", validate="many_to_one")
    return joined.assign(region=joined["region"].fillna(UNKNOWN_REGION))


def revenue_by_region(sales: pd.DataFrame) -> pd.DataFrame:
    """Number of orders and revenue in EUR for every region and month."""
    grouped = sales.groupby(["region", "month"], as_index=False)
    table = grouped.agg(orders=("order_id", "count"), revenue_eur=("amount_eur", "sum"))
    return table.round({"revenue_eur": 2})


@parameterize(**PARAMS.top_customers)
def top_customers(sales: pd.DataFrame, limit: int) -> pd.DataFrame:
    """The customers with the highest revenue, best first; orders without a customer are out."""
    grouped = sales.dropna(subset=["name"]).groupby(["customer_id", "name"], as_index=False)
    table = grouped.agg(orders=("order_id", "count"), revenue_eur=("amount_eur", "sum"))
    best = table.sort_values(["revenue_eur", "customer_id"], ascending=[False, True]).head(limit)
    return best.round({"revenue_eur": 2}).reset_index(drop=True)


def data_quality(orders_file: pd.DataFrame, problem: pd.Series) -> dict[str, int]:
    """How the rows of the whole export add up: read, replaced by a later row, rejected why."""
    reasons = problem[problem != ""].value_counts().sort_index()
    counts = {"rows": len(orders_file), "replaced": len(orders_file) - len(problem)}
    return counts | {str(reason): int(count) for reason, count in reasons.items()}


def report(
    revenue_by_region: pd.DataFrame,
    top_customers: pd.DataFrame,
    data_quality: dict[str, int],
    since: dt.date,
    until: dt.date,
) -> str:
    """The page that goes to the regional managers."""
    table = revenue_by_region.pivot_table(
        index="region", columns="month", values="revenue_eur", aggfunc="sum", fill_value=0.0
    ).rename_axis(index=None, columns=None)
    table["total"] = table.sum(axis="columns")
    ranked = [
        f"{place:>2}. {row.name:<20}{row.revenue_eur:>12,.2f}  ({row.orders} orders)"
        for place, row in enumerate(top_customers.itertuples(index=False), start=1)
    ]
    quality = [f"{label}: {count}" for label, count in data_quality.items()]
    return "\n".join(
        [
            f"Sales {since} to {until}, EUR",
            table.to_string(float_format="{:,.2f}".format),
            f"Total: {table['total'].sum():,.2f}",
            "",
            "Top customers",
            *ranked,
            "",
            f"Export: {', '.join(quality)}",
        ]
    )
