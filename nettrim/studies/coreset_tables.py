"""The tables of the coreset study, from its records; the paper's figures stand beside ours."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from nettrim.studies.records import Records, interval

__all__ = ["grouped", "mean", "parts_of", "tables"]

#: Figure 2 of the paper: required epsilon, samples (weights left by the deterministic algorithm), sparsity in percent
PAPER = {
    ("LeNet-300-100", "easy", "random weights"): (0.46, "271K", 94.06),
    ("LeNet-300-100", "moderate", "random weights"): (0.46, "1M", 19.90),
    ("LeNet-300-100", "difficult", "random weights"): (0.49, "1M", 0.0),
    ("LeNet-300-100", "easy", "deterministic weights, 3K"): (0.46, "60 left", 94.06),
    ("LeNet-300-100", "moderate", "deterministic weights, 3K"): (0.46, "657 left", 34.95),
    ("LeNet-300-100", "difficult", "deterministic weights, 3K"): (0.49, "927 left", 8.22),
    ("LeNet-300-100", "easy", "neurons"): (5.69, "62K", 90.0),
    ("LeNet-300-100", "moderate", "neurons"): (3.30, "97K", 16.0),
    ("LeNet-300-100", "difficult", "neurons"): (5.20, "114K", 0.0),
    ("VGG-16", "easy", "random weights"): (0.31, "88K", 98.9),
    ("VGG-16", "moderate", "random weights"): (0.52, "79K", 91.19),
    ("VGG-16", "difficult", "random weights"): (0.58, "1.1M", 2.84),
    ("VGG-16", "easy", "neurons"): (8.45, "613K", 99.0),
    ("VGG-16", "moderate", "neurons"): (6.63, "501K", 95.0),
    ("VGG-16", "difficult", "neurons"): (8.17, "5.5M", 0.0),
}
#: rows of the report card, and the one of them that the paper's figures belong to
CARD = (
    ("random weights", "signed"),
    ("random weights", "median Delta"),
    ("deterministic weights", "signed"),
    ("deterministic weights, 3K", "median Delta"),
    ("neurons", "hoeffding"),
    ("neurons", "printed"),
    ("magnitude", "residuals"),
    ("deterministic weights", "residuals"),
    ("Net-Trim", "residuals"),
)
PAPERS_OWN = {"median Delta", "printed"}
Row = dict[str, Any]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows; intervals are of 95 %, by Student's t, over the seeds."""
    made = {
        "Report card: coresets that guarantee 50 % of the correct labels (Figure 2)": _card(records),
        "Shares of guaranteed labels: weights and neurons left, % (Figures 6 and 7)": _shares(records),
        "Counts first: the last layer at a sparsity (Figures 3 and 8)": _counts(records),
        "Fine-tuning after pruning the last layer (Figure 3)": _tuned(records),
        "The first layer pruned, then trained to the dense outputs (section 5.2)": _distilled(records),
        "Errors of neuron coresets on data and on the sphere (Figure 11)": _ball(records),
        "Scaling the hidden layer: samples asked for (Figure 12)": _scaled(records),
    }
    return {title: rows for title, rows in made.items() if rows}


def parts_of(records: Records, *parts: str) -> Iterable[tuple[Row, Row]]:
    """Every row of the parts with the record that it is in."""
    for record in records.rows:
        if record["part"] in parts:
            for row in record["rows"]:
                yield record, row


def grouped(
    found: Iterable[tuple[Row, Row]], key: Callable[[Row, Row], tuple[Any, ...]]
) -> dict[tuple[Any, ...], list[tuple[Row, Row]]]:
    """Rows by a key, in the order of their first appearance."""
    groups: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for record, row in found:
        groups.setdefault(key(record, row), []).append((record, row))
    return groups


def mean(values: Iterable[float | None], digits: int = 3, percent: bool = False) -> str:
    """Mean and half of its interval, as text; of a single value only itself."""
    known = [v * (100 if percent else 1) for v in values if v is not None and math.isfinite(v)]
    if not known:
        return "-"
    middle, half = interval(known)
    # what is the same for all seeds differs by rounding
    half = 0.0 if half <= 1e-9 * abs(middle) else half
    text = f"{middle:.{digits}g}" if not percent else f"{middle:.1f}"
    if math.isnan(half):
        return text
    return f"{text} ± {half:.2g}" if not percent else f"{text} ± {half:.1f}"


