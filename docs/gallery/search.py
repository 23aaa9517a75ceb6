"""Equal counts: the search against those that it is compared with."""

import nettrim as nt
import numpy as np
from nettrim import pruners

from digits import biases, calibration, heldout, layer, weights
from picture import BLUE, GREEN, GREY, ORANGE, PURPLE, panels, save

n = 40  # neurons of the layer's 100
X, Y, _ = layer(1, calibration)
W = np.vstack([weights[1], biases[1]])[:, :n]  # the bias is the last row
unseen, wanted, _ = layer(1, heldout)
densities = (0.2, 0.1, 0.05, 0.02)
found = {
    "nettrim, l0": [nt.l0(X, Y[:n], W, density=d, bias=True).W for d in densities]
}
for name in ("alps", "sparsegpt", "wanda", "magnitude"):
    found[name] = [
        pruners.prune(W, X, name, density=d, bias=True, refit=True)
        for d in densities
    ]
errors = {
    name: [
        np.linalg.norm(np.maximum(V.T @ unseen, 0) - wanted[:n])
        / np.linalg.norm(wanted[:n])
        for V in pruned
    ]
    for name, pruned in found.items()
}

figure, axes = panels(1, 1)
for (name, values), colour in zip(
    errors.items(), (BLUE, ORANGE, GREEN, PURPLE, GREY), strict=True
):
    label = name if name.startswith("nettrim") else f"{name}, refitted"
    axes.plot(
        [100 * d for d in densities],
        [100 * e for e in values],
        "o-",
        color=colour,
        label=label,
    )
axes.set(
    xscale="log",
    xlabel="weights kept (%)",
    ylabel="held-out error of the outputs (%)",
    ylim=0,
)
axes.set_xticks([100 * d for d in densities], [f"{d:.0%}" for d in densities])
axes.minorticks_off()
axes.legend()
save(figure, "search")
