"""How many weights each layer of a network should keep, for one count of the whole.

Every layer is pruned alone, at several densities, by a quick method, and the error that this makes at the network's end
is measured on samples that the pruning has not seen. If the errors of different layers are about orthogonal at the end,
their squares add up, and the best densities for a count K of all layers solve

    minimise  sum_l E_l(d_l)^2   subject to  sum_l d_l size_l <= K.

For a price of a weight, each layer chooses for itself, from its interpolated curve; bisection finds the price at which
the counts add up to K.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettrim.flow import check_network, chosen_layers, run, split
from nettrim.how import How
from nettrim.layer import Layer, group_problems, solve_groups
from nettrim.path import FIRST
from nettrim.units import align

__all__ = ["GRID", "Allocation", "allocate", "best_densities", "check_grid", "pruner_of"]

#: densities that each layer is tried at
GRID = (0.01, 0.02, 0.035, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.8)
#: points of an interpolated curve, and steps of the bisection
_POINTS, _STEPS = 400, 100


@dataclass(frozen=True, repr=False)
class Allocation:
    """Densities of the layers of a network.

    Attributes
    ----------
    densities : dict of str to float
        Of each layer that is to be pruned, its biases apart: `density` of `prune`.
    predicted : float
        Error of the network's outputs that they are expected to make, relative.
    uniform : float
        That of the same density in all layers.
    curves : dict of str to list of (density, error)
        What was measured: the error at the network's end with this layer alone pruned.
    """

    densities: dict[str, float]
    predicted: float
    uniform: float
    curves: dict[str, list[tuple[float, float]]]

    def __repr__(self) -> str:
        errors = f"predicted {self.predicted:.2%}, {self.uniform:.2%} with one density"
        return f"Allocation({len(self.densities)} layers, {errors}; table() has densities and curves)"

    def table(self) -> str:
        """A line a layer: its density, and the error that it makes at the end at those that were tried."""
        tried = [d for d, _ in next(iter(self.curves.values()))]
        titles = ("layer", "density", *(f"at {d:.0%}" for d in tried))
        rows = [
            (name, f"{self.densities[name]:.2%}", *(f"{e:.2%}" for _, e in curve))
            for name, curve in self.curves.items()
        ]
        return align((titles, *rows), left=1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        curves = {name: [list(point) for point in curve] for name, curve in self.curves.items()}
        return {"densities": self.densities, "predicted": self.predicted, "uniform": self.uniform, "curves": curves}


def allocate(
    layers: Sequence[Layer],
    inputs: np.ndarray,
    density: float,
    *,
    between: Sequence[Callable[[np.ndarray], np.ndarray] | None] | None = None,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    method: str = "alps",
    grid: Sequence[float] = GRID,
    holdout: float = 0.5,
    samples: int | None = None,
    seed: int = 0,
) -> Allocation:
    """Densities of the layers for one density of the network, chosen by the error at its end.

    >>> import numpy as np, nettrim as nt
    >>> rng = np.random.default_rng(0)
    >>> sizes = [20, 60, 10]
    >>> layers = [nt.Layer(rng.standard_normal((m, n)) ** 3 / n, name=f"fc{k}", relu=k == 0)
    ...           for k, (n, m) in enumerate(zip(sizes, sizes[1:]))]
    >>> x = rng.standard_normal((600, 20))
    >>> found = nt.allocate(layers, x, density=0.2)
    >>> kept = 1200 * found.densities["fc0"] + 600 * found.densities["fc1"]
    >>> bool(0.19 * 1800 < kept <= 0.2 * 1800), found.predicted <= found.uniform
    (True, True)
    >>> pruned = nt.prune(layers, x, density=found, method="l0")

    Parameters
    ----------
    layers, inputs, between, targets, ignore, samples, seed
        As for `prune`.
    density : float
        Of all the layers that are to be pruned together, without their biases.
    method : {"alps", "l0", "magnitude", "wanda", "sparsegpt"}
        What layers are pruned by to draw the curves; the compared pruners with a least-squares refit.
    grid : sequence of float
        Densities to try.
    holdout : float
        Fraction of the samples that errors are measured on; the layers are pruned on the others.

    Returns
    -------
    Allocation

    Raises
    ------
    TypeError, ValueError
        Wrong input; the message names the argument.
    """
    tried, how = check_grid(density, grid), pruner_of(method)
    layers, between = check_network(layers, between, inputs, "parallel", holdout, samples, targets, ignore)
    calibration, others = split(inputs, holdout, samples, seed)
    if others is None:
        raise ValueError(f"holdout must leave samples to measure errors on; got {holdout} of {len(inputs)}")
    passed, judged = ([x, *run(layers, between, x)] for x in (calibration, others))
    size = float(np.linalg.norm(judged[-1])) or 1.0
    curves: dict[str, list[tuple[float, float]]] = {}
    for k, chosen in enumerate(chosen_layers(layers, targets, ignore)):
        if not chosen:
            continue
        curve = []
        problems = list(group_problems(layers[k], passed[k], layers[k](passed[k]), FIRST))
        for d in tried:
            made = solve_groups(layers[k], problems, how=how, density=d).layer
            end = run([made, *layers[k + 1 :]], between[k:], judged[k])[-1]
            curve.append((d, float(np.linalg.norm(end - judged[-1])) / size))
        curves[layers[k].name] = curve
    weights = {layer.name: layer.weight.size for layer in layers if layer.name in curves}
    return best_densities(curves, weights, density)


def check_grid(density: float, grid: Sequence[float]) -> list[float]:
    """The densities to try, sorted.

    Raises
    ------
    TypeError, ValueError
        A density, or one of the grid, is no number or out of range.
    """
    if isinstance(density, bool) or not isinstance(density, (int, float, np.integer, np.floating)):
        raise TypeError(f"density must be a number; got {density!r}")
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1; got {density}")
    tried = sorted({float(d) for d in grid})
    if len(tried) < 2 or not (tried[0] > 0 and tried[-1] <= 1):
        raise ValueError(f"grid must have at least two densities, above 0 and at most 1; got {list(grid)}")
    if tried[0] > density:
        raise ValueError(f"grid must reach down to the density {density:g}; its least is {tried[0]:g}")
    return tried


def pruner_of(method: str) -> How:
    """How layers are pruned to draw the curves: the compared pruners with their refit.

    Raises
    ------
    ValueError
        The method does not meet a density exactly.
    """
    how = How(method, refit=None if method == "l0" else "free")
    if how.l1:
        raise ValueError(f"method must be one that meets a density exactly; got {method!r}")
    return how


def best_densities(curves: dict[str, list[tuple[float, float]]], weights: dict[str, int], density: float) -> Allocation:
    """The allocation that measured curves, (density, error) of each layer, make best."""
    dense = {name: _interpolated(curve) for name, curve in curves.items()}
    uniform = dict.fromkeys(weights, float(density))
    found = _best(dense, weights, density * sum(weights.values()))
    # a price finds only what lies on the convex hull of the curves
    densities = min(found, uniform, key=lambda choice: _total(dense, choice))
    return Allocation(densities, _total(dense, densities), _total(dense, uniform), curves)


def _interpolated(curve: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Densities and squared errors between the points, and beyond them; no error rises with the density.

    Between two points the error is straight over the logarithm of the density, which lies above any power of it: a
    layer that is sparse already has a cliff, and its edge must not be promised.
    """
    d, e = (np.array(column) for column in zip(*curve, strict=True))
    e = np.maximum(np.minimum.accumulate(e), 1e-12)
    points = np.exp(np.linspace(math.log(d[0]) - math.log(4), 0.0, _POINTS))
    found = np.interp(np.log(points), np.log(d), e)
    # below the grid the power of its first two points goes on; above it, the last error falls to none at all
    power = math.log(e[1] / e[0]) / math.log(d[1] / d[0])
    found = np.where(points < d[0], e[0] * (points / d[0]) ** power, found)
    found = np.where(points > d[-1], e[-1] * (1 - points) / max(1 - d[-1], 1e-12), found)
    # without all its weights a layer cannot do worse than put out nothing
    return points, np.minimum(found, max(1.0, float(e[0]))) ** 2


def _best(curves: dict[str, tuple[np.ndarray, np.ndarray]], weights: dict[str, int], count: float) -> dict[str, float]:
    """Each layer's density at the price of a weight at which all of them together keep `count`, at most."""

    def at(price: float) -> dict[str, float]:
        return {name: float(d[np.argmin(e + price * weights[name] * d)]) for name, (d, e) in curves.items()}

    def kept(densities: dict[str, float]) -> float:
        return sum(weights[name] * d for name, d in densities.items())

    low, high = 1e-30, 1e30
    for _ in range(_STEPS):
        price = math.sqrt(low * high)
        low, high = (price, high) if kept(at(price)) > count else (low, price)
    found = at(high)
    # what the steps of the curves leave over
    return {name: min(1.0, d * count / kept(found)) for name, d in found.items()}


def _total(curves: dict[str, tuple[np.ndarray, np.ndarray]], densities: dict[str, float]) -> float:
    squares = (np.interp(d, *curves[name]) for name, d in densities.items())
    return math.sqrt(float(sum(squares)))
