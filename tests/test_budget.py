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
        ({"grid": [0.5, 0.9]}, "grid must reach down to the density"),
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


def torch_model():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    conv = [torch.nn.Conv2d(1, 6, 3), torch.nn.BatchNorm2d(6), torch.nn.ReLU(), torch.nn.Flatten()]
    model = torch.nn.Sequential(*conv, torch.nn.Linear(216, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    with torch.no_grad():
        # the wide layer has little to lose
        model[4].weight *= (torch.rand(30, 216) < 0.05) + 0.03
    return model, torch.randn(500, 1, 8, 8)


def test_torch_models(tmp_path):
    import nettrim.torch as ntt

    model, x = torch_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = ntt.allocate(model, [x[:300], x[300:]], density=0.15)
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())
    weights = {"0": 54, "4": 6480, "6": 150}
    kept = sum(weights[name] * d for name, d in found.densities.items())
    assert 0.97 * 0.15 * sum(weights.values()) <= kept <= 0.15 * sum(weights.values()) * (1 + 1e-9)
    assert found.densities["4"] < 0.15 < found.densities["0"] and found.predicted < found.uniform

    pruned = ntt.prune(model, [x], density=found, method="l0")
    even = ntt.prune(model, [x], density=0.15, method="l0")
    assert pruned.reports[-1].holdout < even.reports[-1].holdout
    pruned.save(tmp_path / "w.safetensors")
    _, about = ntt.load(tmp_path / "w.safetensors")
    assert about["settings"]["allocation"] == found.to_dict()
    assert about["settings"]["density"] == found.densities
    assert all(v.holds for v in ntt.verify(tmp_path / "w.safetensors", [x], model))


def test_the_arrays_and_the_torch_model_agree():
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    layers, x = network()
    modules = []
    for layer in layers:
        linear = torch.nn.Linear(*layer.weight.shape[::-1], bias=layer.bias is not None)
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(layer.weight))
            if layer.bias is not None:
                linear.bias.copy_(torch.from_numpy(layer.bias))
        modules += [linear, torch.nn.ReLU()] if layer.relu else [linear]
    # drawn samples here, the last ones there: the same law
    here = nt.allocate(layers, x, 0.2, grid=[0.1, 0.3, 0.6])
    there = ntt.allocate(torch.nn.Sequential(*modules), [torch.from_numpy(x)], 0.2, grid=[0.1, 0.3, 0.6])
    for a, b in zip(here.curves.values(), there.curves.values(), strict=True):
        np.testing.assert_allclose([e for _, e in a], [e for _, e in b], rtol=0.25)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 0}, "density must be above 0"),
        ({"grid": [0.1]}, "grid must have at least two"),
        ({"holdout": 0.0}, "holdout must leave samples"),
        ({"method": "working_set"}, "method must be one that meets"),
        ({"targets": ["x*"]}, "fits no layer"),
    ],
)
def test_wrong_input_for_a_torch_model(options, error):
    model, x = torch_model()
    import nettrim.torch as ntt

    with pytest.raises(ValueError, match=error):
        ntt.allocate(model, [x], **({"density": 0.2} | options))
