"""Draw bench/results/pruners.json: docs/_static/pruners.png.

python bench/plots.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from common import read
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
#: method, label, colour, line
CURVES = (
    ("magnitude + refit", "magnitude + refit", "#9aa3ab", "-"),
    ("wanda + refit", "Wanda + refit", "#c49a00", "-"),
    ("sparsegpt + refit", "SparseGPT + refit", "#8a4fb0", "-"),
    ("alps + refit", "ALPS + refit", "#d1661d", "-"),
    ("l0, default", "nettrim l0", "#0b6fb8", "-"),
    ("l0, thorough", "nettrim l0, thorough", "#0b6fb8", "--"),
)


def main() -> None:
    record = read("pruners")
    rows = record["layers"]
    layers = sorted({r["layer"] for r in rows})
    figure, panels = plt.subplots(1, len(layers) + 1, figsize=(12, 3.4), layout="constrained")
    for axes, layer in zip(panels, layers, strict=False):
        for method, label, colour, line in CURVES:
            found = sorted((r["kept"], r["test"]) for r in rows if r["layer"] == layer and r["method"] == method)
            axes.plot([100 * k for k, _ in found], [e for _, e in found], line, color=colour, label=label, lw=1.6)
        axes.set(title=f"layer {layer}", xscale="log", yscale="log", xlabel="weights kept, %")
    panels[0].set_ylabel("error on test images, relative")
    whole = panels[-1]
    shown = {
        "alps + refit, allocated": ("#d1661d", "ALPS + refit, allocated"),
        "sparsegpt + refit": ("#8a4fb0", ""),
        "wanda + refit": ("#c49a00", ""),
        "magnitude + refit": ("#9aa3ab", ""),
        "l0, default, allocated": ("#0b6fb8", "nettrim l0, allocated"),
    }
    networks = [r for r in record["networks"] if r["network"] == "shared"]
    for method, (colour, _) in shown.items():
        best: dict[float, dict] = {}
        for r in networks:
            if r["method"] == method and r["validation"] > best.get(r["kept"], {"validation": -1})["validation"]:
                best[r["kept"]] = r
        kept = sorted(best)
        whole.plot([100 * k for k in kept], [100 * best[k]["test"] for k in kept], color=colour, lw=1.6)
    whole.axhline(100 * record["dense"]["shared"]["test"], color="black", lw=0.8, ls=":")
    whole.set(title="network, no fine-tuning", xscale="log", xlabel="weights kept, %", ylabel="test accuracy, %")
    whole.set_ylim(85, 98.6)
    for axes in panels:
        axes.set_xticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ec")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    path = ROOT / "docs" / "_static" / "pruners.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
