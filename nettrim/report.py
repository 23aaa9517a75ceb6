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


def table(rows: Sequence[Mapping[str, Any]], title: str | None = None, left: Sequence[str] | None = None) -> Table:
    """Table with a column for each key of the rows, aligned to the right except for those in `left`.

    Parameters
    ----------
    rows : sequence of mappings
        At least one, all with the same keys. Values are printed as they are: numbers are formatted by the caller, and
        no markup is interpreted.
    title : str, optional
    left : sequence of str, optional
        Keys of the columns that are aligned to the left; default the first.

    Returns
    -------
    rich.table.Table
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    left = list(rows[0])[:1] if left is None else left
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        made.add_column(Text(name), justify="left" if name in left else "right", vertical="bottom", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(str(value)) for value in row.values()))
    return made


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
