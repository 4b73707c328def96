"""What `fp-agent run` becomes: the daemon, without what its libraries load and it never uses."""

from __future__ import annotations

import importlib.util
import os
import sys
import types
from typing import Any

# paho imports both for connections that an agent does not make: through a web proxy, and to a
# broker looked up by SRV records (only where dnspython is installed). Together 4 of 34 MiB.
UNUSED = ("urllib.request", "dns.resolver")

# For glibc, which reads it when a process begins: its two threads share one heap. 0.7 MiB.
ALLOCATION = {"MALLOC_ARENA_MAX": "1"}


def defer(*names: str) -> None:
    """Put stand-ins in the place of modules of packages; whoever uses one gets the module."""
    for name in names:
        parent, _, child = name.rpartition(".")
        if name not in sys.modules and importlib.util.find_spec(parent) is not None:
            stand_in = sys.modules[name] = _StandIn(name)
            setattr(importlib.import_module(parent), child, stand_in)


class _StandIn(types.ModuleType):
    def __getattr__(self, attribute: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), attribute)


def main() -> None:
    """Be the daemon. The processes of its jobs have as many heaps as they like."""
    for name, value in ALLOCATION.items():
        if os.environ.get(name) == value:
            del os.environ[name]
    defer(*UNUSED)
    from edge_agent import daemon

    daemon.main()
