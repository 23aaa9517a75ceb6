"""The tables of the studies' committed records, as Markdown for docs/_generated; bench/report.py writes them."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path

#: page of docs/_generated and the records in bench/results that stand on it
PAGES = {
    "coreset_study": ("coreset-report.cpu",),
    "probabilistic_study": ("probabilistic.cpu",),
    "inversion_study": ("inversion.cpu",),
    "dp_studies": ("dp-phases.cpu", "dp-noise-clip.cpu", "dp-prune.cpu", "landscape.cpu"),
    "leakage_study": ("leakage.cpu",),
    "parallel_cascade_study": ("parallel-cascade.cpu",),
    "regularised_study": ("regularised.cpu",),
    "hptd_study": ("hptd.cpu", "hptd.cifar"),
    "features_study": ("features.cpu",),
    "rivals_study": ("training-time-rivals.cpu",),
    "recovery_study": ("recovery.cpu",),
    "robustness_study": ("robustness.cpu",),
}


def counted(number: int, noun: str) -> str:
    """Such as 1 seed, 3 seeds."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def pages(results: Path) -> dict[str, list[str]]:
    """Lines by the pages' names; where there are no records, a line says so."""
    made = {}
    for page, files in PAGES.items():
        made[page] = [line for name in files for line in _tables(results / f"{name}.jsonl")]
        missing = [name for name in files if not (results / f"{name}.jsonl").exists()]
        made[page] += [f"*{name} has not been run.*\n" for name in missing]
    return made


def guaranteed(path: Path) -> list[str]:
    """What 95 % of guaranteed labels cost by each method, on the last layer that nothing has made easy."""
    wanted = {
        "sampled coreset": ("random weights", "signed"),
        "deterministic coreset": ("deterministic weights", "signed"),
        "as printed": ("deterministic weights, 3K", "median Delta"),
        "deterministic, residuals": ("deterministic weights", "residuals"),
        "magnitude, residuals": ("magnitude", "residuals"),
        "Net-Trim, residuals": ("Net-Trim", "residuals"),
    }
    records = [json.loads(line) for line in path.read_text().splitlines()]
    left: dict[str, list[float]] = {name: [] for name in wanted}
    for record in records:
        if (record["network"], record["case"], record["part"]) == ("LeNet-300-100", "difficult", "weights"):
            for row in record["rows"]:
                for name, key in wanted.items():
                    if row["share"] == 0.95 and (row["method"], row["translation"]) == key:
                        left[name].append(row["density"])
    kept = {name: f"{statistics.mean(values):.0%}" for name, values in left.items()}
    broken = statistics.mean(
        row["violated"] for r in records if (r["case"], r["part"]) == ("difficult", "weights") for row in r["rows"][:1]
    )
    return [
        "Last layer of LeNet-300-100, 95 % of the correct labels guaranteed. For inputs not seen, with a probability "
        f"and under an assumption that {broken:.0%} of the weights break: a sampled coreset keeps "
        f"{kept['sampled coreset']} of the weights, a deterministic one {kept['deterministic coreset']} (as printed "
        f"{kept['as printed']}). On the samples at hand, by residuals: the deterministic coreset "
        f"{kept['deterministic, residuals']}, magnitude {kept['magnitude, residuals']}, **Net-Trim "
        f"{kept['Net-Trim, residuals']}** (means of three seeds, `nettrim study coreset-report --preset cpu`).",
    ]


def _tables(path: Path) -> list[str]:
    if not path.exists():
        return []
    from nettrim.cli.study import STUDIES, lines_of
    from nettrim.studies.records import Records

    study = importlib.import_module(f"nettrim.studies.{STUDIES[path.name.split('.')[0]]}")
    records = Records(path, study.KEY)
    out = []
    for title, rows in study.tables(records).items():
        titles, *lines = lines_of(rows)
        out += [f"**{title}**", "", f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
        out += [f"| {' | '.join(cells)} |" for cells in lines]
        out.append("")
    about = records.rows[-1]["environment"]
    seeds = len({row["seed"] for row in records.rows if "seed" in row})
    return [
        *out,
        f"`{path.name}`: {counted(seeds, 'seed')}; {counted(about['cores'], 'core')}, torch {about['torch']}, "
        f"NumPy {about['numpy']}, {about['date'][:10]}.",
        "",
    ]
