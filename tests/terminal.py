"""A terminal of a given width with a program in it: what it shows, and keys that are pressed."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from typing import Self

_CONTROLS = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[()][A-Z0-9]|[=>78])")


class Terminal:
    """Runs a command with this terminal as its own. Use as a context manager."""

    def __init__(self, *command, cwd, columns=80, rows=50, env=None):
        self.text = ""
        self._command, self._cwd, self._env = command, cwd, env or {}
        self._size = struct.pack("HHHH", rows, columns, 0, 0)

    def __enter__(self) -> Self:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, self._size)
        unset = dict.fromkeys(("COLUMNS", "LINES", "NO_COLOR"))
        env = {**os.environ, **unset, "TERM": "xterm", **self._env}
        self.process = subprocess.Popen(
            [str(part) for part in self._command],
            cwd=self._cwd,
            env={name: value for name, value in env.items() if value is not None},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)

    def press(self, keys):
        """Send keys, as they are typed."""
        os.write(self._master, keys.encode())

    def until(self, pattern, seconds=30):
        """Read until the pattern is found in what is shown, which is returned up to there."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.shown)) is None:
            assert self._read(deadline), f"{pattern!r} is not in ...{self.shown[-1500:]!r}"
        return self.shown[: found.end()]

    def end(self, seconds=30):
        """Read to the end of the program; (exit code, what it has shown)."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        return self.process.wait(max(deadline - time.monotonic(), 1)), self.shown

    @property
    def shown(self):
        """The text, without what moves the cursor and colors it, and without bells."""
        return _CONTROLS.sub("", self.text).replace("\r\n", "\n").replace("\a", "")

    def _read(self, deadline):
        """Read something; False at the end, or when the time is over."""
        ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
        try:
            data = os.read(self._master, 65_536) if ready else b""
        except OSError:  # the program has closed its side
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)
