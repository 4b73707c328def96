"""Prints what an extra and the core ask for, one a line, without the caps at a major version.

A cap at a minor version stands where private names of a library are used, and stays.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MAJOR_CAP = re.compile(r",?<\d+(?![\d.])")


def wanted(data: dict[str, Any], extra: str) -> Iterator[str]:
    """Yield the requirements of the core, of the extra and of the build."""
    project = data["project"]
    yield from project["dependencies"]
    yield from of_extra(project, extra)
    yield from data["build-system"]["requires"]
    yield "editables"


def of_extra(project: dict[str, Any], extra: str) -> Iterator[str]:
    """Yield the requirements of an extra, those of the extras that it names included."""
    own = re.compile(rf"{project['name']}\[([\w,-]+)\]")
    for requirement in project["optional-dependencies"][extra]:
        inner = own.fullmatch(requirement)
        if inner is None:
            yield requirement
            continue
        for name in inner[1].split(","):
            yield from of_extra(project, name)


if __name__ == "__main__":
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    for requirement in wanted(tomllib.loads(text), sys.argv[1]):
        specifier, semicolon, marker = requirement.partition(";")
        print(MAJOR_CAP.sub("", specifier) + semicolon + marker)
