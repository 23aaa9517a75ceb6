"""A layer's trade-off between error and weights."""

import nettrim as nt

from digits import calibration, heldout, layer
from picture import BLUE, ORANGE, panels, save

X, Y, C = layer(1, calibration)
path = nt.path(X, Y, (0.3, 0.2, 0.1, 0.05), C=C, heldout=layer(1, heldout)[:2])

figure, (kept, error) = panels()
epsilons = [100 * e for e in path.epsilons]
kept.plot(epsilons, [100 * d for d in path.densities], "o-", color=BLUE)
kept.set(xlabel="epsilon (%)", ylabel="weights kept (%)", ylim=0)
error.plot(
    epsilons,
    [100 * s.certificate.error for s in path],
    "o-",
    color=BLUE,
    label="calibration",
)
error.plot(
    epsilons, [100 * e for e in path.heldout], "s-", color=ORANGE, label="held out"
)
error.set(xlabel="epsilon (%)", ylabel="error of the outputs (%)", ylim=0)
error.legend()
save(figure, "curve")
