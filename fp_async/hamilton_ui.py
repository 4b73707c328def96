"""The Hamilton UI (extra `[ui]`), served by this process until it is interrupted.

Its own command listens on every address with Django's debug mode on, where everybody who can
reach the port is whoever they say they are, and may see what the server has in memory. This one
listens on localhost unless another address is given, without debug mode and with a secret of its
own. Its pages load scripts from other sites that report who uses it; browsers are told not to.
"""

from __future__ import annotations

import configparser
import importlib
import os
import secrets
import socket
import sys
import threading
import types
import webbrowser
from collections.abc import Callable, Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from fp_async.errors import ConfigError, FileAccessError, MissingExtraError, UsageError

_SETTINGS = {"mini": "server.settings_mini", "deploy": "server.settings"}
_OURS = "fp_hamilton_ui_settings"
_POLICY = (  # of the pages: what they may load, and whom they may tell
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
)
_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104 - only where the user asks for it


def serve(
    base_dir: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8241,
    settings: Literal["mini", "deploy"] = "mini",
    config_file: Path | None = None,
    migrate: bool = True,
    ready: Callable[[str], None] = lambda _: None,
) -> None:
    """Serve the UI; `ready` is called with its address when it listens.

    `base_dir` has its database and blobs. `config_file` is an ini file with a section `deploy`,
    of environment variables. Raises MissingExtraError, ConfigError, UsageError for an address
    that is taken, FileAccessError.
    """
    _check_free(host, port)
    _prepare(base_dir, settings, config_file)
    application = _application(settings, host, migrate=migrate)
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

    class Handler(WSGIRequestHandler):  # type: ignore[misc]
        def log_message(self, format: str, *args: Any) -> None:
            del format, args

    server = ThreadedWSGIServer((host, port), Handler, ipv6=":" in host)
    server.daemon_threads = True
    server.set_app(_guarded(application))
    shown = "localhost" if host in ("127.0.0.1", "::1", *_ANYWHERE) else host
    ready(f"http://{shown}:{server.server_port}")
    try:
        server.serve_forever()
    finally:
        server.server_close()


def open_browser(address: str) -> None:
    """Have the page opened, without waiting for it."""
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def _check_free(host: str, port: int) -> None:
    """Before Django is loaded, and the database touched."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot listen on {host}:{port}: {why}") from error


def _prepare(base_dir: Path, settings: str, config_file: Path | None) -> None:
    """What the package's settings want to find when they are imported."""
    spec = find_spec("hamilton_ui")
    if spec is None or not spec.submodule_search_locations or find_spec("django") is None:
        raise MissingExtraError("the Hamilton UI", "ui")
    sys.path.insert(0, spec.submodule_search_locations[0])
    os.environ["HAMILTON_BASE_DIR"] = str(base_dir)
    if settings == "deploy":
        os.environ.update(_deployment(config_file))
        return
    try:
        (base_dir / "blobs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileAccessError(f"cannot write to {base_dir}: {error.strerror}") from error


def _deployment(path: Path | None) -> Mapping[str, str]:
    if path is None:
        raise UsageError("--settings-file deploy needs a --config-file")
    parser = configparser.RawConfigParser()
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        if not parser.read(path, encoding="utf-8"):
            raise FileAccessError(f"cannot read {path}")
    except (configparser.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error
    if "deploy" not in parser:
        raise ConfigError(f"{path}: it has no section [deploy]")
    return dict(parser["deploy"])


def _application(settings: str, host: str, *, migrate: bool) -> Any:
    """The package's WSGI application, with our settings over its own."""
    try:
        theirs = vars(importlib.import_module(_SETTINGS[settings]))
    except ValueError as error:  # a variable is missing, or wrong
        raise ConfigError(f"--config-file: {error}") from error
    ours = types.ModuleType(_OURS)
    vars(ours).update({name: value for name, value in theirs.items() if name.isupper()})
    if settings == "mini":
        vars(ours).update(DEBUG=False, SECRET_KEY=secrets.token_hex(32))
    ours.ALLOWED_HOSTS = _hosts(host, theirs["ALLOWED_HOSTS"])  # type: ignore[attr-defined]
    sys.modules[_OURS] = ours
    os.environ["DJANGO_SETTINGS_MODULE"] = _OURS
    ours.LOGGING_CONFIG = None  # type: ignore[attr-defined]  # its loggers tell every statement
    import django
    from django.core.management import call_command
    from django.core.wsgi import get_wsgi_application

    django.setup()
    if migrate:
        call_command("migrate", verbosity=0)
    return get_wsgi_application()


def _hosts(host: str, known: Iterable[str]) -> list[str]:
    """The names that a request may call the server by: others are pages of somebody else's."""
    if host in ("127.0.0.1", "::1", "localhost"):
        return ["localhost", "127.0.0.1", "[::1]"]
    return [*(name for name in known if name), host]


def _guarded(application: Any) -> Callable[[dict[str, Any], Callable[..., Any]], Any]:
    """The application, with a policy for its pages."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, ("Content-Security-Policy", _POLICY)], *rest)

        return application(environ, start)

    return answer
