"""How the two methods close the gap."""

import nettrim as nt

from digits import calibration, layer
from picture import BLUE, ORANGE, panels, save

X, Y, C = layer(1, calibration)
X, Y = X.astype(float), Y[:10].astype(float)  # 10 neurons; float64 for a small gap
tolerances = {"gap_tol": 1e-6, "feas_tol": 1e-6}
exact = nt.solve(X, Y, epsilon=0.1, C=C, method="working_set", **tolerances)
first_order = nt.solve(
    X, Y, epsilon=0.1, C=C, method="admm", polish=False, **tolerances
)

figure, axes = panels(1, 1)
for sol, label, style in (
    (exact, "working sets", "o-"),
    (first_order, "ADMM", "-"),
):
    rows = [row for row in sol.history if row["gap"] != 0]
    colour = BLUE if sol is exact else ORANGE
    axes.plot(
        [row["iteration"] for row in rows],
        [abs(row["gap"]) for row in rows],
        style,
        color=colour,
        label=label,
    )
axes.axhline(tolerances["gap_tol"], color="black", linewidth=0.8, linestyle="--")
axes.set(
    xscale="log",
    yscale="log",
    xlabel="rounds of working sets, iterations of ADMM",
    ylabel="relative gap",
)
axes.legend()
save(figure, "methods")
