"""The thread that nodes run in."""

from __future__ import annotations

import threading


class NodeThread(threading.Thread):
    """A thread that the interpreter does not wait for, while threads that a node starts in it are
    waited for, as in a script: they inherit `daemon` from the thread that starts them.
    """

    _runs = False

    @property
    def daemon(self) -> bool:
        return not self._runs

    @daemon.setter
    def daemon(self, daemonic: bool) -> None:
        del daemonic
        raise RuntimeError("a thread of FlowerPower is always a daemon")

    def run(self) -> None:
        self._runs = True  # it is known as a daemon to the interpreter by now
        super().run()
