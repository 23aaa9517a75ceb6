"""The tables and the figure of the leakage study, from its records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from nettrim.privacy.images import gate
from nettrim.studies.coreset_tables import mean
from nettrim.studies.records import Records

__all__ = ["plot", "tables"]

Row = dict[str, Any]


def tables(records: Records) -> dict[str, list[dict[str, str]]]:
    """Titles and rows: what is kept and guaranteed, and what leaks."""
    groups: dict[tuple[str, float], list[Row]] = {}
    for row in records.rows:
        groups.setdefault((row["method"], row["kept"]), []).append(row)
    ordered = dict(sorted(groups.items(), key=lambda item: -item[0][1]))
    made = {
        "What pruning leaves": [_fidelity(*key, rows) for key, rows in ordered.items()],
        "What the network tells": [_leakage(*key, rows) for key, rows in ordered.items() if _some(rows)],
        "Inversion: PSNR in dB, mean and interval over images": _inversion(ordered, "psnr"),
        "Inversion: SSIM": _inversion(ordered, "ssim"),
    }
    return {title: rows for title, rows in made.items() if rows}


def _some(rows: list[Row]) -> list[Row]:
    return [row for row in rows if "refused" not in row]


def _fidelity(method: str, kept: float, rows: list[Row]) -> dict[str, str]:
    some = _some(rows)
    certified = [row["certified"] for row in some if row["certified"] is not None]
    largest = [row["largest"] for row in some if row["largest"] is not None]
    if not some:
        bound = "out of reach"
    elif certified:
        bound = mean(certified, percent=True) + " %"
    elif method.startswith("Net-Trim"):
        known = [row["layer_error"] for row in some if "layer_error" in row]
        bound = f"of each layer{f', up to {100 * max(known):.1f} %' if known else ''}"
    else:
        bound = f"nothing (neurons up to {max(largest):.1f})" if largest else "none"
    guaranteed = [row["guaranteed"] for row in some if row["guaranteed"] is not None]
    return {
        "method": method,
        "kept, %": f"{100 * kept:.1f}",
        "left, %": mean((row["left"] for row in some), percent=True),
        "accuracy, %": mean((row["accuracy"] for row in some), percent=True),
        "tuned, %": mean((row["tuned"] for row in some), percent=True),
        "test, %": mean((row["test"] for row in some), percent=True),
        "error, %": mean((row["error"] for row in some), percent=True),
        "error proven": bound,
        "labels kept, %": mean((row["labels_kept"] for row in some), percent=True),
        "labels proven, %": mean(guaranteed, percent=True) if guaranteed else "none",
        "seconds": mean((row["seconds"] for row in some), 2),
        "privacy": some[0]["privacy"] if some else "",
    }


def _leakage(method: str, kept: float, rows: list[Row]) -> dict[str, str]:
    cells = {"method": method, "kept, %": f"{100 * kept:.1f}"}
    for attack in ("loss", "RMIA"):
        found = [row["membership"][attack] for row in _some(rows)]
        low, high = (np.mean([one["auc_interval"][end] for one in found]) for end in (0, 1))
        cells[f"{attack}: AUC"] = f"{np.mean([one['auc'] for one in found]):.3f} ({low:.3f} to {high:.3f})"
        low, high = (100 * np.mean([one["tpr_interval"][end] for one in found]) for end in (0, 1))
        rate = 100 * np.mean([one["tpr"] for one in found])
        cells[f"{attack}: TPR at 1 %"] = f"{rate:.1f} % ({low:.1f} to {high:.1f})"
    cells["R"] = mean(row["R"] for row in _some(rows))
    cells["cosine"] = mean(row["cosine"] for row in _some(rows))
    cells["instability"] = mean(row["instability"] for row in _some(rows))
    return cells


def _inversion(groups: dict[tuple[str, float], list[Row]], name: str) -> list[dict[str, str]]:
    """A cell is read only where the attack beats the blank and the mean image on the dense network."""
    dense = _some(groups.get(("dense", 1.0), []))
    if not dense:
        return []
    passed = {}
    for layer in dense[0]["inversion"]:
        cells = [row["inversion"][layer] for row in dense]
        parts = [np.concatenate([cell[name] for cell in cells]) for name in ("psnr", "blank", "mean")]
        passed[layer] = gate(*parts)
    rows = []
    for (method, kept), found in groups.items():
        if some := _some(found):
            line = {"method": method, "kept, %": f"{100 * kept:.1f}"}
            for layer, verdict in passed.items():
                values = [v for row in some for v in row["inversion"][layer][name]]
                line[layer] = verdict.read(mean(values))
            rows.append(line)
    return rows


def plot(records: Records, folder: Path) -> list[Path]:
    """Accuracy against membership and against inversion, as a PNG file in a folder; its path."""
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    rows = [row for row in records.rows if "refused" not in row]
    if not rows:
        return []
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    layers = list(rows[0]["inversion"])
    layer = layers[len(layers) // 2]
    names = list(dict.fromkeys(row["method"] for row in rows))
    styles = [(f"C{k % 10}", "osD^v<>P*X"[k // 10 % 10 + k % 3]) for k in range(len(names))]
    for name, (colour, marker) in zip(names, styles, strict=True):
        own = [row for row in rows if row["method"] == name]
        for axes, y in (
            (panels[0], [row["membership"]["RMIA"]["auc"] for row in own]),
            (panels[1], [np.mean(row["inversion"][layer]["psnr"]) for row in own]),
        ):
            axes.scatter(
                *([100 * row["test"] for row in own], y),
                color=colour,
                marker=marker,
                label=name,
                s=[12 + 60 * row["kept"] for row in own],
            )
    panels[0].axhline(0.5, color="black", lw=0.8, ls=":")
    panels[0].set(xlabel="test accuracy, %", ylabel="AUC of RMIA", title="membership")
    panels[1].set(xlabel="test accuracy, %", ylabel="PSNR, dB", title=f"inversion at {layer}")
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ec")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    path = folder / f"{records.path.stem}.png"
    figure.savefig(path, dpi=110)
    return [path]
