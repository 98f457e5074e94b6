"""Read the values of options on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def whole_number(least: int) -> Callable[[str], int]:
    """What reads an option that is a whole number, `least` or more."""

    def read(text: str) -> int:
        if not text.isdecimal() or not least <= int(text[:20]) < 1 << 63:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return read
