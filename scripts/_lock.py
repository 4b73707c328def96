"""Resolves what the environments of scripts/ hold, and writes it as pip's requirements with hashes.

`uv` resolves for all Pythons and machines at once. Of what it finds the wheels for these machines
are kept, under their names, so that `tests/test_locks.py` can tell without a network which of them
a Python would take.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from packaging.markers import Marker
from packaging.utils import parse_wheel_filename

ROOT = Path(__file__).parent.parent
MINORS = (11, 12, 13, 14)
MACHINES = ("x86_64", "aarch64")
# `demo` is part of `test`, with the same releases: both live in one environment, in any order.
SETS = {"test": "test", "demo": "broker"}
EDITABLE = "editables"  # which hatchling asks for, to install a folder in place
HEAD = """\
# What {script} installs, for Python 3.11 to 3.14 on Linux (x86-64, aarch64).
# Written by scripts/lock; not to be edited. Each release has its wheels above it.
"""


def main(uv: str, keep: str = "") -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    constraints = locked("test") if keep == "--keep" else []
    for name, extra in SETS.items():
        packages = resolved(
            uv, extra, [*project["build-system"]["requires"], EDITABLE], constraints
        )
        kept = [package for package in packages if any(holds(package, e) for e in environments())]
        write(ROOT / "locks" / f"{name}.txt", kept, HEAD.format(script=f"scripts/{name}"))
        constraints = [requirement(package) for package in kept]


def locked(name: str) -> list[str]:
    """Return the releases of a lock as it stands, each with its marker."""
    lines = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line.removesuffix(" \\") for line in lines if re.match(r"\w", line)]


def resolved(uv: str, extra: str, tools: list[str], constraints: list[str]) -> list[dict[str, Any]]:
    """Return the packages of an extra, of the core and of the build tools."""
    with tempfile.TemporaryDirectory() as folder:
        out, more, bound = (Path(folder) / n for n in ("pylock.toml", "more.in", "bound.txt"))
        more.write_text("\n".join(tools))
        bound.write_text("\n".join(constraints))
        options = ["--universal", "--python-version", f"3.{MINORS[0]}", "--only-binary", ":all:"]
        options += ["--no-config", "--quiet"]
        options += ["--constraints", str(bound), "--extra", extra]
        options += ["--format", "pylock.toml", "--output-file", str(out)]
        command = [uv, "pip", "compile", "pyproject.toml", str(more), *options]
        env = {k: v for k, v in os.environ.items() if not k.startswith(("UV_", "PIP_"))}
        subprocess.run(command, check=True, cwd=ROOT, env=env)
        packages: list[dict[str, Any]] = tomllib.loads(out.read_text(encoding="utf-8"))["packages"]
        return packages


def environments() -> Iterator[dict[str, str]]:
    """Yield every machine under every Python that the locks are for, patch by patch."""
    for minor in MINORS:
        for patch in range(20):
            for machine in MACHINES:
                yield {
                    "python_version": f"3.{minor}",
                    "python_full_version": f"3.{minor}.{patch}",
                    "implementation_version": f"3.{minor}.{patch}",
                    "platform_machine": machine,
                    "implementation_name": "cpython",
                    "platform_python_implementation": "CPython",
                    "platform_system": "Linux",
                    "sys_platform": "linux",
                    "os_name": "posix",
                }


def holds(package: dict[str, Any], environment: dict[str, str]) -> bool:
    return "marker" not in package or Marker(package["marker"]).evaluate(environment)


def requirement(package: dict[str, Any]) -> str:
    """Return name and version, and the marker unless the package is for all environments."""
    pinned = f"{package['name']}=={package['version']}"
    where = marker(package)
    return f"{pinned} ; {where}" if where else pinned


def marker(package: dict[str, Any]) -> str:
    """Return the marker of a package, for the environments of the locks alone."""
    held, missed = set(), set()
    for each in environments():
        (held if holds(package, each) else missed).add(each["python_version"])
    if not missed:
        return ""
    if held & missed:  # more than the minor matters
        return str(package["marker"]).removeprefix(f"python_full_version >= '3.{MINORS[0]}' and ")
    if min(missed) > max(held):
        return f"python_version < '{min(missed)}'"
    if max(missed) < min(held):
        return f"python_version >= '{min(held)}'"
    return " or ".join(f"python_version == '{each}'" for each in sorted(held))


def wheels(package: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and hash of the wheels that some environment can take."""
    for wheel in package.get("wheels", ()):
        name = unquote(wheel["url"].rpartition("/")[2])
        if any(
            suits(tag.interpreter, tag.abi, tag.platform) for tag in parse_wheel_filename(name)[3]
        ):
            yield name, wheel["hashes"]["sha256"]


def suits(interpreter: str, abi: str, platform: str) -> bool:
    """Tell whether a wheel with this tag can be for CPython 3.11 to 3.14 on these machines."""
    if platform != "any" and not re.fullmatch(
        rf"(many|musl)?linux.*_({'|'.join(MACHINES)})", platform
    ):
        return False
    if interpreter in {f"cp3{minor}" for minor in MINORS}:
        return abi in (interpreter, "abi3", "none")
    older = re.fullmatch(r"cp3(\d+)", interpreter)
    return interpreter.startswith("py3") or (
        abi == "abi3" and bool(older) and int(older[1]) < MINORS[0]
    )


def write(path: Path, packages: list[dict[str, Any]], head: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(head + "".join(map(entry, packages)), encoding="utf-8")
    print(f"{path.relative_to(ROOT)}: {len(packages)} packages")


def entry(package: dict[str, Any]) -> str:
    files = sorted(wheels(package))
    if not files:
        raise SystemExit(f"{package['name']} {package['version']} has no wheel for these machines")
    names = "".join(f"# {name}\n" for name, _ in files)
    hashes = "".join(f" \\\n    --hash=sha256:{digest}" for _, digest in files)
    return f"\n{names}{requirement(package)}{hashes}\n"


if __name__ == "__main__":
    main(*sys.argv[1:])
