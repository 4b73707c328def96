"""URIs with a login in them: how they are read, and how they are shown, without it.

People write passwords into URIs as they are: with `@`, `:`, `/`, `#`, `?` and `%`. What can be
meant in one way only is read so; of the rest nothing is shown that may be a part of a login.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
_SECRETS = ("password", "passwd", "secret", "token", "api_key", "uri", "broker", "triggers_broker")
_LOGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*://)(?!/)[^\s'\"<>]*@")
_PARAMETER = re.compile(r"(?i)([?&;][^=&\s'\"]*(?:pass|secret|token|key)[^=&\s'\"]*=)[^&;\s'\"<>]+")
_STRAY = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SHORTEST = 3  # a shorter piece of a password tells nothing, and stands in many words


def place(uri: str) -> str:
    """The URI without login, parameters and fragment."""
    scheme, colon, rest = uri.partition("://")
    if not colon:
        scheme, rest = "", uri
    if rest.startswith("/"):  # a file's
        return uri
    return f"{scheme}{colon}" + re.split(r"[?#]", rest.rpartition("@")[2])[0]


def normal(uri: str) -> str:
    """The URI as every parser reads it: what stands raw in user and password is encoded.

    Raises ValueError where it cannot be seen which part is the login.
    """
    scheme, colon, rest = uri.partition("://")
    end = re.search(r"[/?#]", rest)
    cut = end.start() if end else len(rest)
    authority, more = rest[:cut], rest[cut:]
    if not colon or not authority:
        return uri
    before = more if "=" not in more.partition("?")[2].partition("@")[0] else more.partition("?")[0]
    if "@" in before:
        raise ValueError(
            "the user name or the password has a / ? or # in it: write it as %2F %3F %23"
        )
    login, at, host = authority.rpartition("@")
    if not at:
        return uri
    user, has_password, password = login.partition(":")
    written = f"{_encoded(user)}{has_password}{_encoded(password)}"
    return f"{scheme}://{written}@{host}{more}"


def _encoded(text: str) -> str:
    return quote(_STRAY.sub("%25", text), safe="%")


def hidden(text: str) -> str:
    """A text without the logins in the URIs that it quotes."""
    if "://" not in text:
        return text
    return _PARAMETER.sub(rf"\1{HIDDEN}", _LOGIN.sub(rf"\1{HIDDEN}@", text))


def scrubbed(text: str, uri: str) -> str:
    """A text that another library wrote, without the URI and any piece of its password."""
    text = text.replace(uri, place(uri))
    login = uri.partition("://")[2].rpartition("@")[0]
    password = login.partition(":")[2]
    pieces = {password, unquote(password), *re.split(r"[@:/?#]", password)}
    for piece in sorted(pieces, key=len, reverse=True):
        if len(piece) >= _SHORTEST:
            text = text.replace(piece, HIDDEN)
    return hidden(text)


def shown(settings: Any) -> str:
    """The repr of a Struct whose fields may hold logins."""
    fields = {name: getattr(settings, name) for name in settings.__struct_fields__}
    text = ", ".join(f"{name}={_shown(name, value)}" for name, value in fields.items())
    return f"{type(settings).__name__}({text})"


def _shown(name: str, value: Any) -> str:
    if not isinstance(value, str) or name not in _SECRETS:
        return hidden(repr(value))
    return repr(place(value) if "://" in value else HIDDEN)
