"""`fp-agent status|jobs|doctor|init|install-service`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

ALL: list[click.Command] = []
