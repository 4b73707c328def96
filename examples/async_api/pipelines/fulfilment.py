"""fulfilment: which open orders can leave the warehouse now, and what they are worth.

Users, orders, stock and promotions live in four services. None of them needs another one's
answer, so they are asked at the same time; `nodes:` in conf/pipelines.yml says how patiently.
"""

import asyncio
from typing import Any

from hamilton.function_modifiers import parameterize
from pipelines._http import ApiError, get_json

from fp_async import load_params

PARAMS = load_params(__file__)  # params.fulfilment in conf/pipelines.yml

Row = dict[str, Any]


async def users(api_url: str) -> list[Row]:
    """Who may order, and the tier that decides who is served first."""
    return await get_json(f"{api_url}/users")


async def orders(api_url: str) -> list[Row]:
    """All orders, shipped and cancelled ones too."""
    return await get_json(f"{api_url}/orders")


async def inventory(api_url: str) -> list[Row]:
    """What lies in the warehouse, and its price."""
    return await get_json(f"{api_url}/inventory")


@parameterize(**PARAMS.promotions)
async def promotions(api_url: str, patience: float) -> list[Row] | None:
    """Current discounts; None where their service does not answer within `patience` seconds.

    Shipping does not depend on marketing: this source may fail without failing the run.
    """
    try:
        async with asyncio.timeout(patience):
            return await get_json(f"{api_url}/promotions")
    except (ApiError, OSError):  # a TimeoutError is an OSError
        return None


@parameterize(**PARAMS.open_orders)
def open_orders(orders: list[Row], users: list[Row], priority: list[str]) -> list[Row]:
    """Open orders with their customer's name: best tier first, then first come first served."""
    people = {user["user_id"]: user for user in users}
    waiting = [
        {**order, "customer": person["name"], "tier": person["tier"]}
        for order in orders
        if order["status"] == "open" and (person := people[order["user_id"]])
    ]
    return sorted(waiting, key=lambda o: (priority.index(o["tier"]), o["ordered_at"]))


def prices(inventory: list[Row], promotions: list[Row] | None) -> dict[str, float]:
    """What a piece costs today, discounts included as far as they are known."""
    percent_off = {row["sku"]: row["percent_off"] for row in promotions or []}
    return {
        item["sku"]: item["price_eur"] * (100 - percent_off.get(item["sku"], 0)) / 100
        for item in inventory
    }


def shipments(open_orders: list[Row], inventory: list[Row], prices: dict[str, float]) -> list[Row]:
    """Every open order and how many pieces of it can be sent; an order is never split."""
    stock = {item["sku"]: item["on_hand"] for item in inventory}
    return [_shipment(order, stock, prices) for order in open_orders]


def _shipment(order: Row, stock: dict[str, int], prices: dict[str, float]) -> Row:
    """Decide on one order and take its pieces out of `stock`."""
    sku, quantity = order["sku"], order["quantity"]
    ships = quantity <= stock[sku]
    if ships:
        stock[sku] -= quantity
    return {
        "order_id": order["order_id"],
        "customer": order["customer"],
        "tier": order["tier"],
        "sku": sku,
        "quantity": quantity,
        "ships": ships,
        "value_eur": round(quantity * prices[sku], 2),
    }


def to_reorder(shipments: list[Row]) -> dict[str, int]:
    """Pieces that are missing for the orders that have to wait, by product."""
    missing: dict[str, int] = {}
    for row in shipments:
        if not row["ships"]:
            missing[row["sku"]] = missing.get(row["sku"], 0) + row["quantity"]
    return dict(sorted(missing.items()))


def summary(
    shipments: list[Row], to_reorder: dict[str, int], promotions: list[Row] | None
) -> dict[str, Any]:
    """The numbers for the warehouse's screen; `discounts_known` says whether prices are final."""
    sent = [row for row in shipments if row["ships"]]
    return {
        "ships": len(sent),
        "waits": len(shipments) - len(sent),
        "value_eur": round(sum(row["value_eur"] for row in sent), 2),
        "to_reorder": to_reorder,
        "discounts_known": promotions is not None,
    }
