"""The topics below one prefix and site, and what a name and a filter may be."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import Literal

import msgspec

from fp_async.errors import UsageError

PREFIX = "fp/v1"
MAIN = "main"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]{1,64}(/[A-Za-z0-9_.-]{1,64}){0,7}")
_LONGEST_ANSWER = 1024  # bytes of a response topic


class Topics(msgspec.Struct, frozen=True, dict=True):
    """The names below one prefix and site."""

    prefix: str = PREFIX
    site: str = MAIN

    @cached_property
    def root(self) -> str:
        return f"{self.prefix}/{self.site}"

    @cached_property
    def gateway_name(self) -> str:
        """The gateway as a client and a user of the broker."""
        return f"fp-gateway-{self.site}"

    @cached_property
    def gateway_client(self) -> str:
        """The client id of a gateway without a login: another one for each fleet on a broker."""
        return self.gateway_name if self.prefix == PREFIX else f"{self.gateway_name}-{self._mark}"

    @cached_property
    def _mark(self) -> str:
        return hashlib.blake2b(self.prefix.encode(), digest_size=4).hexdigest()

    def client(self, name: str) -> str:
        """Return the client id, and user, of an agent's connection: agents of one name in two
        sites of a broker have two. In the site `main` it is the name, as no agent's can hold `@`.
        """
        if self.prefix != PREFIX:
            return f"{name}@{self.site}~{self._mark}"
        return name if self.site == MAIN else f"{name}@{self.site}"

    @cached_property
    def gateway(self) -> str:
        return f"{self.root}/gateway/state"

    def agent(self, name: str, what: Literal["state", "do", "report"]) -> str:
        """`name` may be + for all of them."""
        return f"{self.root}/agent/{name}/{what}"

    def run(self, pipeline: str) -> str:
        """`pipeline` may be +."""
        return f"{self.root}/run/{pipeline}"

    def outcome(self, pipeline: str) -> str:
        return f"{self.root}/run/{pipeline}/outcome"

    @cached_property
    def replies(self) -> str:
        """The beginning of topics below the root where clients may be answered."""
        return f"{self.root}/reply/"

    def job(self, id: str) -> str:
        return f"{self.root}/job/{id}"

    def parsed(self, topic: str) -> tuple[str, ...] | None:
        """The levels below the root: ("agent", "pi-7", "state"); None for others' topics."""
        if not topic.startswith(f"{self.root}/"):
            return None
        return tuple(topic[len(self.root) + 1 :].split("/"))

    def is_ours(self, topic: str) -> bool:
        """Whether a topic, or a filter, stands below the prefix: what is said there is protocol."""
        return topic.startswith(f"{self.prefix}/") or topic == self.prefix

    def may_answer(self, topic: str) -> bool:
        """Whether a stranger's response topic is one: nobody may have us say things on ours, but
        below `reply/`.
        """
        ours = self.is_ours(topic) and not topic.startswith(self.replies)
        return (
            bool(topic)
            and len(topic.encode(errors="replace")) <= _LONGEST_ANSWER
            and not (topic.startswith("$") or ours or set("+#\0") & set(topic))
        )


def checked_name(what: str, name: str) -> str:
    """A name that can be a topic level, a client id and a user. Raises UsageError."""
    if not NAME.fullmatch(name):
        raise UsageError(f"{what} '{name}': use letters, digits, '_', '-', '.', at most 64")
    return name


def is_term(term: str) -> bool:
    """Return whether a text can be one of the terms of a target: `tag`, or `tag=value`."""
    tag, _, value = term.partition("=")
    blanks = tag != tag.strip() or value != value.strip()
    return bool(tag) and not (blanks or value.startswith("=") or set("*,") & set(term))


def checked_prefix(prefix: str) -> str:
    """What can stand before all topics. Raises UsageError."""
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(
            f"prefix '{prefix}': write levels of letters, digits, '_', '-', '.', as in fp/v1"
        )
    return prefix


def matches(topic_filter: str, topic: str) -> bool:
    """Whether a topic is one of those of a filter with + and # (MQTT 5, 4.7)."""
    if topic.startswith("$") and not topic_filter.startswith("$"):
        return False
    wanted, levels = topic_filter.split("/"), topic.split("/")
    for index, part in enumerate(wanted):
        if part == "#":
            return True
        if index >= len(levels) or part not in ("+", levels[index]):
            return False
    return len(wanted) == len(levels)
