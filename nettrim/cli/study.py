"""``nettrim study``: experiments with presets, whose records are kept in a folder."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from nettrim import show
from nettrim.cli.common import CERTIFIED, NOT_CONVERGED, Json, app, complain
from nettrim.files import Refused
from nettrim.report import to_json
from nettrim.units import align

__all__ = ["STUDIES"]

#: name of a study and the module of nettrim.studies
STUDIES = {"networks": "networks", "pruners": "pruners"}


@app.command("study")
def _study(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of: {', '.join(STUDIES)}.")],
    preset: Annotated[
        str, typer.Option(help="smoke (seconds, made-up data), cpu, or others that a study has.")
    ] = "smoke",
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the records; a stopped study goes on.")
    ] = Path("study"),
    as_json: Json = False,
) -> int:
    """Run a study, or what is left of it, and print its table.

    Records are appended to DIR/NAME.PRESET.jsonl as they are made. Data sets are looked for in $NETTRIM_DATA.
    """
    if name not in STUDIES:
        raise Refused(f"there is no study {name!r}; there are: {', '.join(STUDIES)}")
    try:
        study = importlib.import_module(f"nettrim.studies.{STUDIES[name]}")
        from nettrim.studies.records import Records
    except ImportError as error:
        raise Refused(f"studies need more packages: pip install 'nettrim[torch,studies]' ({error})") from error
    if preset not in study.PRESETS:
        raise Refused(f"--preset must be one of {', '.join(study.PRESETS)}; got {preset!r}")
    records = None
    try:
        records = Records(output / f"{name}.{preset}.jsonl", study.KEY)
        study.run(
            study.PRESETS[preset], records, output / "weights", lambda line: print(line, file=sys.stderr, flush=True)
        )
    except KeyboardInterrupt:
        complain(f"interrupted; {len(records.rows)} records are in {records.path}, the same command goes on")
        return NOT_CONVERGED
    except (FileNotFoundError, ImportError, ValueError) as error:
        raise Refused(str(error)) from error
    if as_json:
        print(to_json(records.rows))
    else:
        rows = study.table(records)
        cells = [tuple(rows[0]), *(tuple(row.values()) for row in rows)]
        show.print_lines(show.open_console(), [align(cells, left=2), f"records  {records.path}"])
    return CERTIFIED
