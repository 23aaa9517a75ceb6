"""Densities of layers for one count: the count is kept, the prediction minimal, what matters more is kept more."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import plain_network

import nettrim as nt
from nettrim.budget import _best, _interpolated


def network():
    return plain_network((24, 60, 60, 5), mixed=False)


def sparse_first(layers: list[nt.Layer]) -> list[nt.Layer]:
    """A network whose first layer has few weights already."""
    weight = layers[0].weight
    weight[np.abs(weight) < np.quantile(np.abs(weight), 0.92)] = 0
    return layers


def test_the_count_is_kept_and_goes_where_it_is_needed():
    layers, x = network()
    sparse_first(layers)
    found = nt.allocate(layers, x, density=0.15)
    weights = {layer.name: layer.weight.size for layer in layers}
    kept = sum(weights[name] * d for name, d in found.densities.items())
    assert 0.97 * 0.15 * sum(weights.values()) <= kept <= 0.15 * sum(weights.values()) * (1 + 1e-9)
    assert found.densities["fc0"] < 0.11 < found.densities["fc1"] and found.predicted < found.uniform
    assert [len(curve) for curve in found.curves.values()] == [11, 11, 11]
    for curve in found.curves.values():
        assert curve[0][1] > curve[-1][1]
    assert "fc1" in found.table() and json.loads(json.dumps(found.to_dict()))["densities"] == found.densities


def test_a_network_pruned_so_is_better_than_at_one_density():
    layers, x = network()
    sparse_first(layers)
    found = nt.allocate(layers, x[:1000], density=0.15)
    errors = [
        nt.prune(layers, x, density=d, method="l0", effort="fast").reports[-1].holdout for d in (found.densities, 0.15)
    ]
    assert errors[0] < 0.97 * errors[1]
    # errors of layers add up about as was assumed
    assert 0.4 < errors[0] / found.predicted < 1.6


def test_the_best_densities_are_those_of_all_that_keep_the_count():
    # E^2 = (a / d)^2 with sizes s: the optimum has d proportional to (a^2 / s)^(1/3)
    d = np.geomspace(0.01, 1, 60)
    curves = {name: _interpolated([(x, a / x) for x in d]) for name, a in (("a", 1e-3), ("b", 3e-3), ("c", 1e-2))}
    sizes = {"a": 1000, "b": 5000, "c": 200}
    found = _best(curves, sizes, 600.0)
    expected = {name: (a**2 / sizes[name]) ** (1 / 3) for name, a in (("a", 1e-3), ("b", 3e-3), ("c", 1e-2))}
    scale = 600 / sum(expected[n] * sizes[n] for n in sizes)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value * scale, rel=0.05)


def test_chosen_layers_only():
    layers, x = network()
    found = nt.allocate(layers, x, 0.2, ignore=["fc1"], method="wanda", grid=[0.1, 0.5])
    assert list(found.densities) == ["fc0", "fc2"]
    whole = nt.allocate(layers, x, 1.0, method="magnitude")
    assert all(d == pytest.approx(1) for d in whole.densities.values())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 0}, "density must be above 0"),
        ({"grid": [0.1]}, "grid must have at least two"),
        ({"grid": [0.1, 2]}, "grid must have at least two"),
        ({"holdout": 0}, "holdout must leave samples"),
        ({"holdout": 1e-6}, "holdout must leave samples"),
        ({"method": "auto"}, "method must be one that meets"),
        ({"targets": ["x*"]}, "fits no layer"),
    ],
)
def test_wrong_input_names_the_argument(options, error):
    layers, x = network()
    with pytest.raises(ValueError, match=error):
        nt.allocate(layers, x, **({"density": 0.2} | options))
