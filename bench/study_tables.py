"""The tables of the studies' committed records, as Markdown for docs/_generated; bench/report.py writes them."""

from __future__ import annotations

import importlib
from pathlib import Path

#: page of docs/_generated and the records in bench/results that stand on it
PAGES = {
    "coreset_study": ("coreset-report.cpu",),
    "probabilistic_study": ("probabilistic.cpu",),
    "inversion_study": ("inversion.cpu",),
    "dp_studies": ("dp-phases.cpu", "dp-noise-clip.cpu", "dp-prune.cpu", "landscape.cpu"),
    "leakage_study": ("leakage.cpu",),
}


def pages(results: Path) -> dict[str, list[str]]:
    """Lines by the pages' names; pages without any records are left out."""
    made = {}
    for page, files in PAGES.items():
        lines = [line for name in files for line in _tables(results / f"{name}.jsonl")]
        if lines:
            made[page] = lines
    return made


def _tables(path: Path) -> list[str]:
    if not path.exists():
        return []
    from nettrim.cli.study import STUDIES
    from nettrim.studies.records import Records

    study = importlib.import_module(f"nettrim.studies.{STUDIES[path.name.split('.')[0]]}")
    records = Records(path, study.KEY)
    out = []
    for title, rows in study.tables(records).items():
        out += [f"**{title}**", "", f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
        out += [f"| {' | '.join(row.values())} |" for row in rows]
        out.append("")
    about = records.rows[-1]["environment"]
    seeds = len({row["seed"] for row in records.rows if "seed" in row})
    return [
        *out,
        f"`{path.name}`: {seeds} seeds; {about['cores']} cores, torch {about['torch']}, NumPy {about['numpy']}, "
        f"{about['date'][:10]}.",
        "",
    ]
