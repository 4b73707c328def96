"""checkouts: how many checkouts a shop should open, by simulating a day for each choice.

Every choice is simulated apart from the others, which is what `Parallelizable` is for: threads
cannot do it at once, because it is Python that computes, but the workers of a cluster can.
"""

import heapq
import random
from statistics import fmean, quantiles
from typing import NamedTuple

from hamilton.function_modifiers import parameterize
from hamilton.htypes import Collect, Parallelizable

from fp_async import load_params

PARAMS = load_params(__file__)  # params.checkouts in conf/pipelines.yml


class Customer(NamedTuple):
    """When somebody queues, and how long the till takes, both in seconds."""

    arrives: float
    takes: float


def customers(per_hour: int, hours: int, seed: int) -> list[Customer]:
    """One day's customers: the same for every choice, so that the choices can be compared."""
    chance = random.Random(seed)
    found, now = [], 0.0
    while (now := now + chance.expovariate(per_hour / 3600)) < hours * 3600:
        found.append(Customer(now, chance.lognormvariate(4.0, 0.6)))
    return found


@parameterize(**PARAMS.choice)
def choice(least: int, most: int) -> Parallelizable[int]:
    """The numbers of checkouts to try."""
    yield from range(least, most + 1)


def waits(choice: int, customers: list[Customer]) -> list[float]:
    """How long each customer waits when so many checkouts are open."""
    free = [0.0] * choice
    found = []
    for customer in customers:
        begins = max(customer.arrives, heapq.heappop(free))
        heapq.heappush(free, begins + customer.takes)
        found.append(begins - customer.arrives)
    return found


def day(choice: int, waits: list[float]) -> dict[str, float]:
    """What the shop wants to know of a choice; seconds."""
    return {
        "checkouts": choice,
        "mean_wait": round(fmean(waits), 1),
        "p95_wait": round(quantiles(waits, n=20)[-1], 1),
    }


def days(day: Collect[dict[str, float]]) -> list[dict[str, float]]:
    """All choices, the fewest checkouts first."""
    return sorted(day, key=lambda day: day["checkouts"])


@parameterize(**PARAMS.recommended)
def recommended(days: list[dict[str, float]], bearable: float) -> int | None:
    """The fewest checkouts at which 19 of 20 customers wait no longer than is bearable."""
    enough = [int(day["checkouts"]) for day in days if day["p95_wait"] <= bearable]
    return min(enough, default=None)
