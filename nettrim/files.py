"""The npz files of the command line: read without unpickling, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np

from nettrim.archives import Archive, open_npz
from nettrim.chunked import Chunked
from nettrim.report import to_json, write_atomically
from nettrim.solution import Solution

__all__ = ["Precision", "Refused", "check_output", "load", "names", "read_about", "write_solution"]


class Precision(str, Enum):
    """Working precisions."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


class Refused(Exception):
    """Bad usage or input; the message is one line for the user."""


def load(path: Path, required: Sequence[str], optional: Sequence[str], chunked: Sequence[str] = ()) -> dict[str, Any]:
    """Named arrays of an npz file; never unpickles. Those of `chunked` are left in the file, as `Chunked`."""
    with _opened(path) as archive:
        missing = [name for name in required if name not in archive.names]
        if missing:
            held = ", ".join(sorted(archive.names)) or "nothing"
            raise Refused(f"{path} lacks {' and '.join(missing)}; it holds {held}")
        there = [name for name in (*required, *optional) if name in archive.names]
        arrays: dict[str, Any] = {name: archive.read(name) for name in there if name not in chunked}
        for name in there:
            if name in chunked:
                # a number for all entries stays one
                mapped = archive.map(name)
                arrays[name] = np.asarray(mapped) if mapped.size == 1 else _chunks(path, name, mapped)
        return arrays


def _chunks(path: Path, name: str, mapped: np.memmap) -> Chunked:
    try:
        return Chunked(mapped)
    except (TypeError, ValueError) as error:
        raise Refused(f"{name} in {path}: {error}") from error


def names(path: Path) -> list[str]:
    """Names of the arrays in an npz file, sorted."""
    with _opened(path) as archive:
        return sorted(archive.names)


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    try:
        with open_npz(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise Refused(f"{path} does not exist") from error
    except ValueError as error:
        raise Refused(str(error)) from error


def check_output(output: Path, problem_file: Path) -> None:
    """Refuse, before the work is done, what could not be written after it."""
    if output.exists() and problem_file.exists() and output.samefile(problem_file):
        raise Refused(f"--output {output} is the input itself")
    if output.exists() and not output.is_file():
        raise Refused(f"--output {output} is not a regular file")
    folder = Path(os.path.realpath(output)).parent
    if not folder.is_dir():
        raise Refused(f"--output: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise Refused(f"--output: the folder {folder} cannot be written to")


def write_solution(path: Path, solution: Solution, about: dict[str, Any]) -> None:
    """Write W, the multipliers or the ray, and what `verify` needs, whole or not at all."""
    arrays: dict[str, Any] = {"W": solution.W, "problem": np.str_(to_json(about))}
    # C of a reweighted round, whose gap is that of its own norm
    later = getattr(solution, "round", 1) > 1
    for name in ("dual", "ray", *(["C"] if later else [])):
        array = getattr(solution, name)
        if array is not None:
            arrays[name] = array
    with write_atomically(path) as file:
        np.savez(file, **arrays)


def read_about(text: np.ndarray, path: Path) -> dict[str, Any]:
    """What `solve` stored about the problem, with the fields that `verify` relies on checked."""
    number, text_type, flag = (int, float), str, bool
    fields: dict[str, Any] = {
        "epsilon_abs": number,
        "linear": flag,
        "neuronwise": flag,
        "unpenalised_row": (int, type(None)),
        "status": text_type,
        "settings": dict,
        "certificate": dict,
    }
    try:
        about = json.loads(str(text))
        for name, kind in fields.items():
            if not isinstance(about[name], kind):
                raise TypeError(f"{name} is {about[name]!r}")
        for name in ("gap_tol", "feas_tol"):
            if not isinstance(about["settings"][name], number):
                raise TypeError(f"settings.{name} is {about['settings'][name]!r}")
        np.dtype(Precision(about["settings"]["dtype"]).value)
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"'problem' in {path} is not what nettrim solve writes: {error}") from error
    return about
