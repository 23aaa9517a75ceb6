"""The figures of the inversion study, from its records and the images beside them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from nettrim.privacy.images import TOO_WEAK, grid
from nettrim.studies.inversion_tables import Rows, cells, gate_of, share
from nettrim.studies.records import Records, interval

__all__ = ["draw"]

#: Okabe and Ito's colours, one for each layer
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
ByAttacker = dict[str, dict[str, dict[int, Rows]]]


def draw(records: Records, folder: Path) -> list[Path]:
    """PSNR against the kept share; for each attacker a grid over the layers (Figure 2), and over images (Figure 1).

    Parameters
    ----------
    records : Records
        The images are looked for where its file says, relative to it.
    folder : Path
        Created if it is not there.

    Returns
    -------
    list of Path
        PNG files.
    """
    found: ByAttacker = {}
    for (_, layer, attacker), by_round in cells(records.rows).items():
        found.setdefault(attacker, {})[layer] = by_round
    if not found:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_curves(found, folder / f"{records.path.stem}.psnr.png")]
    for attacker, layers in found.items():
        # a stopped study has attacked some layers of a network and not the others
        both = [n for n in next(iter(layers.values())) if all(n in by_round for by_round in layers.values())]
        whole = {layer: {n: by_round[n] for n in both} for layer, by_round in layers.items()}
        for name, rows in (("layers", _by_layer(records, whole)), ("images", _by_image(records, whole))):
            if both and rows:
                first = [found[0] for found in next(iter(whole.values())).values()]
                figure = grid(list(rows.values()), list(rows), ["image", *map(share, first)], tuple(first[0]["span"]))
                paths.append(folder / f"{records.path.stem}.{attacker}.{name}.png")
                figure.savefig(paths[-1], dpi=110)
    return paths


def _curves(found: ByAttacker, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(found) + 1, 3.8), layout="constrained")
    panels = figure.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    every = [rows[0] for layers in found.values() for by_round in layers.values() for rows in by_round.values()]
    ticks = {100 * row["kept"] / row["weights"]: share(row).removesuffix(" %") for row in every}
    for axes, (attacker, layers) in zip(panels, found.items(), strict=True):
        for colour, (layer, by_round) in zip(_COLOURS, layers.items(), strict=False):
            judged = gate_of(by_round)
            weak = judged is None or not judged.passed
            # what a weak attack does not find on pruned networks says nothing: only its dense point is drawn
            drawn = [rows for n, rows in by_round.items() if n == 0 or not weak]
            kept = [100 * rows[0]["kept"] / rows[0]["weights"] for rows in drawn]
            values = [interval(np.mean([row["psnr"] for row in rows], axis=0)) for rows in drawn]
            halves = np.nan_to_num([half for _, half in values])
            label = f"{layer}: {TOO_WEAK}" if weak else layer
            axes.errorbar(kept, [mean for mean, _ in values], halves, color=colour, marker="o", ms=4, label=label)
        row = next(iter(next(iter(layers.values())).values()))[0]
        axes.axhline(np.mean(row["mean"]), color="black", lw=0.8, ls="--")
        axes.set(title=attacker, xscale="log", xlabel="weights kept, %")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e6e9ec")
        axes.legend(frameon=False, fontsize=7)
    panels[0].invert_xaxis()
    panels[0].set_ylabel("PSNR, dB; dashed: the mean image")
    figure.savefig(path, dpi=110)
    return path


def _by_layer(records: Records, layers: dict[str, dict[int, Rows]]) -> dict[str, list[np.ndarray]]:
    """The first image, a row for each layer."""
    rows = {}
    for layer, by_round in layers.items():
        loaded = _loaded(records, by_round)
        if loaded:
            judged = gate_of(by_round)
            name = layer if judged is not None and judged.passed else f"{layer}\n(too weak)"
            rows[name] = [loaded[0][0, 0], *(shown[1, 0] for shown in loaded)]
    return rows


def _by_image(records: Records, layers: dict[str, dict[int, Rows]]) -> dict[str, list[np.ndarray]]:
    """The middle layer, a row for each image, as Figure 1 shows those of one layer of ResNet-18."""
    one = list(layers)[len(layers) // 2]
    loaded = _loaded(records, layers[one])
    if not loaded:
        return {}
    return {f"{one}, {k + 1}": [loaded[0][0, k], *(shown[1, k] for shown in loaded)] for k in range(loaded[0].shape[1])}


def _loaded(records: Records, by_round: dict[int, Rows]) -> list[np.ndarray]:
    """(2, images, C, H, W) arrays of each round, the true images and those found; none if a file is not there."""
    paths = [records.path.parent / rows[0]["images"] for rows in by_round.values()]
    if not all(path.exists() for path in paths):
        return []
    return [np.load(path, allow_pickle=False).astype(np.float32) for path in paths]
