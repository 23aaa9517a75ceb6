"""Networks of plain layers: the schemes, the theorems on how errors add up, and what the report says."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import nettrim as nt
from nettrim import flow, network
from nettrim.geometry import Geometry
from nettrim.layer import Layer, prune_layer
from nettrim.patterns import matches
from nettrim.report import to_json


def dense_layers(rng, sizes, bias=True, dtype=np.float64):
    layers = []
    for k, (n, m) in enumerate(itertools.pairwise(sizes)):
        weight = (rng.standard_normal((m, n)) ** 3 / n).astype(dtype)
        b = (0.1 * rng.standard_normal(m)).astype(dtype) if bias else None
        layers.append(Layer(weight, b, relu=k < len(sizes) - 2, name=f"fc{k}"))
    return layers


def pool(outputs):
    """Two by two, largest: increases no distance."""
    b, c, h, w = outputs.shape
    return outputs[:, :, : h // 2 * 2, : w // 2 * 2].reshape(b, c, h // 2, 2, w // 2, 2).max((3, 5))


def flat(outputs):
    return pool(outputs).reshape(len(outputs), -1)


def convolutions(rng):
    """(layers, between, images): two convolutions, the second grouped, and a linear layer."""
    layers = [
        Layer(
            rng.standard_normal((4, 1, 3, 3)) ** 3, rng.standard_normal(4), True, Geometry(3, padding=1), name="conv1"
        ),
        Layer(rng.standard_normal((6, 2, 3, 3)) ** 3, None, True, Geometry(3), 2, "conv2"),
        Layer(rng.standard_normal((3, 6 * 2 * 2)), rng.standard_normal(3), False, name="head"),
    ]
    return layers, [pool, flat, None], rng.standard_normal((40, 1, 12, 12))


def outputs_of(layers, inputs, between=None):
    found = []
    for k, layer in enumerate(layers):
        inputs = layer(inputs)
        found.append(inputs)
        if between and between[k]:
            inputs = between[k](inputs)
    return found


# what a layer computes


def test_a_dense_layer(rng):
    weight, bias, x = rng.standard_normal((3, 5)), rng.standard_normal(3), rng.standard_normal((2, 4, 5))
    expected = x @ weight.T + bias
    np.testing.assert_allclose(Layer(weight, bias, relu=False)(x), expected)
    np.testing.assert_allclose(Layer(weight, bias)(x), np.maximum(expected, 0))
    np.testing.assert_allclose(Layer(weight, relu=False)(x), x @ weight.T)
    # samples and steps of a sequence are samples
    X = Layer(weight, bias).matrix(x)
    assert X.shape == (6, 8)
    np.testing.assert_array_equal(X[:5, 5], x[1, 1])


def test_a_grouped_convolution_is_one_for_each_group(rng):
    weight, bias, x = rng.standard_normal((6, 2, 3, 3)), rng.standard_normal(6), rng.standard_normal((3, 4, 7, 6))
    geometry = Geometry(3, 2, 1)
    whole = Layer(weight, bias, False, geometry, 2)(x)
    for g in range(2):
        part = Layer(weight[3 * g : 3 * g + 3], bias[3 * g : 3 * g + 3], False, geometry)(x[:, 2 * g : 2 * g + 2])
        np.testing.assert_allclose(whole[:, 3 * g : 3 * g + 3], part, atol=1e-12)
    assert whole.shape == (3, 6, 4, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"weight": np.ones((2, 3), int)}, TypeError, "weight of layer 'a' must be an array of a floating dtype"),
        ({"weight": np.ones((2, 3)), "bias": [1.0, 2.0]}, TypeError, "bias of layer 'a'"),
        ({"weight": np.ones((2, 3)), "bias": np.ones(3)}, ValueError, r"bias of layer 'a' must be \(2,\)"),
        ({"weight": np.ones((2, 3, 3, 3))}, ValueError, "must have 2 dimensions"),
        ({"weight": np.ones((2, 3, 3, 3)), "geometry": Geometry(5)}, ValueError, "its kernel"),
        ({"weight": np.ones((2, 3)), "groups": 2}, ValueError, "groups of layer 'a'"),
        ({"weight": np.ones((3, 2, 3, 3)), "geometry": Geometry(3), "groups": 2}, ValueError, "do not divide"),
    ],
)
def test_a_layer_refuses(arguments, error, match):
    with pytest.raises(error, match=match):
        Layer(name="a", **arguments)


# one layer


def test_a_layer_is_the_problem_of_its_inputs_and_outputs(rng):
    layer = dense_layers(rng, (12, 6, 2))[0]
    x = rng.standard_normal((300, 12))
    made = prune_layer(layer, x, layer(x), 0.1)
    X = np.vstack([x.T, np.ones((1, 300))])
    solution = nt.solve(X, layer(x).T, 0.1)
    np.testing.assert_allclose(made.layer.weight, solution.W[:-1].T)
    np.testing.assert_allclose(made.layer.bias, solution.W[-1])
    assert made.discrepancy == pytest.approx(solution.certificate.discrepancy)
    assert made.status == nt.Status.SOLVED


def test_the_groups_share_the_error(rng):
    layers, between, x = convolutions(rng)
    x = between[0](layers[0](x))
    made = prune_layer(layers[1], x, layers[1](x), 0.1)
    assert len(made.solutions) == 2
    assert made.epsilon == pytest.approx(0.1 * made.size)
    difference = np.linalg.norm((made.layer.linear(x) - layers[1](x))[layers[1](x) > 0])
    assert difference / made.size == pytest.approx(made.discrepancy, rel=1e-3) and made.discrepancy <= 0.1 * 1.001


def test_an_unpenalised_bias_costs_nothing(rng):
    layer = dense_layers(rng, (12, 6, 2))[0]
    x = rng.standard_normal((300, 12))
    free, counted = (prune_layer(layer, x, layer(x), 0.1, penalise_bias=p) for p in (False, True))
    assert np.abs(free.layer.weight).sum() <= np.abs(counted.layer.weight).sum() * 1.001
    assert free.solutions[0].certificate.objective == pytest.approx(np.abs(free.layer.weight).sum(), rel=1e-6)


def test_the_slack_makes_the_layers_own_weights_feasible(rng):
    """Program (3.10): at gamma = 1 they are on the edge of the ball and of all bounds."""
    layer = dense_layers(rng, (12, 6, 2))[0]
    x = rng.standard_normal((300, 12))
    changed = x + 0.05 * rng.standard_normal(x.shape)
    Z, Y = layer.linear(changed), layer(x)
    distance = np.linalg.norm((Z - Y)[Y > 0])
    X = layer.matrix(changed)
    problem = nt.Problem(X, Y.T, epsilon_abs=distance * (1 + 1e-12), V=Z.T)
    assert nt.certify(problem, layer.weights(slice(0, 6))).violation <= 1e-12
    made = prune_layer(layer, changed, Y, slack=(1.2, Z))
    assert made.status == nt.Status.SOLVED
    assert made.epsilon == pytest.approx(1.2 * distance)
    with pytest.raises(ValueError, match="gamma must be at least 1"):
        prune_layer(layer, changed, Y, slack=(0.9, Z))
    with pytest.raises(ValueError, match="one of epsilon, slack and density"):
        prune_layer(layer, changed, Y)


# whole networks


def test_parallel_layers_do_not_know_of_each_other(rng):
    layers, x = dense_layers(rng, (10, 12, 8, 4)), rng.standard_normal((300, 10))
    whole = network.prune(layers, x, 0.1)
    alone = network.prune(layers, x, 0.1, targets=["fc1"])
    np.testing.assert_array_equal(whole.layers[1].weight, alone.layers[1].weight)
    assert alone.layers[0] is layers[0] and [r.name for r in alone.reports] == ["fc1"]
    assert [r.status for r in whole.reports] == ["solved"] * 3
    assert whole.kept < alone.kept < 1


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_errors_are_those_of_the_two_networks(rng, scheme):
    layers, between, x = convolutions(rng)
    pruned = network.prune(layers, x, 0.1, scheme, between=between, holdout=0.25, seed=3)
    calibration, held_out = flow.split(x, 0.25, None, 3)
    for samples, field in ((calibration, "error"), (held_out, "holdout")):
        pairs = zip(outputs_of(layers, samples, between), outputs_of(pruned.layers, samples, between), strict=True)
        for report, (a, b) in zip(pruned.reports, pairs, strict=True):
            assert getattr(report, field) == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
    np.testing.assert_allclose(pruned(held_out), outputs_of(pruned.layers, held_out, between)[-1])
    assert {r.kind for r in pruned.reports} == {"convolution, ReLU", "dense, linear"}
    assert pruned.reports[0].samples == 30 * 144


def test_the_cascade_feeds_pruned_outputs(rng):
    """Its second layer is program (3.10) on what the pruned first one puts out."""
    layers, x = dense_layers(rng, (10, 12, 8, 4)), rng.standard_normal((300, 10))
    pruned = network.prune(layers, x, 0.2, "cascade", gamma={"fc1": 1.3, "*": 1.1}, holdout=0)
    fed = pruned.layers[0](x)
    original = outputs_of(layers, x)
    again = prune_layer(layers[1], fed, original[1], slack=(1.3, layers[1].linear(fed)))
    np.testing.assert_allclose(again.layer.weight, pruned.layers[1].weight, atol=1e-9)


@given(st.lists(st.integers(2, 8), min_size=3, max_size=5), st.floats(0.02, 0.4), st.integers(0, 10**6), st.booleans())
@example([5, 8, 8, 3], 0.1, 0, True)
@example([4, 4, 4, 4, 4], 0.4, 1, False)
def test_theorem_3_1(sizes, epsilon, seed, penalised):
    """Parallel: e_l <= ||W_l||_1 e_(l-1) + epsilon_l; and the sum of the epsilons for a normalised network."""
    rng = np.random.default_rng(seed)
    layers = dense_layers(rng, sizes, bias=not penalised)
    x = rng.standard_normal((60, sizes[0]))
    settings = {"gap_tol": 1e-7, "feas_tol": 1e-7, "holdout": 0.0, "penalise_bias": penalised}
    pruned = network.prune(layers, x, epsilon, **settings)
    for report in pruned.reports:
        assert report.error <= report.bound * (1 + 1e-5) + 1e-9
    normalised, factor = [], 1.0
    for layer in layers:
        factor *= layer.amplification()
        bias = None if layer.bias is None else layer.bias / factor
        normalised.append(Layer(layer.weight / layer.amplification(), bias, layer.relu, name=layer.name))
    again = network.prune(normalised, x, epsilon, **settings)
    total = 0.0
    for outputs, a, b in zip(outputs_of(normalised, x), again.reports, pruned.reports, strict=True):
        total += a.epsilon * np.linalg.norm(outputs[outputs > 0] if a.kind.endswith("ReLU") else outputs)
        if penalised:
            # without biases, whose norm would count: the theorem as it is printed
            assert a.bound * np.linalg.norm(outputs) <= total * (1 + 1e-9) + 1e-12
        # the outputs differ by a factor only
        assert a.bound == pytest.approx(b.bound, rel=1e-6, abs=1e-9)


@given(
    st.lists(st.integers(2, 8), min_size=3, max_size=5), st.floats(0.02, 0.4), st.integers(0, 10**6), st.floats(1, 2)
)
@example([5, 8, 8, 3], 0.1, 0, 1.1)
@example([4, 4, 4, 4, 4], 0.3, 1, 1.0)
def test_theorem_3_2(sizes, epsilon, seed, gamma):
    """Cascade: e_l <= gamma_l ||W_l||_1 e_(l-1), and every program is feasible."""
    rng = np.random.default_rng(seed)
    layers = dense_layers(rng, sizes)
    x = rng.standard_normal((60, sizes[0]))
    settings = {"gap_tol": 1e-6, "feas_tol": 1e-6, "holdout": 0.0}
    pruned = network.prune(layers, x, epsilon, "cascade", gamma=gamma, **settings)
    for report in pruned.reports:
        assert report.status != "infeasible"
        assert report.error <= report.bound * (1 + 1e-4) + 1e-8
    originals = outputs_of(layers, x)
    if np.linalg.norm(originals[0]) > 0:
        first = pruned.reports[0].bound * np.linalg.norm(originals[0])
        product = first
        for layer, outputs, report in zip(layers[1:], originals[1:], pruned.reports[1:], strict=True):
            product *= gamma * layer.amplification()
            assert report.bound * np.linalg.norm(outputs) == pytest.approx(product, rel=1e-6, abs=1e-9)


def test_samples_and_held_out_ones_are_disjoint(rng):
    x = np.arange(100.0)[:, None]
    calibration, held_out = flow.split(x, 0.2, 30, 0)
    assert (len(calibration), len(held_out)) == (30, 20)
    assert not set(calibration.ravel()) & set(held_out.ravel())
    other, back = flow.split(x, 0.2, None, 0)
    assert set(calibration.ravel()) <= set(other.ravel()) and (back == held_out).all()
    assert flow.split(x, 0.0, None, 0)[1] is None


def test_epsilons_by_name(rng):
    layers, x = dense_layers(rng, (10, 12, 8, 4)), rng.standard_normal((300, 10))
    pruned = network.prune(layers, x, {"fc0": 0.2, "re:fc[12]": 0.05})
    assert [round(r.epsilon, 6) for r in pruned.reports] == [0.2, 0.05, 0.05]
    with pytest.raises(ValueError, match="epsilon has no pattern that fits layer 'fc1'"):
        network.prune(layers, x, {"fc0": 0.2})


def test_patterns():
    assert matches("a.b", ["*"]) and matches("a.b", ["x", "a.?"]) and matches("fc12", ["re:fc\\d+"])
    assert not matches("fc1", ["re:fc"]) and not matches("FC1", ["fc1"]) and not matches("a", [])


def test_progress_and_report(rng, capsys):
    layers, x = dense_layers(rng, (10, 12, 4), dtype=np.float32), rng.standard_normal((300, 10)).astype(np.float32)
    seen = []
    pruned = network.prune(layers, x, 0.1, progress=seen.append, gap_tol=1e-4)
    assert seen == pruned.reports
    assert pruned.layers[0].weight.dtype == np.float32
    lines = pruned.table().splitlines()
    assert len(lines) == 3 and lines[0].split()[0] == "layer" and lines[1].startswith("fc0")
    record = pruned.to_dict()
    assert record["layers"][1]["kept"] == pruned.layers[1].nnz and record["scheme"] == "parallel"
    assert json.loads(to_json(record))["kept"] == pruned.kept


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"layers": []}, TypeError, "layers must be"),
        ({"scheme": "serial"}, ValueError, "scheme must be one of"),
        ({"inputs": [[1.0]]}, TypeError, "inputs must be an array"),
        ({"holdout": 1.0}, ValueError, "holdout must be in"),
        ({"samples": 10**6}, ValueError, "samples must be between"),
        ({"between": [None]}, ValueError, "between must have one entry"),
        ({"targets": ["nothing"]}, ValueError, "targets has the pattern 'nothing'"),
        ({"ignore": ["nothing"]}, ValueError, "ignore has the pattern 'nothing'"),
        ({"ignore": ["*"]}, ValueError, "no layer fits"),
        ({"targets": "fc0"}, TypeError, "targets must be a list"),
        ({"scheme": "cascade", "gamma": 0.5}, ValueError, "gamma must be at least 1"),
        ({"epsilon": 5}, ValueError, "epsilon must be between 0 and 1"),
        ({"gap_tols": 1e-3}, TypeError, "unknown setting"),
    ],
)
def test_wrong_arguments(rng, changes, error, match):
    arguments = {"layers": dense_layers(rng, (4, 5, 2)), "inputs": rng.standard_normal((50, 4))} | changes
    with pytest.raises(error, match=match):
        network.prune(arguments.pop("layers"), arguments.pop("inputs"), **arguments)


def test_a_layer_that_fell_short_keeps_its_weights(rng):
    layers, x = dense_layers(rng, (10, 12, 4)), rng.standard_normal((300, 10))
    with pytest.warns(UserWarning, match="layer 'fc0' keeps its own weights: time_limit"):
        pruned = network.prune(layers, x, 0.1, time_limit=0.0)
    np.testing.assert_array_equal(pruned.layers[0].weight, layers[0].weight)
    assert pruned.reports[0].error == 0 and pruned.reports[0].violation <= 1e-9
    with pytest.raises(KeyboardInterrupt, match="fc0"):
        network.prune(layers, x, 0.1, callback=lambda row: True)


def test_names_must_differ(rng):
    layer = dense_layers(rng, (4, 4, 4))[0]
    with pytest.raises(ValueError, match="different names"):
        network.prune([layer, layer], rng.standard_normal((50, 4)))


def test_a_pruned_network_is_saved(tmp_path):
    rng = np.random.default_rng(0)
    pruned = nt.prune(dense_layers(rng, [6, 8, 3]), rng.standard_normal((100, 6)), 0.2)
    pruned.save(tmp_path / "net.npz")
    with np.load(tmp_path / "net.npz", allow_pickle=False) as kept:
        for layer in pruned.layers:
            np.testing.assert_array_equal(kept[f"{layer.name}.weight"], layer.weight)
            np.testing.assert_array_equal(kept[f"{layer.name}.bias"], layer.bias)
        report = json.loads(str(kept["report"]))
    assert report["kept"] == pruned.kept and [row["status"] for row in report["layers"]] == ["solved", "solved"]
