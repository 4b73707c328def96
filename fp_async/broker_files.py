"""What a production broker is told: Mosquitto's or EMQX's configuration, rights, users. Pure.

An agent may say its own state and reports and hear what is meant for it, and whether a gateway is
there; the gateway may do everything below the site's prefix, hear the topics of triggers, and
answer. Users are named like client ids, and the broker takes the one for the other: whoever has
another name cannot take that client's session.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from importlib.resources import files
from typing import Literal

import msgspec

from fp_async.errors import UsageError
from fp_async.topics import Topics, checked_name

TLS_PORT, PLAIN_PORT = 8883, 1883
_ROUNDS = 101  # Mosquitto's own; passwords of 192 random bits gain nothing by more
_SALT_BYTES = 12

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")

Kind = Literal["mosquitto", "emqx"]


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fleet and its broker. `at` is where the files are on the broker's machine.

    `topics` are filters outside of the prefix that the gateway hears for its triggers, `answers`
    those of response topics, `local_topics` what agents hear for triggers of their own.
    """

    agents: tuple[str, ...] = ()
    site: str = "main"
    prefix: str = "fp/v1"
    kind: Kind = "mosquitto"
    host: str = "localhost"
    port: int | None = None
    tls: bool = False
    at: str = "/etc/mosquitto/flowerpower"
    topics: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    local_topics: tuple[str, ...] = ()

    @property
    def gateway(self) -> str:
        return f"fp-gateway-{self.site}"

    @property
    def users(self) -> list[str]:
        return [self.gateway, *(user for name in self.agents for user in self.users_of(name))]

    def users_of(self, agent: str) -> list[str]:
        """An agent has one user for each of its connections."""
        return [agent, listener(agent)] if self.local_topics else [agent]

    @property
    def listens(self) -> int:
        return self.port or (TLS_PORT if self.tls else PLAIN_PORT)

    @property
    def uri(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.listens}"


