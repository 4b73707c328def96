"""On the device, for every reading: one line, appended at once, so that none is half there."""

import os
from pathlib import Path

FILE = Path(__file__).parent.parent / "readings.csv"


def line(sensor: str, value: float, at: float) -> str:
    return f"{at:.3f},{sensor},{value:.3f}\n"


def kept(line: str) -> int:
    """The size of the file since."""
    with FILE.open("a") as file:
        file.write(line)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()
