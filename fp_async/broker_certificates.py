"""A small certificate authority for a broker and its clients, made by the `openssl` command.

For a start: who has an authority of their own had better use that.
"""

from __future__ import annotations

import ipaddress
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from fp_async.errors import FileAccessError, UsageError

_CA_DAYS, _DAYS = 3650, 825
_SECTIONS = """
[req]
distinguished_name = name
prompt = no
[name]
CN = {name}
[ca]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(certificate: Path, key: Path, name: str) -> None:
    """Make `certificate` and `key` of an authority, unless both are there. Raises as `server`."""
    if certificate.exists() and key.exists():
        return
    files = ("-keyout", str(key), "-out", str(certificate))
    valid = ("-x509", "-days", str(_CA_DAYS), "-extensions", "ca")
    _openssl(name, (), ("req", *valid, *_NEW_KEY, *files))
    certificate.chmod(0o644)


def server(folder: Path, authority: Path, hosts: Iterable[str]) -> None:
    """`server.crt` and `server.key` in `folder` for these names and addresses, unless there.

    Raises UsageError without `openssl`, FileAccessError with what it says.
    """
    _issue(folder, "server", authority, hosts)


def client(folder: Path, authority: Path, name: str) -> None:
    """`client.crt` and `client.key` in `folder` for the user `name`, unless there. As `server`."""
    _issue(folder, "client", authority, (name,))


def _issue(folder: Path, kind: str, authority: Path, names: Iterable[str]) -> None:
    certificate, key = folder / f"{kind}.crt", folder / f"{kind}.key"
    if certificate.exists() and key.exists():
        return
    hosts = list(names)
    request = folder / f"{kind}.csr"
    _openssl(hosts[0], hosts, ("req", *_NEW_KEY, "-keyout", str(key), "-out", str(request)))
    signing = ("-CA", str(authority / "ca.crt"), "-CAkey", str(authority / "ca.key"))
    numbered = ("-days", str(_DAYS), "-CAcreateserial", "-CAserial", str(authority / "ca.srl"))
    where = ("-in", str(request), "-out", str(certificate))
    try:
        _openssl(hosts[0], hosts, ("x509", "-req", *signing, *numbered, *where), kind)
    finally:
        request.unlink(missing_ok=True)
    certificate.chmod(0o644)


def _openssl(
    name: str, hosts: Iterable[str], arguments: tuple[str, ...], extensions: str = ""
) -> None:
    """Run it, with files that only their owner can read."""
    program = shutil.which("openssl")
    if program is None:
        raise UsageError("--tls needs the openssl command (apt install openssl)")
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as file:
        file.write(_SECTIONS.format(name=name[:64], names=", ".join(map(_alternative, hosts))))
        file.flush()
        config = ("-extfile", file.name, "-extensions", extensions)
        command = [program, *arguments, *(config if extensions else ("-config", file.name))]
        done = subprocess.run(command, capture_output=True, text=True, umask=0o077, check=False)
    if done.returncode:
        raise FileAccessError(f"{' '.join(command[:2])} has failed: {done.stderr.strip()}")


def _alternative(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return f"DNS:{host}"
    return f"IP:{host}"
