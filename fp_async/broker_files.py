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
from urllib.parse import quote

import msgspec

from fp_async import broker_merging
from fp_async.errors import UsageError
from fp_async.topics import Topics, checked_name

TLS_PORT, PLAIN_PORT = 8883, 1883
_ROUNDS = 101  # Mosquitto's own; passwords of 192 random bits gain nothing by more
_SALT_BYTES = 12

_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_-]{0,252}")
_PLAIN = re.compile(r"/[A-Za-z0-9_./@+-]*")
_PREFIX = re.compile(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*")

Kind = Literal["mosquitto", "emqx"]


class Client(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A client that is no agent: filters of what it may say, and of what it may hear."""

    publish: tuple[str, ...] = ()
    subscribe: tuple[str, ...] = ()


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A fleet and its broker. `at` is where the files are on the broker's machine.

    `topics` are filters outside of the prefix that the gateway hears for its triggers, `answers`
    those of response topics, `local_topics` what agents hear for triggers of their own. `clients`
    are others, by name: who triggers pipelines. `plain` are agents that an earlier release gave
    users without the site; None where it wrote the plan.
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
    plain: tuple[str, ...] | None = ()
    clients: dict[str, Client] = {}

    @property
    def gateway(self) -> str:
        return f"fp-gateway-{self.site}"

    @property
    def users(self) -> list[str]:
        agents = (user for name in self.agents for user in self.users_of(name))
        return [self.gateway, *agents, *map(self.names.client, self.clients)]

    @property
    def names(self) -> Topics:
        return Topics(self.prefix, self.site)

    def user(self, agent: str) -> str:
        """Return an agent's user, which is its client id, too."""
        return agent if agent in (self.plain or ()) else self.names.client(agent)

    def listener(self, agent: str) -> str:
        """Return the user under which an agent hears the topics of its own triggers."""
        name = f"{agent}-triggers"
        return name if agent in (self.plain or ()) else self.names.client(name)

    def users_of(self, agent: str) -> list[str]:
        """An agent has one user for each of its connections."""
        return [self.user(agent), self.listener(agent)] if self.local_topics else [self.user(agent)]

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
    if not _is_value(plan.at) or "${" in plan.at:
        text = "one line that can be printed, without a quotation mark or a backslash"
        raise UsageError(f"--at {plan.at!r}: the path of a folder is {text}")
    for name in plan.agents:
        checked_name("agent", name)
        if name.startswith("fp-gateway-"):
            raise UsageError(f"agent '{name}': names that begin with fp-gateway- are gateways'")
    for name, client in plan.clients.items():
        _check_client(plan, name, client)
    twice = [user for user, count in Counter(plan.users).items() if count > 1]
    if twice:
        raise UsageError(f"'{twice[0]}' would be two users: agents need different names")
    _check_filters(*plan.topics, *plan.answers, *plan.local_topics)
    for each in plan.local_topics:
        if _reaches(each, plan.prefix):
            raise UsageError(f"--local-topics '{each}': agents would hear what is said to others")


def _check_client(plan: Plan, name: str, client: Client) -> None:
    checked_name("client", name)
    if name.startswith("fp-gateway-"):
        raise UsageError(f"client '{name}': names that begin with fp-gateway- are gateways'")
    _check_filters(*client.publish, *client.subscribe)
    names = plan.names
    for each in client.publish:
        if _reaches(each, f"{names.root}/agent") or _reaches(each, names.gateway):
            raise UsageError(f"--publish '{each}': client '{name}' could speak as gateway or agent")


def _check_filters(*filters: str) -> None:
    for each in filters:
        if not _is_filter(each):
            raise UsageError(f"topic filter '{each}': + is a whole level, # only the last one")


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    whole = all(part in ("+", "#") or not set("+#") & set(part) for part in levels)
    return bool(_is_value(text) and whole and "#" not in levels[:-1])


def _is_value(text: str) -> bool:
    """Return whether a text ends where it is meant to end, as a value in a broker's file."""
    return bool(text) and text == text.strip() and text.isprintable() and not set('"\\') & set(text)


def _reaches(topic_filter: str, prefix: str) -> bool:
    """Whether a filter may mean a topic below the prefix."""
    wanted, levels = topic_filter.split("/"), prefix.split("/")
    for part, level in zip(wanted, levels, strict=False):
        if part == "#":
            return True
        if part not in ("+", level):
            return False
    return len(wanted) >= len(levels)


def dev(port: int) -> str:
    """Mosquitto's configuration for development."""
    return _template("mosquitto-dev.conf").replace("listener 1883 ", f"listener {port} ")


def texts(plan: Plan) -> dict[str, str]:
    """The broker's files that hold no secret, by their names."""
    if plan.kind == "emqx":
        return {"emqx.conf": emqx(plan), "acl.conf": emqx_rights(plan)}
    return {"mosquitto.conf": mosquitto(plan), "acl": mosquitto_rights(plan)}


def rights_file(plan: Plan) -> str:
    return "acl.conf" if plan.kind == "emqx" else "acl"


def rights(plan: Plan, kept: str = "", before: Plan | None = None) -> str:
    """The file of rights, in which the lines that others have `kept` there stay."""
    lines = _emqx_lines if plan.kind == "emqx" else _mosquitto_lines
    comment = "%%" if plan.kind == "emqx" else "#"
    old = None
    if before is not None:
        names = {"root": before.names.root, "gateway": before.names.gateway}
        earlier = _EMQX_PATTERNS if plan.kind == "emqx" else _EARLIER + _MOSQUITTO_PATTERNS
        old = lines(before) + earlier.format(**names)
    return broker_merging.renewed(kept, plan.site, lines(plan), old, comment)


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

"""
# Of earlier releases, which let everybody with a login speak as the agent of the same name:
_MOSQUITTO_PATTERNS = """\
# %u is the user. The gateway's user matches as well, and nobody listens there.
pattern write {root}/agent/%u/state
pattern write {root}/agent/%u/report
pattern read {root}/agent/%u/state
pattern read {root}/agent/%u/do
# No %u, so it holds for everybody who is logged in (Mosquitto warns of that).
pattern read {gateway}

"""
_MOSQUITTO_GATEWAY = """\
user {user}
topic readwrite {root}/#
"""
_MOSQUITTO_AGENT = """\

user {user}
topic write {root}/agent/{agent}/state
topic write {root}/agent/{agent}/report
topic read {root}/agent/{agent}/state
topic read {root}/agent/{agent}/do
topic read {gateway}
"""
_MOSQUITTO_SENDER = """
# Somebody who triggers pipelines and reads their outcomes: broker-config --client shop --publish
# {root}/run/my_flow --subscribe {root}/run/my_flow/outcome --subscribe '{root}/job/+'
"""
# Of an earlier release, which made no marks around what it wrote:
_EARLIER = """
# Somebody who triggers pipelines and reads their outcomes: a line in `passwords`, and
# user shop
# topic write {root}/run/my_flow
# topic read {root}/run/my_flow/outcome
# topic read {root}/job/+
"""
_MOSQUITTO_CLIENT = "\n# A client.\nuser {user}\n"


def mosquitto(plan: Plan) -> str:
    """`mosquitto.conf`."""
    tls = (_MOSQUITTO_TLS if plan.tls else _MOSQUITTO_PLAIN).format(at=plan.at)
    return _template("mosquitto.conf").format(
        site=plan.site, port=plan.listens, tls=tls, at=plan.at
    )


def mosquitto_rights(plan: Plan) -> str:
    """`acl`."""
    return rights(plan)


def _mosquitto_lines(plan: Plan) -> str:
    """Our part of `acl`."""
    names = {"root": plan.names.root, "gateway": plan.names.gateway}
    lines = [_MOSQUITTO_RIGHTS.format(site=plan.site)]
    lines.append(_MOSQUITTO_GATEWAY.format(user=plan.gateway, **names))
    lines += [f"topic read {each}\n" for each in plan.topics]
    lines += [f"topic write {each}\n" for each in plan.answers]
    for agent in plan.agents:
        lines.append(_MOSQUITTO_AGENT.format(user=plan.user(agent), agent=agent, **names))
    if plan.local_topics:
        for agent in plan.agents:
            lines.append(f"\nuser {plan.listener(agent)}\n")
            lines += [f"topic read {each}\n" for each in plan.local_topics]
    for name, client in plan.clients.items():
        lines.append(_MOSQUITTO_CLIENT.format(user=plan.names.client(name)))
        lines += [f"topic write {each}\n" for each in client.publish]
        lines += [f"topic read {each}\n" for each in client.subscribe]
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
"""
# Of earlier releases, as above:
_EMQX_PATTERNS = """\
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
    return rights(plan)


def _emqx_lines(plan: Plan) -> str:
    """Our part of `acl.conf`."""
    names = {"site": plan.site, "root": plan.names.root, "gateway": plan.names.gateway}
    rules = [
        *_emqx_rule(plan.gateway, "subscribe", plan.topics),
        *_emqx_rule(plan.gateway, "publish", plan.answers),
    ]
    for agent in plan.agents:
        own, user = f"{plan.names.root}/agent/{agent}", plan.user(agent)
        rules += _emqx_rule(user, "publish", (f"{own}/state", f"{own}/report"))
        rules += _emqx_rule(user, "subscribe", (f"{own}/state", f"{own}/do", plan.names.gateway))
    for agent in plan.agents:
        rules += _emqx_rule(plan.listener(agent), "subscribe", plan.local_topics)
    for name, client in plan.clients.items():
        rules += _emqx_rule(plan.names.client(name), "publish", client.publish)
        rules += _emqx_rule(plan.names.client(name), "subscribe", client.subscribe)
    head = _EMQX_RIGHTS.format(user=plan.gateway, **names)
    return "".join((head, *rules))


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
    lines += [f"username: {plan.user(name)}", f'password: "{password}"']
    if plan.tls:
        lines += ["ca_file: ca.crt", "cert_file: client.crt", "key_file: client.key"]
    if second is not None:
        scheme, _, place = plan.uri.partition("://")
        user = quote(plan.listener(name), safe="")
        lines.append(f"triggers_broker: {scheme}://{user}:{second}@{place}")
    return "\n".join((*lines, ""))


def mqtt_yml(plan: Plan, password: str, folder: str, *, listed: bool = True) -> str:
    """The gateway's part of `conf/mqtt.yml`; its certificates are in `folder`. Earlier releases
    wrote it without the agents that are admitted (`listed`).
    """
    lines = ["broker:", f"  uri: {plan.uri}", f"  username: {plan.gateway}"]
    lines.append(f'  password: "{password}"')
    if plan.tls:
        files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        lines += [f"  {key}: {_scalar(f'{folder}/{file}')}" for key, file in files.items()]
    lines += [f"prefix: {plan.prefix}", f"site: {plan.site}"]
    if plan.agents and listed:  # "tags" and "window" of each: docs/edge.md
        lines += ["agents:", *(f"  {_scalar(name)}: {{}}" for name in plan.agents)]
    return "\n".join((*lines, ""))


def _scalar(text: str) -> str:
    """A text in YAML, in quotes where it might be read as something else."""
    return text if _PLAIN.fullmatch(text) else msgspec.json.encode(text).decode()


_CLIENT = """\
# A client of the broker, '{user}'; what it may say and hear stands in {rights}.
# The broker takes the user for the client id: one user is one connection at a time.
# mosquitto_pub -h {host} -p {port} -u '{user}' -P '{password}'{files} -q 1 -t TOPIC -m '{{}}'
uri: {uri}
username: {user}
password: "{password}"
"""
_CLIENT_FILES = "ca_file: ca.crt\ncert_file: client.crt\nkey_file: client.key\n"


def client_yml(plan: Plan, name: str, password: str) -> str:
    """Return the settings by which another client connects, with certificates beside them."""
    files = " --cafile ca.crt --cert client.crt --key client.key" if plan.tls else ""
    text = _CLIENT.format(
        user=plan.names.client(name),
        rights=rights_file(plan),
        host=plan.host,
        port=plan.listens,
        password=password,
        files=files,
        uri=plan.uri,
    )
    return text + (_CLIENT_FILES if plan.tls else "")


def _template(name: str) -> str:
    return (files("fp_async") / "templates" / name).read_text(encoding="utf-8")
