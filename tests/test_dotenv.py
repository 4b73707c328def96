""".env files and variables: what is read, what is refused, and which value counts."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fp_async import config_files, dotenv, variables
from fp_async.errors import FileAccessError, MisconfiguredError
from fp_async.variables import VariableError


def read(text, **env):
    return dotenv.parse(text, ".env", env)


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=1", "1"),
        ("A = spaced out  ", "spaced out"),
        ("export A=1", "1"),
        ("  export\tA=1", "1"),
        ("A=", ""),
        ("A=''", ""),
        ("A=a=b==", "a=b=="),
        ("A=a#b", "a#b"),
        ("A=a # comment", "a"),
        ("A= # comment", ""),
        ("A='a # b' # comment", "a # b"),
        ('A="a # b"', "a # b"),
        (r"A='it\'s \n'", r"it's \n"),
        (r'A="a\nb\t\"c\" \\ \x"', 'a\nb\t"c" \\ \\x'),
        ('A="two\nlines"', "two\nlines"),
        ("A='two\nlines'", "two\nlines"),
        ("A=ünï", "ünï"),
        ("A=$B", "$B"),
        ("A=x${B}y", "xby"),
        ('A="${B}"', "b"),
        ("A='${B}'", "${B}"),
        ("A=${NOPE:-${B}}", "b"),
        ("A=$${B}", "${B}"),
        ("A=1\nA=2", "2"),
        ("B=file\nA=${B}", "b"),
        ("C=first\nA=${C}", "first"),
        ("my.dotted-name=1\nA=2", "2"),
        ("\ufeffA=1", "1"),
        ("# c\r\n\r\nA=1\r\n", "1"),
        ('A="two\r\nlines"\r\n', "two\nlines"),
        ("   # c\n\t\nA=1", "1"),
    ],
)
def test_b1_a_line_of_env_is_read_as_docker_compose_and_python_dotenv_do(line, value):
    """B1: quotes, export, comments, = in values, CRLF, BOM, several lines; the environment's B is
    "b", and stands over the file's.
    """
    assert read(line, B="b")["A"] == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A=1\nB 2\n", ".env:2: not a line of the form NAME=value"),
        ("A=1\n\nB: 2\n", ".env:3: not a line"),
        ("1A=2", ".env:1: not a line"),
        ("=2", ".env:1: not a line"),
        ("just words", ".env:1: not a line"),
        ("export A", ".env:1: not a line"),
        ('A=1\nB="open\nC=2\n', '.env:2: the " before the value has no counterpart'),
        ("A='x' y", ".env:1: the ' before the value has no counterpart at its end"),
        ('X="a\nb"\nA=${', ".env:3: '${' names no variable"),
        ("A=${1x}", ".env:1: '${1x}' names no variable"),
        ("A=${NOPE}", ".env:1: environment variable NOPE is not set"),
        ("A=a\0b", ".env:1: A: a variable cannot have a NUL"),
    ],
)
def test_b1_a_malformed_line_is_an_error_with_its_number(text, says):
    with pytest.raises(MisconfiguredError) as raised:
        read(text)
    assert str(raised.value).startswith(says)


def test_b1_a_message_about_env_shows_no_value():
    with pytest.raises(MisconfiguredError) as raised:
        read("PASSWORD hunter2")
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("${A}", "a"),
        ("x${A}y${A}", "xaya"),
        ("${NO:-}", ""),
        ("${NO:-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${NO:-${A}}", "a"),
        ("${NO:-${NOR:-${A}-${A}}}", "a-a"),
        ("${NO:-${NOR:-}}", ""),
        ("${NO:-$${A}}", "${A}"),
        ("${NO:-{a: {b}}}", "{a: {b}}"),
        ("${A:-${}}"[:-3] + "x}", "a"),
        ("$${A}", "${A}"),
        ("$A", "$A"),
        ("100%}", "100%}"),
    ],
)
def test_a9_variables_and_nested_defaults(text, value):
    """A9: `${UNSET:-${OTHER}}` is supported, to any depth."""
    env = {"A": "a", "EMPTY": ""}
    assert variables.resolve(variables.parse(text), env) == value


@pytest.mark.parametrize(
    "text",
    ["${", "${}", "${1x}", "${A", "${A:-b", "${A:-${B}", "${ A }", "${A-b}", "${A:?x}", "a${"],
)
def test_a9_what_is_not_understood_is_an_error_and_never_literal(text):
    with pytest.raises(VariableError, match=r"write \$\{NAME\} or \$\{NAME:-default\}"):
        variables.parse(text)


def test_c11_a_variable_that_is_empty_is_not_called_unset():
    with pytest.raises(VariableError, match="variable A is set, but empty"):
        variables.resolve(variables.parse("${A}"), {"A": ""})
    with pytest.raises(VariableError, match="variable A is not set"):
        variables.resolve(variables.parse("${A}"), {})


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *(
            (name, True)
            for name in ("PW", "DB_PASSWORD", "API_KEY", "api_key", "TOKEN", "MY_SECRET")
        ),
        *((name, False) for name in ("PORT", "HOST", "MONKEY", "COUNT", "PWM")),
    ],
)
def test_names_that_suggest_a_secret(name, secret):
    assert variables.is_secret(name) is secret


# Files ------------------------------------------------------------------------------------------


@pytest.fixture
def clean(monkeypatch):
    for name in (config_files.ENV_FILES, "FLOWERPOWER_DOTENV", "FP_A", "FP_B", "FP_C"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_b1_the_environment_is_over_env_file_over_env(tmp_path, clean):
    (tmp_path / ".env").write_text("FP_A=dotenv\nFP_B=dotenv\nFP_C=dotenv\n")
    (tmp_path / "more.env").write_text("FP_A=file\nFP_B=file\n")
    clean.setenv(config_files.ENV_FILES, str(tmp_path / "more.env"))
    clean.setenv("FP_A", "environment")
    found = config_files.Files(tmp_path).variables
    found.look(lasting=False)
    assert [found[name] for name in ("FP_A", "FP_B", "FP_C")] == ["environment", "file", "dotenv"]


def test_b1_in_an_application_variables_are_not_exported(tmp_path, clean, make_project):
    project = make_project(
        "run: {flow: {dev: {inputs: {a: '${FP_A}'}}}}", flow="def b(a: str) -> str: return a"
    )
    (project.root / ".env").write_text("FP_A=12345\n")
    assert project.flows.settings("flow", "dev").inputs == {"a": "12345"}
    assert "FP_A" not in os.environ


def test_b1_exported_variables_follow_the_file_and_leave_the_environment_alone(tmp_path, clean):
    clean.setenv("FP_B", "own")
    (tmp_path / ".env").write_text("FP_A=1\nFP_B=2\n")
    files = config_files.Files(tmp_path)
    try:
        files.export()
        assert (os.environ["FP_A"], os.environ["FP_B"]) == ("1", "own")
        assert config_files.Files(tmp_path).variables._own() == {"FP_A"}, "so a child process knows"
        (tmp_path / ".env").write_text("FP_A=changed\nFP_C=3\n")
        files.variables.look(lasting=False)
        assert (os.environ["FP_A"], os.environ["FP_C"]) == ("changed", "3")
        (tmp_path / ".env").unlink()
        files.variables.look(lasting=False)
        assert not {"FP_A", "FP_C"} & os.environ.keys()
        assert os.environ["FP_B"] == "own"
    finally:
        for name in ("FP_A", "FP_C", "FLOWERPOWER_DOTENV"):
            os.environ.pop(name, None)


def test_b1_a_broken_env_stops_only_what_needs_it(tmp_path, clean, make_project):
    project = make_project(
        "run: {flow: {dev: {inputs: {a: '${PATH}'}}, prod: {inputs: {a: '${FP_A}'}}}}",
        flow="def b(a: str) -> str: return a",
    )
    (project.root / ".env").write_text("FP_A=1\nnonsense\n")
    assert project.flows.settings("flow", "dev").inputs == {"a": os.environ["PATH"]}
    with pytest.raises(MisconfiguredError, match=r"^\.env:2: "):
        project.flows.settings("flow", "prod")
    assert [p.message for p in project.check().errors] == [
        ".env:2: not a line of the form NAME=value"
    ]


def test_b1_a_process_that_lasts_keeps_the_last_good_env_and_says_so_once(tmp_path, clean, caplog):
    files = config_files.Files(tmp_path)
    (tmp_path / ".env").write_text("FP_A=1\n")
    with files.kept():
        files.variables.look(lasting=True)
        (tmp_path / ".env").write_text("FP_A=2\nnonsense\n")
        for _ in range(3):
            files.document("pipelines.yml")
        assert files.variables["FP_A"] == "1"
        assert caplog.text.count("going on with what .env said before: .env:2: ") == 1
        (tmp_path / ".env").write_text("FP_A=3\n")
        files.document("pipelines.yml")
        assert files.variables["FP_A"] == "3"
        assert caplog.text.count(".env can be read again") == 1


def test_b1_a_missing_env_file_is_an_error(tmp_path, clean):
    with pytest.raises(FileAccessError, match="--env-file: there is no file /.*/none"):
        config_files.add_env_files([str(tmp_path / "none")])


SHOW = """
import os


