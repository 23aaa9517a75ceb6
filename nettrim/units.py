"""Bytes, seconds and columns as people write them."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["align", "as_bytes", "as_seconds", "to_bytes"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def as_bytes(count: float) -> str:
    """In the largest unit that leaves at least one.

    >>> from nettrim.units import as_bytes
    >>> as_bytes(512), as_bytes(1.25e9)
    ('512 B', '1.2 GB')
    """
    power = min(int(math.log(max(abs(count), 1), 1000)), len(_UNITS) - 1)
    return f"{count / 1000**power:.{0 if power == 0 else 1}f} {_UNITS[power]}"


def as_seconds(seconds: float) -> str:
    """Rounded to what an estimate is worth.

    >>> from nettrim.units import as_seconds
    >>> as_seconds(0.03), as_seconds(42.0), as_seconds(5400)
    ('< 1 s', '42 s', '1.5 h')
    """
    if seconds < 1:
        return "< 1 s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def to_bytes(memory: str | float) -> float:
    """Bytes of a number, or of text such as "4GB".

    >>> from nettrim.units import to_bytes
    >>> to_bytes("1.5 GB"), to_bytes(1e6)
    (1500000000.0, 1000000.0)

    Raises
    ------
    ValueError
        It is neither, or negative.
    """
    if isinstance(memory, (int, float)) and not isinstance(memory, bool):
        number = float(memory)
    else:
        text = str(memory).strip().upper()
        unit = next((u for u in (*_UNITS[1:], "B") if text.endswith(u.upper())), "")
        try:
            number = float(text[: len(text) - len(unit)]) * 1000.0 ** (_UNITS.index(unit) if unit else 0)
        except ValueError:
            number = math.nan
    if not number >= 0:
        raise ValueError(f'memory must be bytes, or like "4GB"; got {memory!r}')
    return number


def align(rows: Sequence[Sequence[str]], left: int) -> str:
    """Rows of cells as lines of text, the first columns aligned to the left; columns with nothing but a title go."""
    columns = [column for column in zip(*rows, strict=True) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for line in zip(*columns, strict=True):
        cells = zip(line, widths, strict=True)
        lines.append("  ".join(cell.ljust(w) if k < left else cell.rjust(w) for k, (cell, w) in enumerate(cells)))
    return "\n".join(line.rstrip() for line in lines)
