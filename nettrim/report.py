"""What results look like on a terminal, as JSON, and on disk."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["table", "to_json", "write_atomically"]


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Table with a column for each key of the rows; text is aligned to the left and everything else to the right.

    Parameters
    ----------
    rows : sequence of mappings
        At least one, all with the same keys. Strings are printed as they are (no markup is interpreted), so numbers
        are formatted by the caller; a number given as a string is aligned as a number.
    title : str, optional

    Returns
    -------
    rich.table.Table
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        numeric = all(_numeric(row[name]) for row in rows)
        made.add_column(Text(name), justify="right" if numeric else "left", vertical="bottom", no_wrap=numeric)
    for row in rows:
        made.add_row(*(Text(str(value)) for value in row.values()))
    return made


def _numeric(value: Any) -> bool:
    return not isinstance(value, str) or value[:1].isdigit() or value[:2] in ("-i", "in", "na", "") or value == "-"


def to_json(value: Any) -> str:
    """JSON text of plain values, dataclass results with a ``to_dict`` (Solution, Certificate, DemoReport) or a mix.

    JSON has no infinities and no NaN: they become null, which reads as "none" (no bound, no limit).

    Parameters
    ----------
    value : object
        Mappings, sequences, numbers (NumPy's too), strings, paths, enumerations, None, objects with ``to_dict()``.

    Returns
    -------
    str
        Indented, ASCII only.

    Raises
    ------
    TypeError
        Something else is in it.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value: Any) -> Any:
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


@contextmanager
def write_atomically(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Context that gives a binary file, which takes the place of `path` only when all of it is on the disk.

    The bytes go to a temporary file in the same folder, which is flushed, synchronised and renamed at the end. If the
    context is left by an exception, or the process dies, `path` is as it was before.

    Parameters
    ----------
    path : path
        File to create or replace; a link is followed.

    Yields
    ------
    file object

    Raises
    ------
    OSError
        The folder does not exist or cannot be written to, or `path` is there and not a regular file.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"{path} is not a regular file")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _synchronise_folder(target.parent)


def _synchronise_folder(folder: Path) -> None:
    """Make the rename itself durable, where the system can open folders."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
