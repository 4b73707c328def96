"""The `fp-agent` command."""

from __future__ import annotations

import sys
from typing import NoReturn

from fp_async import __version__


def main() -> NoReturn:
    """Say what this is; the daemon arrives with the jobs that it runs."""
    if "--version" in sys.argv[1:]:
        print(f"fp-agent {__version__}")  # noqa: T201
        sys.exit(0)
    print(f"fp-agent {__version__}: the agent is not part of this version yet", file=sys.stderr)  # noqa: T201
    sys.exit(2)


if __name__ == "__main__":
    main()
