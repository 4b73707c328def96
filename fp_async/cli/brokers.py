"""`broker`: one to try things with, in the foreground. `broker-config`: files for a real one."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fp_async import log_levels
from fp_async.cli.saying import echo
from fp_async.errors import BrokerError, MissingExtraError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from fp_async.broker_files import Plan
    from fp_async.broker_folder import Done

log: logging.Logger = logging.getLogger("fp_async")
_FORMAT = "%(asctime)s %(levelname)s %(message)s"
_PORT = click.IntRange(1, 65535)
_FORGETS = "for development: this machine only, nobody logs in, nothing survives its end"


@click.command()
@click.option("--dev", is_flag=True, help="Say that it is for development.")
@click.option("--port", type=_PORT, default=1883, show_default=True, metavar="N")
@click.option("--mosquitto", is_flag=True, help="Run an installed Mosquitto, not the embedded one.")
def broker(port: int, *, dev: bool, mosquitto: bool) -> None:
    """Run an MQTT broker on 127.0.0.1 until a signal comes, for development.

    \b
      flowerpower broker --dev
      flowerpower broker --dev --mosquitto --port 1884

    Anybody on this machine may connect, and nothing survives its end. The embedded broker (pip
    install "fp-async[broker]") speaks MQTT 5 only: mosquitto_pub and mosquitto_sub need
    -V mqttv5, and devices that know only 3.1.1 need --mosquitto. For production: flowerpower
    broker-config.
    """  # noqa: D301
    if not dev:
        raise UsageError(
            "this broker is for development: say so with --dev. Files for a broker in "
            "production are written by: flowerpower broker-config"
        )
    log_levels.write(logging.INFO, _FORMAT)
    program = shutil.which("mosquitto", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if mosquitto:
        _become_mosquitto(program, port)
    try:
        asyncio.run(_embedded(port))
    except MissingExtraError as error:
        if program is None:
            raise
        raise UsageError(f"{error}; or run the installed Mosquitto with --mosquitto") from error


def _become_mosquitto(program: str | None, port: int) -> NoReturn:
    """Run Mosquitto in place of this process; it reads its configuration from a pipe."""
    from fp_async import broker_files
    from fp_async.broker import available

    if program is None:
        raise UsageError(
            "Mosquitto is not installed (apt install mosquitto); the embedded broker needs only: "
            'pip install "fp-async[broker]"'
        )
    available(port)
    log.info("Mosquitto on mqtt://127.0.0.1:%d, %s", port, _FORGETS)
    reading, writing = os.pipe()
    os.write(writing, broker_files.dev(port).encode())
    os.close(writing)
    os.set_inheritable(reading, True)
    os.execv(program, [program, "-c", f"/dev/fd/{reading}"])  # noqa: S606


async def _embedded(port: int) -> None:
    """Until a signal comes; BrokerError when it ends by itself."""
    from fp_async.broker import embedded

    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    async with embedded(port) as running:
        log.info("embedded broker on %s, %s", running.uri, _FORGETS)
        log.info("it speaks MQTT 5: mosquitto_sub -V mqttv5 -p %d -v -t '#'", port)
        waiting = asyncio.create_task(ended.wait())
        ending = asyncio.create_task(running.process.wait())
        await asyncio.wait((waiting, ending), return_when=asyncio.FIRST_COMPLETED)
        if ending.done() and not ended.is_set():
            raise BrokerError(f"the embedded broker has ended ({running.process.returncode})")
        waiting.cancel()
    log.info("embedded broker has ended")


# Files for a real one ----------------------------------------------------------------------------

_NAMES = "A,B"


@click.command("broker-config")
@click.option("--agents", metavar=_NAMES, help="Agents to add.")
@click.option("--client", metavar="NAME", help="Somebody else, who triggers pipelines, to add.")
@click.option("--publish", multiple=True, metavar="FILTER", help="What --client may say.")
@click.option("--subscribe", multiple=True, metavar="FILTER", help="What --client may hear.")
@click.option("--revoke", metavar=_NAMES, help="Agents or clients to remove.")
@click.option("--site", metavar="NAME", help="Which fleet; several may share a broker.")
@click.option("--prefix", metavar="TOPIC", help="Topics begin with it. Default: fp/v1.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), default="broker", show_default=True
)
@click.option("--host", metavar="NAME", help="Where clients find the broker. Default: localhost.")
@click.option("--port", type=_PORT, metavar="N", help="Default: 8883 with TLS, else 1883.")
@click.option("--tls/--no-tls", default=None, help="TLS, and a certificate for each client (mTLS).")
@click.option("--emqx/--mosquitto", default=None, help="Files for EMQX. Default: Mosquitto.")
@click.option("--at", metavar="DIR", help="Where the broker's machine has them. Default: --out.")
@click.option("--topics", multiple=True, metavar="FILTER", help="Of triggers, for the gateway.")
@click.option("--answers", multiple=True, metavar="FILTER", help="Response topics of triggers.")
@click.option("--local-topics", multiple=True, metavar="FILTER", help="Of agents' own triggers.")
@click.option("--overwrite", is_flag=True, help="Replace files that others wrote or changed.")
def broker_config(
    agents: str | None,
    client: str | None,
    publish: tuple[str, ...],
    subscribe: tuple[str, ...],
    revoke: str | None,
    out: Path,
    *,
    overwrite: bool,
    **options: Any,
) -> None:
    """Write configuration, users and rights of a broker, and its clients' files.

    \b
      flowerpower broker-config --agents pi-7,pi-8 --tls --host broker.example
      flowerpower broker-config --agents pi-9
      flowerpower broker-config --revoke pi-8
      flowerpower broker-config --client shop --publish 'orders/#' --subscribe 'answers/#'
      flowerpower broker-config --site berlin --agents pi-7

    Each agent may say and hear only what is its own. Again, it keeps what it was told before,
    users keep their passwords, and so do your own lines in all files. The authority that --tls
    makes is one to start with: put your own ca.crt, server.crt and client.crt in its place.
    """  # noqa: D301
    from fp_async import broker_files, broker_folder

    place = broker_folder.place_of(out, options["site"])
    before = broker_folder.read(place)
    plan = _planned(before.plan if before else None, out, options, further=place != out)
    plan = _with_client(broker_folder.beside(out, plan) if place != out else plan, client,
        publish, subscribe)  # fmt: skip
    plan = _with_agents(plan, _names("--agents", agents), _names("--revoke", revoke))
    broker_files.check(plan)
    done = broker_folder.write(out, plan, overwrite=overwrite)
    _tell(out, place, plan, done, revoked=revoke is not None)


def _planned(
    before: Plan | None, out: Path, options: dict[str, Any], *, further: bool = False
) -> Plan:
    """Lay the new options over those of the last call; `further`: for one more site."""
    import msgspec

    from fp_async.broker_files import Plan

    emqx = options.pop("emqx")
    if emqx is not None:
        options["kind"] = "emqx" if emqx else "mosquitto"
    changes = {name: value for name, value in options.items() if value not in (None, ())}
    for name in ("kind", "host", "port", "tls", "at"):
        if further and name in changes:
            raise UsageError(
                f"--site {options['site']} shares the broker of {out}: say what concerns the "
                f"broker ({name}) without --site, or take another folder with --out"
            )
    if before is None:
        return Plan(**{"at": str(out.resolve()), **changes})
    if changes.get("kind", before.kind) != before.kind:
        raise UsageError(f"{out} is for kind '{before.kind}': take another folder with --out")
    return msgspec.structs.replace(before, **changes)


def _with_client(
    plan: Plan, name: str | None, publish: tuple[str, ...], subscribe: tuple[str, ...]
) -> Plan:
    """With one more client, or with other rights of one that is there."""
    import msgspec

    from fp_async.broker_files import Client

    if name is None:
        if publish or subscribe:
            raise UsageError("--publish and --subscribe: whose? --client NAME")
        return plan
    known = plan.clients.get(name, Client())
    client = Client(publish or known.publish, subscribe or known.subscribe)
    if client == Client():
        raise UsageError(f"--client {name}: what may it do? --publish FILTER, --subscribe FILTER")
    return msgspec.structs.replace(plan, clients={**plan.clients, name: client})


def _with_agents(plan: Plan, added: list[str], revoked: list[str]) -> Plan:
    import msgspec

    for name in revoked:
        if name not in plan.agents and name not in plan.clients:
            raise UnknownNameError("agent", name, (*plan.agents, *plan.clients))
        if name in added:
            raise UsageError(f"'{name}' stands in both --agents and --revoke")
    names = dict.fromkeys((*plan.agents, *added))
    kept = tuple(name for name in names if name not in revoked)
    if not kept and not revoked and not plan.clients:
        raise UsageError("for whom? --agents pi-7,pi-8")
    plain = tuple(name for name in plan.plain or () if name in kept)
    clients = {name: each for name, each in plan.clients.items() if name not in revoked}
    return msgspec.structs.replace(plan, agents=kept, plain=plain, clients=clients)


def _names(option: str, text: str | None) -> list[str]:
    if text is None:
        return []
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise UsageError(f"{option} {text!r}: write names with commas between them: pi-7,pi-8")
    return names


def _tell(out: Path, place: Path, plan: Plan, done: Done, *, revoked: bool) -> None:
    from fp_async.broker_files import texts, users_file

    main = next(iter(texts(plan)))
    echo(f"{out / main}: the broker's configuration, with {users_file(plan)} beside it")
    echo(f"{place / 'gateway' / 'mqtt.yml'}: for conf/mqtt.yml of the gateway's project")
    for name in plan.agents:
        if plan.user(name) in done.new:
            echo(f"{place / 'agents' / name}/: for {name}; it holds its password")
    for name in plan.clients:
        if plan.names.client(name) in done.new:
            echo(f"{place / 'clients' / name}/: for {name}; it holds its password")
    for line in _remarks(out, plan, done, revoked=revoked):
        echo(line, err=True)


def _seen(line: str) -> str:
    """A line that a file lacks, without a password."""
    from fp_async.addresses import hidden

    key, colon, _ = line.partition(":")
    return f"{key}: ..." if colon and key in ("password", "triggers_broker") else hidden(line)


def _remarks(out: Path, plan: Plan, done: Done, *, revoked: bool) -> Iterable[str]:
    for name, lacks in done.left.items():
        lacking = f", and lacks: {'; '.join(map(_seen, lacks))}" if lacks else ""
        yield (
            f"{out / name} was changed by hand and is left as it is{lacking}; write it there, or "
            "--overwrite replaces the file"
        )
    if done.unknown:
        yield f"not here any more, so only the broker knows them: {', '.join(done.unknown)}"
    if not plan.tls:
        yield "without --tls passwords can be read on the way"
    elif (out / "ca.key").exists():
        yield f"keep {out / 'ca.key'} elsewhere: whoever has it makes certificates"
    if revoked or done.new:
        how = "import users.csv" if plan.kind == "emqx" else "kill -HUP"
        yield f"a broker that runs has to be told: {how}; its files must be readable for it"
