"""`--log-level` and `-v`."""

from __future__ import annotations

from typing import Any

import click

from fp_async.log_levels import LEVELS

level_options = (
    click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        envvar="FLOWERPOWER_LOG_LEVEL",
        help="What is logged, by pipelines too: info (default) and above.",
    ),
    click.option("-v", "--verbose", is_flag=True, help="The same as --log-level debug."),
)


def level(options: dict[str, Any], default: str = "info") -> str:
    """The level that the options say, which are taken out of them."""
    chosen, verbose = options.pop("log_level"), options.pop("verbose")
    return "debug" if verbose else chosen or default
