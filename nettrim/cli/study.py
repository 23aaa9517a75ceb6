"""``nettrim study | table | plot``: experiments with presets, whose records are kept in a folder.

A study is a module of `nettrim.studies` with

- ``KEY``, names of the fields that tell its records apart, and ``PRESETS``, configurations by name;
- ``run(config, records, folder, say)``, which does what is not in the records yet;
- ``tables(records)``, rows of text by the tables' titles;
- where it draws any, ``plot(records, folder)``, which writes figures and gives their paths.

Tables and figures are made from the records alone. Its module is imported when it is used, and not before.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nettrim import show
from nettrim.cli.common import CERTIFIED, NOT_CONVERGED, Json, app, complain
from nettrim.extras import install
from nettrim.files import Refused
from nettrim.report import to_json
from nettrim.studies.pieces import Clock, Paused
from nettrim.units import align

__all__ = ["STUDIES", "lines_of"]

#: name of a study and the module of nettrim.studies
STUDIES = {
    "networks": "networks",
    "pruners": "pruners",
    "probabilistic": "probabilistic",
    "coreset-report": "coreset_report",
    "dp-phases": "dp_phases",
    "dp-noise-clip": "dp_noise_clip",
    "dp-prune": "dp_prune",
    "landscape": "landscape",
    "inversion": "inversion",
    "leakage": "leakage",
    "parallel-cascade": "parallel_cascade",
    "regularised": "regularised",
    "hptd": "hptd",
    "features": "dropped_inputs",
    "training-time-rivals": "rivals",
    "recovery": "recovery",
    "robustness": "robustness",
}

_NUMBER = re.compile(r"[-+<>~.]*\d")

RecordsOf = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of NAME.PRESET.jsonl, as `study` leaves it, or one such file.")
]


@app.command("study")
def _study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(STUDIES)}.")],
    preset: Annotated[
        str, typer.Option(help="smoke (seconds, made-up data), cpu, or others that a study has.")
    ] = "smoke",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the records; a stopped study goes on.")
    ] = Path("study"),
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop in time, with all that was done on disk (exit 2); the same command goes on."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where networks are: cpu, cuda, auto.", show_default="the preset's")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run a study, or what is left of it, and print its tables.

    Records are appended to DIR/NAME.PRESET.jsonl as they are made. Data sets are looked for in $NETTRIM_DATA.
    """
    study = _module(name)
    if preset not in study.PRESETS:
        raise Refused(f"--preset must be one of {', '.join(study.PRESETS)}; got {preset!r}")
    config, records = _on(study.PRESETS[preset], device, name), None
    try:
        records = _records(output / f"{name}.{preset}.jsonl", study, minutes)
        study.run(config, records, output / "weights", lambda line: print(line, file=sys.stderr, flush=True))
    except Paused:
        count, path = (0, output) if records is None else (len(records.rows), records.path)
        complain(f"not finished: the time is up; {count} records are in {path}, the same command goes on")
        return NOT_CONVERGED
    except KeyboardInterrupt:
        count, path = (0, output) if records is None else (len(records.rows), records.path)
        complain(f"interrupted; {count} records are in {path}, the same command goes on")
        return NOT_CONVERGED
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise Refused(str(error)) from error
    if as_json:
        print(to_json(records.rows))
    else:
        _print_tables(study.tables(records), records)
    return CERTIFIED


@app.command("table")
def _table(folder: RecordsOf = Path("study"), as_json: Json = False) -> int:
    """Print the tables of the studies whose records are in a folder."""
    found = {path: (study.tables(records), records) for path, study, records in _found(folder)}
    if as_json:
        print(to_json({path: tables for path, (tables, _) in found.items()}))
        return CERTIFIED
    for k, (tables, records) in enumerate(found.values()):
        if k:
            print()
        _print_tables(tables, records)
    return CERTIFIED