def shown(pw: str, port: int) -> str:
    return f"{pw} {port} {os.environ.get('FP_A')}"
"""
CONF = "run:\n  flow:\n    dev:\n      inputs: {pw: '${FP_A}', port: '${FP_B:-5}'}\n"


def command(project, *args, **env):
    here = {k: v for k, v in os.environ.items() if not k.startswith(("FP_", "FLOWERPOWER_"))}
    return subprocess.run(
        [sys.executable, "-m", "fp_async", *args],
        cwd=project.root, env={**here, **env}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_b1_b9_the_command_has_the_variables_of_env_in_its_environment(make_project, clean):
    project = make_project(CONF, flow=SHOW)
    (project.root / ".env").write_text("FP_A=12345\n")
    (project.root / "more.env").write_text("FP_A=more\nFP_B=7\n")
    run = ("run", "flow", "--quiet", "--output", "json")
    assert "12345 5 12345" in command(project, *run).stdout
    assert "real 5 real" in command(project, *run, FP_A="real").stdout
    assert "more 7 more" in command(project, *run, "--env-file", "more.env").stdout
    (project.root / ".env").write_text("FP_A 1\n")
    done = command(project, *run)
    assert (done.returncode, done.stderr) == (
        2,
        "error: .env:1: not a line of the form NAME=value\n",
    )