def check(plan: Plan) -> None:
    """Raises UsageError for names, hosts and topics that cannot be, or that give too much away."""
    checked_name("site", plan.site)
    if not _PREFIX.fullmatch(plan.prefix):
        raise UsageError(f"prefix '{plan.prefix}': topic levels with '/' between them, as fp/v1")
    if not _HOST.fullmatch(plan.host):
        raise UsageError(f"host '{plan.host}': a name or an address, without a port")
    for name in plan.agents:
        checked_name("agent", name)
        if name.startswith("fp-gateway-"):
            raise UsageError(f"agent '{name}': names that begin with fp-gateway- are gateways'")
    twice = [user for user, count in Counter(plan.users).items() if count > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' would be two users: agents need different names")
    for each in (*plan.topics, *plan.answers, *plan.local_topics):
        if not _is_filter(each):
            raise UsageError(f"topic filter '{each}': + is a whole level, # only the last one")
    for each in plan.local_topics:
        if _reaches(each, plan.prefix):
            raise UsageError(f"--local-topics '{each}': agents would hear what is said to others")


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    plain = text and text == text.strip() and not re.search(r'[\0-\x1f"\\]', text)
    whole = all(part in ("+", "#") or not set("+#") & set(part) for part in levels)
    return bool(plain and whole and "#" not in levels[:-1])


def _reaches(topic_filter: str, prefix: str) -> bool:
    """Whether a filter may mean a topic below the prefix."""
    wanted, levels = topic_filter.split("/"), prefix.split("/")
    for part, level in zip(wanted, levels, strict=False):
        if part == "#":
            return True
        if part not in ("+", level):
            return False
    return len(wanted) >= len(levels)


def listener(agent: str) -> str:
    """The user (and client id) under which an agent hears the topics of its own triggers."""
    return f"{agent}-triggers"


def dev(port: int) -> str:
    """Mosquitto's configuration for development."""
    return _template("mosquitto-dev.conf").replace("listener 1883 ", f"listener {port} ")


def texts(plan: Plan) -> dict[str, str]:
    """The broker's files that hold no secret, by their names."""
    if plan.kind == "emqx":
        return {"emqx.conf": emqx(plan), "acl.conf": emqx_rights(plan)}
    return {"mosquitto.conf": mosquitto(plan), "acl": mosquitto_rights(plan)}


def users_file(plan: Plan) -> str:
    return "users.csv" if plan.kind == "emqx" else "passwords"


# Mosquitto ------------------------------------------------------------------------------------

_MOSQUITTO_TLS = """\
cafile {at}/ca.crt
certfile {at}/server.crt
keyfile {at}/server.key
tls_version tlsv1.2
# Clients, too, need a certificate of this authority, besides their password (mTLS). With `false`
# the password alone is enough, and `cert_file` and `key_file` of the clients may be left out.
require_certificate true
"""
_MOSQUITTO_PLAIN = """\
# NO TLS: passwords and all that is said can be read on the way. `broker-config --tls` changes it.
"""
_MOSQUITTO_RIGHTS = """\
# Who may say and hear what, of site '{site}'. Written by: flowerpower broker-config
# Mosquitto grants a denied subscription and then delivers nothing: a client does not notice.

# %u is the user. The gateway's user matches as well, and nobody listens there.
pattern write {root}/agent/%u/state
pattern write {root}/agent/%u/report
pattern read {root}/agent/%u/state
pattern read {root}/agent/%u/do
# No %u, so it holds for everybody who is logged in (Mosquitto warns of that).
pattern read {gateway}

user {user}
topic readwrite {root}/#
"""
_MOSQUITTO_SENDER = """
# Somebody who triggers pipelines and reads their outcomes: a line in `passwords`, and
# user shop
# topic write {root}/run/my_flow
# topic read {root}/run/my_flow/outcome
# topic read {root}/job/+
"""


def mosquitto(plan: Plan) -> str:
    """`mosquitto.conf`."""
    tls = (_MOSQUITTO_TLS if plan.tls else _MOSQUITTO_PLAIN).format(at=plan.at)
    return _template("mosquitto.conf").format(
        site=plan.site, port=plan.listens, tls=tls, at=plan.at
    )


def mosquitto_rights(plan: Plan) -> str:
    """`acl`."""
    topics = Topics(plan.prefix, plan.site)
    names = {"root": topics.root, "gateway": topics.gateway}
    lines = [_MOSQUITTO_RIGHTS.format(site=plan.site, user=plan.gateway, **names)]
    lines += [f"topic read {each}\n" for each in plan.topics]
    lines += [f"topic write {each}\n" for each in plan.answers]
    if plan.local_topics:
        for agent in plan.agents:
            lines.append(f"\nuser {listener(agent)}\n")
            lines += [f"topic read {each}\n" for each in plan.local_topics]
    return "".join((*lines, _MOSQUITTO_SENDER.format(**names)))


def mosquitto_user(user: str, password: str, salt: bytes) -> str:
    """A line of `passwords`, as `mosquitto_passwd` writes it; `salt` is 12 random bytes."""
    hashed = hashlib.pbkdf2_hmac("sha512", password.encode(), salt[:_SALT_BYTES], _ROUNDS)
    parts = (base64.b64encode(part).decode() for part in (salt[:_SALT_BYTES], hashed))
    return f"{user}:$7${_ROUNDS}${'$'.join(parts)}"


# EMQX -----------------------------------------------------------------------------------------

_EMQX_OTHERS = """\
listeners.ws.default.enable = false
listeners.wss.default.enable = false
"""
_EMQX_TLS = """\
listeners.tcp.default.enable = false
listeners.ssl.default {{
  bind = "0.0.0.0:{port}"
  tcp_options.nodelay = true
  ssl_options {{
    cacertfile = "{at}/ca.crt"
    certfile = "{at}/server.crt"
    keyfile = "{at}/server.key"
    # Clients, too, need a certificate of this authority, besides their password (mTLS); with
    # verify_none and false the password alone is enough.
    verify = verify_peer
    fail_if_no_peer_cert = true
  }}
}}
"""
_EMQX_PLAIN = """\
# NO TLS: passwords and all that is said can be read on the way. `broker-config --tls` changes it.
listeners.ssl.default.enable = false
listeners.tcp.default {{
  bind = "0.0.0.0:{port}"
  tcp_options.nodelay = true
}}
"""
_EMQX_RIGHTS = """\
%% Who may say and hear what, of site '{site}'. Written by: flowerpower broker-config
%% It follows EMQX's documentation; it was not started here.
{{allow, {{username, "{user}"}}, all, ["{root}/#"]}}.
{{allow, all, publish, ["{root}/agent/${{username}}/state", "{root}/agent/${{username}}/report"]}}.
{{allow, all, subscribe, ["{root}/agent/${{username}}/state", "{root}/agent/${{username}}/do"]}}.
{{allow, all, subscribe, ["{gateway}"]}}.
"""


def emqx(plan: Plan) -> str:
    """`emqx.conf`."""
    listeners = (_EMQX_TLS if plan.tls else _EMQX_PLAIN).format(port=plan.listens, at=plan.at)
    text = _template("emqx.conf")
    return text.format(site=plan.site, at=plan.at, listeners=listeners + _EMQX_OTHERS)


def emqx_rights(plan: Plan) -> str:
    """`acl.conf`."""
    topics = Topics(plan.prefix, plan.site)
    names = {"site": plan.site, "root": topics.root, "gateway": topics.gateway}
    rules = [
        *_emqx_rule(plan.gateway, "subscribe", plan.topics),
        *_emqx_rule(plan.gateway, "publish", plan.answers),
    ]
    for agent in plan.agents:
        rules += _emqx_rule(listener(agent), "subscribe", plan.local_topics)
    head = _EMQX_RIGHTS.format(user=plan.gateway, **names)
    return "".join((head, *rules, "{deny, all}.\n"))


def _emqx_rule(user: str, action: str, filters: tuple[str, ...]) -> list[str]:
    quoted = ", ".join(f'"{each}"' for each in filters)
    return [f'{{allow, {{username, "{user}"}}, {action}, [{quoted}]}}.\n'] if filters else []


def emqx_user(user: str, password: str, salt: bytes) -> str:
    """A line of `users.csv`: user_id, password_hash, salt, is_superuser."""
    text = salt.hex()
    return f"{user},{hashlib.sha256((password + text).encode()).hexdigest()},{text},false"


# Clients --------------------------------------------------------------------------------------


def agent_yml(plan: Plan, name: str, password: str, second: str | None) -> str:
    """An agent's `agent.yml`, with certificates beside it; `second` is its listener's password."""
    lines = [f"broker: {plan.uri}", f"name: {name}"]
    if plan.site != "main":
        lines.append(f"site: {plan.site}")
    if plan.prefix != "fp/v1":
        lines.append(f"prefix: {plan.prefix}")
    lines += [f"username: {name}", f'password: "{password}"']
    if plan.tls:
        lines += ["ca_file: ca.crt", "cert_file: client.crt", "key_file: client.key"]
    if second is not None:
        scheme, _, place = plan.uri.partition("://")
        lines.append(f"triggers_broker: {scheme}://{listener(name)}:{second}@{place}")
    return "\n".join((*lines, ""))


def mqtt_yml(plan: Plan, password: str, folder: str) -> str:
    """The gateway's part of `conf/mqtt.yml`; its certificates are in `folder`."""
    lines = ["broker:", f"  uri: {plan.uri}", f"  username: {plan.gateway}"]
    lines.append(f'  password: "{password}"')
    if plan.tls:
        files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        lines += [f"  {key}: {folder}/{file}" for key, file in files.items()]
    return "\n".join((*lines, f"prefix: {plan.prefix}", f"site: {plan.site}", ""))


def _template(name: str) -> str:
    return (files("fp_async") / "templates" / name).read_text(encoding="utf-8")
