"""The locks of the scripts, resolved for each Python and machine from what is in the files."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
PROJECT = tomllib.loads(TEXT)
SETS = {"demo": "broker", "test": "test"}
PYTHONS = ["3.11.0", "3.11.13", "3.12.0", "3.13.0", "3.14.0"]
MACHINES = ["x86_64", "aarch64"]
GLIBC = 28  # 2.28 is what Debian 10, RHEL 8 and all later ones have
TOOLS = [*PROJECT["build-system"]["requires"], "editables"]


class Pin:
    """An entry of a lock: a release, where it is for, and the names of its wheels."""

    def __init__(self, block):
        *names, requirement = (
            block.replace("\\\n", "").strip().rsplit("\n", maxsplit=block.count("# "))
        )
        self.wheels = [name.removeprefix("# ") for name in names]
        self.hashes = re.findall(r"--hash=sha256:([0-9a-f]{64})\b", requirement)
        self.requirement = Requirement(requirement.partition(" --hash")[0])
        self.name = canonicalize_name(self.requirement.name)
        (only,) = self.requirement.specifier
        assert only.operator == "==", f"{self.name} is not pinned"
        self.version = only.version

    def __repr__(self):
        return f"{self.name}=={self.version}"


@cache
def lock(name):
    head, *blocks = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8").split("\n\n")
    assert all(line.startswith("#") for line in head.splitlines())
    return [Pin(block) for block in blocks]


def environment(python, machine):
    return {
        "python_version": python.rpartition(".")[0],
        "python_full_version": python,
        "implementation_version": python,
        "platform_machine": machine,
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "sys_platform": "linux",
        "os_name": "posix",
    }


def tags(python, machine):
    version = tuple(map(int, python.split(".")[:2]))
    platforms = [f"manylinux_2_{n}_{machine}" for n in range(GLIBC, 16, -1)]
    platforms += [f"manylinux2014_{machine}", f"linux_{machine}"]
    platforms += [f"manylinux{old}_{machine}" for old in ("2010", "1", "_2_12", "_2_5")]
    interpreter = f"cp{version[0]}{version[1]}"
    native = cpython_tags(version, [interpreter], platforms)
    return {*native, *compatible_tags(version, interpreter, platforms)}


def wanted(requirements, env, extras=("",)):
    """The requirements that hold here, with those of our own extras in place of their names."""
    for each in map(Requirement, requirements):
        if each.marker and not any(each.marker.evaluate({**env, "extra": e}) for e in extras):
            continue
        if each.name != PROJECT["project"]["name"]:
            yield each
            continue
        for extra in each.extras:
            yield from wanted(PROJECT["project"]["optional-dependencies"][extra], env)


def asked(name, env):
    extra = PROJECT["project"]["optional-dependencies"][SETS[name]]
    return list(wanted([*PROJECT["project"]["dependencies"], *extra, *TOOLS], env))


def needs(pin):
    """What an installed release asks for; nothing is known of one that is not installed."""
    try:
        found = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError:
        return []
    return (found.requires or []) if found.version == pin.version else []


def resolved(name, env):
    """The pins that are installed in an environment, by name: one release of each."""
    here = [p for p in lock(name) if not p.requirement.marker or p.requirement.marker.evaluate(env)]
    by_name = {pin.name: pin for pin in here}
    assert len(by_name) == len(here), "two releases of one package"
    return by_name


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("name", SETS)
def test_the_lock_holds_all_that_is_asked_for_and_a_wheel_of_each(name, python, machine):
    env = environment(python, machine)
    pins = resolved(name, env)
    accepted = tags(python, machine)
    queue = asked(name, env)
    seen = set()
    while queue:
        each = queue.pop()
        pin = pins.get(canonicalize_name(each.name))
        assert pin is not None, f"nothing for {each}: renew with scripts/lock"
        assert each.specifier.contains(pin.version, prereleases=True), f"{pin} is not {each}"
        key = (pin.name, frozenset(each.extras))
        if key not in seen:
            seen.add(key)
            queue += wanted(needs(pin), env, ("", *each.extras))
    for pin in pins.values():
        fitting = [w for w in pin.wheels if parse_wheel_filename(w)[3] & accepted]
        assert fitting, f"{pin} has no wheel for Python {python} on {machine}"


@pytest.mark.parametrize("name", SETS)
def test_each_wheel_has_its_hash_and_nothing_of_a_machine_is_in_a_lock(name):
    for pin in lock(name):
        assert len(pin.wheels) == len(pin.hashes) == len(set(pin.hashes)) > 0, pin
        for wheel in pin.wheels:
            found, version, _, _ = parse_wheel_filename(wheel)
            assert (found, str(version)) == (pin.name, pin.version)
    text = (ROOT / "locks" / f"{name}.txt").read_text(encoding="utf-8")
    assert not re.search(r"://|file:|^-|index|find-links", text, re.MULTILINE)


def test_the_demo_has_the_releases_of_the_tests():
    """Both are installed into one environment, in any order."""
    test = {(pin.name, pin.version): str(pin.requirement.marker) for pin in lock("test")}
    for pin in lock("demo"):
        assert test[pin.name, pin.version] == str(pin.requirement.marker)


@pytest.fixture
def here():
    """This environment, where it was installed from the lock as it is now."""
    stamp = Path(sys.prefix) / ".installed-test"
    lock = (ROOT / "locks" / "test.txt").read_text(encoding="utf-8")
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != lock + TEXT:
        pytest.skip("this environment was not installed by scripts/test")
    return environment(platform.python_version().rstrip("+"), platform.machine())


def test_what_the_script_installs_is_the_lock(here):
    installed = {pin.name: metadata.version(pin.name) for pin in resolved("test", here).values()}
    assert installed == {pin.name: pin.version for pin in resolved("test", here).values()}


@pytest.mark.parametrize("name", SETS)
def test_nothing_in_a_lock_is_superfluous(name, here):
    pins = resolved(name, here)
    queue = asked(name, here)
    seen = set()
    while queue:
        each = queue.pop()
        key = (canonicalize_name(each.name), frozenset(each.extras))
        if key not in seen:
            seen.add(key)
            queue += wanted(needs(pins[key[0]]), here, ("", *each.extras))
    assert pins.keys() == {found for found, _ in seen}


# Caps -----------------------------------------------------------------------------------------


def test_a_cap_at_a_minor_version_has_its_reason_beside_it():
    lines = TEXT[TEXT.index("dependencies = [") :].splitlines()
    capped = [n for n, line in enumerate(lines) if re.search(r"<\d+\.\d", line.partition("#")[0])]
    assert capped
    for number in capped:
        above = lines[number - 1].strip()
        near = [n for n in capped if n == number - 1]
        assert above.startswith("#") or near, f"why? {lines[number]}"


@pytest.mark.parametrize("extra", ["test", "broker"])
def test_latest_lifts_the_caps_at_a_major_version_and_no_others(extra):
    done = subprocess.run(
        [sys.executable, "scripts/_newest.py", extra],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    newest = {r.name: r for r in map(Requirement, done.stdout.splitlines())}
    env = environment("3.11.13", "x86_64")
    declared = {r.name: r for r in asked(SETS["test"] if extra == "test" else "demo", env)}
    assert newest.keys() == declared.keys()
    for name, requirement in declared.items():
        kept = {str(s) for s in requirement.specifier if not re.fullmatch(r"<\d+", str(s))}
        assert {str(s) for s in newest[name].specifier} == kept
        assert newest[name].extras == requirement.extras
    assert "<0.23" in str(newest["aiosqlite"].specifier)
