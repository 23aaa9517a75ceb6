"""A linear layer, known by its second moments only: batches come and go."""

import nettrim as nt
import numpy as np

from digits import calibration, heldout, layer
from picture import SIGNED, bare, panels, save

gram, C = nt.Gram(101, 10), layer(2, calibration)[2]
for batch in np.array_split(
    calibration, 8
):  # from a loader, a file, another machine
    X, Y, _ = layer(2, batch)
    gram = gram.add(X, Y)
path = nt.path(gram, epsilons=(0.2, 0.1, 0.05), C=C)

X, Y, _ = layer(2, heldout)
figure, maps = panels(3, 1, height=3.6)
limit = np.quantile(np.abs(path[0].W[:-1]), 0.99)
for axes, epsilon, sol in zip(maps, path.epsilons, path, strict=True):
    W = sol.W[:-1]
    error = np.linalg.norm(sol.W.T @ X - Y) / np.linalg.norm(Y)
    axes.imshow(
        np.where(W == 0, np.nan, W).T,
        cmap=SIGNED,
        vmin=-limit,
        vmax=limit,
        aspect="auto",
    )
    kept = f"epsilon {epsilon:.0%}: {np.mean(W != 0):.0%} kept"
    bare(axes, f"{kept}, error of the logits on held-out images {error:.1%}")
    axes.set_ylabel("10 logits")
maps[-1].set_xlabel("100 inputs")
save(figure, "moments")
