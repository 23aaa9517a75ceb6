"""Rounds of reweighted l1: fewer weights within the same error."""

import nettrim as nt
import numpy as np

from digits import calibration, layer
from picture import BLUE, ORANGE, panels, save

X, Y, C = layer(1, calibration)
plain = nt.solve(X, Y, epsilon=0.1, C=C)
sol = nt.sparsest(X, Y, epsilon=0.1, C=C, rounds=5)

figure, (rounds, sizes) = panels()
rounds.bar(
    [str(row["round"]) for row in sol.rounds],
    [100 * row["nnz"] / sol.W.size for row in sol.rounds],
    color=BLUE,
)
rounds.set(xlabel="round", ylabel="weights kept (%)")
bins = np.geomspace(1e-3, 2, 30)
for label, W, colour in (
    ("one round", plain.W, BLUE),
    ("reweighted", sol.W, ORANGE),
):
    sizes.hist(
        np.abs(W[W != 0]),
        bins,
        histtype="step",
        color=colour,
        label=label,
        linewidth=1.5,
    )
sizes.set(xscale="log", xlabel="absolute value of a kept weight", ylabel="weights")
sizes.legend()
save(figure, "rounds")