@app.command("plot")
def _plot(
    folder: RecordsOf = Path("study"),
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Receives the figures.", show_default="beside the records"),
    ] = None,
    as_json: Json = False,
) -> int:
    """Draw the figures of the studies whose records are in a folder."""
    figures: dict[Path, list[Path]] = {}
    for path, study, records in _found(folder):
        figures[path] = []
        if hasattr(study, "plot"):
            _choose_canvas()
            target = path.parent if output is None else output
            target.mkdir(parents=True, exist_ok=True)
            figures[path] = list(study.plot(records, target))
    if as_json:
        print(to_json(figures))
        return CERTIFIED
    for path, written in figures.items():
        lines = [f"written to {file}" for file in written] or [f"{path}: this study has no figures"]
        show.print_lines(show.open_console(), lines)
    return CERTIFIED


def _module(name: str) -> Any:
    """The study of a name."""
    if name not in STUDIES:
        raise Refused(f"there is no study {name!r}; there are: {', '.join(STUDIES)}")
    try:
        return importlib.import_module(f"nettrim.studies.{STUDIES[name]}")
    except ImportError as error:
        raise Refused(f"studies need more packages ({error}): {install('torch', 'studies')}") from error


def _on(config: Any, device: str | None, name: str) -> Any:
    """A configuration with another device."""
    if device is None:
        return config
    if not hasattr(config, "device"):
        raise Refused(f"--device: the study {name} runs on the CPU")
    return dataclasses.replace(config, device=device)


def _records(path: Path, study: Any, minutes: float | None = None) -> Any:
    from nettrim.studies.records import Records

    return Records(path, study.KEY, Clock(minutes))


def _found(place: Path) -> list[tuple[Path, Any, Any]]:
    """Path, study and records of each file of a known study in a folder, or of the one file."""
    pattern = f"NAME.PRESET.jsonl, NAME one of: {', '.join(STUDIES)}"
    if place.is_file():
        paths = [place]
        if _name(place) is None:
            raise Refused(f"{place} is not called as the records of a study are: {pattern}")
    elif place.is_dir():
        # what lies beside the records, other people's files too, is left alone
        paths = sorted(path for path in place.glob("*.jsonl") if _name(path) is not None)
        if not paths:
            raise Refused(f"{place} has no records of a study: {pattern}")
    else:
        raise Refused(f"{place} is not there: give a folder with the records of a study, or one file, {pattern}")
    found = []
    for path in paths:
        study = _module(_name(path))
        try:
            found.append((path, study, _records(path, study)))
        except ValueError as error:
            raise Refused(str(error)) from error
    return found


def _name(path: Path) -> str | None:
    """The study that a file of records is named after, or None."""
    parts = path.name.split(".")
    return parts[0] if len(parts) == 3 and parts[0] in STUDIES and parts[2] == "jsonl" else None


def _print_tables(tables: Mapping[str, Sequence[Mapping[str, str]]], records: Any) -> None:
    """Every table below its title, and where the records are."""
    lines = []
    for title, rows in tables.items():
        lines += [title, "", _aligned(rows) if rows else "no records yet", ""]
    show.print_lines(show.open_console(), [*lines, f"records  {records.path}"])


def lines_of(rows: Sequence[Mapping[str, str]]) -> list[tuple[str, ...]]:
    """Titles and cells of a table whose rows may lack some of the columns, which are then empty."""
    titles = tuple(dict.fromkeys(title for row in rows for title in row))
    return [titles, *(tuple(row.get(title, "") for title in titles) for row in rows)]


def _aligned(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as text: the first column, and those after it that hold words, to the left; the others to the right."""
    cells = lines_of(rows)
    columns = list(zip(*cells[1:], strict=True))
    left = 1
    while left < len(columns) and not any(_NUMBER.match(cell) for cell in columns[left]):
        left += 1
    return align(cells, left=left)


def _choose_canvas() -> None:
    """Figures go to files: no window is opened."""
    try:
        import matplotlib
    except ImportError as error:
        raise Refused(f"figures need matplotlib: {install('studies')}") from error
    matplotlib.use("Agg")