def _card(records: Records) -> list[dict[str, str]]:
    at = [(record, row) for record, row in parts_of(records, "weights", "neurons") if row["share"] == 0.5]
    groups = grouped(at, lambda r, w: (r["network"], r["case"], w["method"], w["translation"]))
    rows = []
    for network, case in dict.fromkeys(key[:2] for key in groups):
        for method, translation in CARD:
            found = groups.get((network, case, method, translation))
            if not found:
                continue
            some = [row for _, row in found]
            observed = [row["of_halves"][0] if row.get("of_halves") else row["relative"][0] for row in some]
            paper = PAPER.get((network.replace("frozen features", "VGG-16"), case, method))
            violated = some[0].get("violated")
            rows.append(
                {
                    "network": network,
                    "case": case,
                    "method": method,
                    "by": translation,
                    "dense, %": mean((record["accuracy"] for record, _ in found), percent=True),
                    # the other methods are asked for a count where their residuals are judged
                    "error asked": mean(row["asked"] for row in some)
                    if translation != "residuals" or method == "Net-Trim"
                    else "-",
                    "observed": mean(observed, 2),
                    "samples": mean(row["draws"] for row in some) if some[0]["draws"] else "none",
                    "left": mean(row["nnz"] for row in some),
                    "sparsity, %": mean((1 - row["density"] for row in some), percent=True),
                    "guaranteed, %": mean((row["guaranteed"] for row in some), percent=True),
                    "accuracy, %": mean((row["accuracy"] for row in some), percent=True),
                    "A.3 fails, %": mean((row["violated"] for row in some), percent=True)
                    if violated is not None and translation != "residuals"
                    else "not needed",
                    "paper: error; samples; sparsity, %": f"{paper[0]}; {paper[1]}; {paper[2]}"
                    if paper and translation in PAPERS_OWN
                    else "",
                }
            )
    return rows


def _shares(records: Records) -> list[dict[str, str]]:
    groups = grouped(
        parts_of(records, "weights", "neurons"), lambda r, w: (r["network"], r["case"], w["method"], w["translation"])
    )
    rows = []
    for (network, case, method, translation), found in groups.items():
        if (method, translation) not in CARD:
            continue
        cells = {"network": network, "case": case, "method": method, "by": translation}
        for share in sorted({row["share"] for _, row in found}):
            left = [row["density"] for _, row in found if row["share"] == share]
            cells[f"{share:.0%} of labels"] = mean(left, percent=True)
        rows.append(cells)
    return rows


def _counts(records: Records) -> list[dict[str, str]]:
    groups = grouped(parts_of(records, "sparsity"), lambda r, w: (r["network"], r["case"], w["method"], w["sparsity"]))
    rows = []
    for (network, case, method, sparsity), found in sorted(groups.items()):
        some = [row for _, row in found if "refused" not in row]
        rows.append(
            {
                "network": network,
                "case": case,
                "method": method,
                "sparsity, %": f"{100 * sparsity:.0f}",
                "bound": mean(row["epsilon"] for row in some) if some else "out of reach",
                "observed": mean((row["error" if method == "neurons" else "of_halves"][0] for row in some), 2),
                "guaranteed, %": mean((row["guaranteed"] for row in some), percent=True),
                "accuracy, %": mean((row["accuracy"] for row in some), percent=True),
            }
        )
    return rows


def _tuned(records: Records) -> list[dict[str, str]]:
    groups = grouped(parts_of(records, "tuning"), lambda r, w: (r["network"], r["case"], w["sparsity"]))
    return [
        {
            "network": network,
            "case": case,
            "sparsity, %": f"{100 * sparsity:.0f}",
            **_pairs([row for _, row in found], {"error": "error of the logits"}),
        }
        for (network, case, sparsity), found in groups.items()
    ]


def _distilled(records: Records) -> list[dict[str, str]]:
    groups = grouped(
        parts_of(records, "distillation"), lambda r, w: (r["network"], r["case"], w["method"], w["sparsity"])
    )
    return [
        {
            "network": network,
            "method": method,
            "sparsity, %": f"{100 * sparsity:.0f}",
            **_pairs([row for _, row in found], {"output": "output error", "hidden": "hidden error"}),
        }
        for (network, _, method, sparsity), found in groups.items()
    ]


def _pairs(rows: list[Row], fields: dict[str, str]) -> dict[str, str]:
    cells = {}
    for when in ("before", "after"):
        cells[f"accuracy {when}, %"] = mean((row[when]["accuracy"] for row in rows), percent=True)
        for field, title in fields.items():
            cells[f"{title} {when}"] = mean((row[when][field][0] for row in rows), 3)
    return cells


def _ball(records: Records) -> list[dict[str, str]]:
    groups = grouped(parts_of(records, "ball"), lambda r, w: (r["network"], w["sparsity"]))
    rows = []
    for (network, sparsity), found in groups.items():
        some = [row for _, row in found if "refused" not in row]
        cells = {"network": network, "sparsity, %": f"{100 * sparsity:.0f}"}
        picks: dict[str, Callable[[Row], float]] = {
            "samples": lambda row: row["draws"],
            "bound": lambda row: row["hoeffding"],
            "error on data": lambda row: row["data"][0],
            "error on the sphere": lambda row: row["sphere"][0],
        }
        for title, pick in picks.items():
            cells[title] = mean(pick(row) for row in some)
        rows.append(cells)
    return rows


def _scaled(records: Records) -> list[dict[str, str]]:
    groups = grouped(parts_of(records, "scaling"), lambda r, w: (r["network"], w["scale"]))
    return [
        {
            "network": network,
            "scale": f"{scale:g}",
            "total importance": mean(row["total"] for _, row in found),
            "error that 50 % stand": mean(row["epsilon"] for _, row in found),
            "samples, A.4 as printed": mean(row["printed"] for _, row in found),
            "samples, Hoeffding": mean(row["hoeffding"] for _, row in found),
        }
        for (network, scale), found in groups.items()
    ]
