"""Remedies for a broker that cannot be reached or does not let an agent in."""

from __future__ import annotations

import errno
import socket
import ssl

from fp_async.errors import BrokerError, ConnectRefusedError

_REFUSED = {  # reason codes of MQTT 5, and return codes of MQTT 3.1.1
    **dict.fromkeys((0x86, 4), "login"),
    **dict.fromkeys((0x87, 5), "rights"),
    **dict.fromkeys((0x85, 2), "id"),
    **dict.fromkeys((0x88, 0x89, 0x97, 0x9F, 3), "busy"),
    0x8A: "banned",
}
_REMEDIES = {
    "id": "the broker does not take this agent's name as a client id: another `name`, or its rules",
    "busy": "the broker takes no more connections at the moment: look at its log and its limits",
    "banned": "the broker has banned this client: its operator can lift that",
}
# Mosquitto says "not authorized" of a wrong password, too.
_RIGHTS = (
    "{login}; or the broker knows this user or client id and refuses it: was it revoked? Its "
    "rights are in the broker's own configuration (flowerpower broker-config)"
)
_UNREACHABLE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
_NAME = "no name server knows this host: is it spelled right in `broker`, and is the network up?"
_CERTIFICATE = (
    "the broker's certificate is not believed: `ca_file` has to be its authority's, and the host "
    "in `broker` a name in the certificate"
)
_TLS = "does that port speak TLS? mqtts:// does (8883), mqtt:// does not (1883)"
_CLOSED = "nothing listens there: is the broker running, and is the port right?"
_SILENT = "nothing answers: a firewall, a wrong address, or a machine that is down"
_ROUTE = "this device has no way there: is its network up?"
_FILE = "are the paths of ca_file, cert_file and key_file right, and may this user read them?"
_OTHER = f"what listens there does not answer as an MQTT broker: is the port right? And {_TLS}"


_CAUSES: tuple[tuple[type[OSError], str], ...] = (  # the first that fits
    (ssl.SSLCertVerificationError, _CERTIFICATE),
    (ssl.SSLError, _TLS),
    (socket.gaierror, _NAME),
    (ConnectionRefusedError, _CLOSED),
    (TimeoutError, _SILENT),
    (FileNotFoundError, _FILE),
    (PermissionError, _FILE),
)


def remedy(error: BrokerError, login: str) -> str:
    """Return what to do about an error of connecting; `login` is about user and password."""
    if isinstance(error, ConnectRefusedError):
        kind = _REFUSED.get(error.code, "")
        return _RIGHTS.format(login=login) if kind == "rights" else _REMEDIES.get(kind, login)
    cause = error.__cause__
    if isinstance(cause, OSError) and cause.errno in _UNREACHABLE:
        return _ROUTE
    return next((text for kind, text in _CAUSES if isinstance(cause, kind)), _OTHER)
