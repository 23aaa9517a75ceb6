"""Whole networks by a density and by other methods, with refits: counts, errors, reports, what is refused."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from helpers import plain_network

import nettrim as nt
from nettrim.how import METHODS, How


def network():
    return plain_network((24, 40, 30, 6), mixed=True)


def kept(layer: nt.Layer) -> int:
    return int(np.count_nonzero(layer.weight))


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_meets_a_density(method, scheme):
    layers, x = network()
    pruned = nt.prune(layers, x, density=0.3, method=method, scheme=scheme)
    for old, new, report in zip(layers, pruned.layers, pruned.reports, strict=True):
        most = round(0.3 * old.weight.size) + old.outputs
        if How(method).l1:
            # in a cascade the error of the layers before may leave l1 nothing to spend more weights on
            assert (0.8 * most if scheme == "parallel" else 1) <= new.nnz <= most
            assert report.status == "solved" and report.gap is not None
        else:
            assert kept(new) == round(0.3 * old.weight.size) and (new.bias != 0).all()
            assert report.status == "measured" and report.gap is None
        assert report.error is not None and report.holdout is not None and report.bound is not None
        # what is promised, or was measured, bounds what happened
        assert report.error <= report.bound * (1 + 1e-3)
    assert len(pruned.table().splitlines()) == 4
    json.dumps(pruned.to_dict(), allow_nan=False)


def test_the_search_beats_the_rivals_and_l1():
    layers, x = network()
    errors = {m: nt.prune(layers, x, density=0.25, method=m).reports[-1].holdout for m in METHODS}
    assert errors["l0"] == min(errors.values())
    cascade = nt.prune(layers, x, density=0.25, method="l0", scheme="cascade").reports[-1].holdout
    assert cascade < errors["l0"]


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_refits_lower_the_error_on_the_same_support(scheme):
    layers, x = network()
    plain = nt.prune(layers, x, 0.2, scheme, rounds=3)
    free = nt.prune(layers, x, 0.2, scheme, rounds=3, refit="free")
    within = nt.prune(layers, x, 0.2, scheme, rounds=3, refit="within")
    # the first layer begins with the same weights in all three
    supports = [p.layers[0].weight != 0 for p in (plain, free, within)]
    assert (supports[1] <= supports[0]).all() and (supports[2] <= supports[0]).all()
    assert free.reports[0].error < 0.9 * plain.reports[0].error
    assert free.reports[0].error <= within.reports[0].error <= plain.reports[0].error
    assert free.reports[0].status == "measured" and within.reports[0].violation < 1e-3
    assert free.reports[-1].holdout < plain.reports[-1].holdout
    assert (free.reports[-1].bound is None) == (scheme == "cascade")


def test_a_refit_that_overfits_is_not_kept():
    layers, x = network()
    few = nt.prune(layers[:1], x[:40], 0.01, refit="free", holdout=0.5, targets=["fc0"])
    # 20 samples for 25 inputs: whichever weights are kept, they are no worse on the others than those of l1
    plain = nt.prune(layers[:1], x[:40], 0.01, holdout=0.5, targets=["fc0"])
    assert few.reports[0].holdout <= plain.reports[0].holdout * (1 + 1e-3)


def test_densities_by_pattern():
    layers, x = network()
    pruned = nt.prune(layers, x, density={"fc0": 0.5, "*": 0.2}, method="alps", refit="free")
    assert [kept(layer) for layer in pruned.layers] == [480, 240, 36]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"method": "l0"}, "needs a density"),
        ({"method": "magic", "density": 0.1}, "method must be one of"),
        ({"density": 0.1, "epsilon": 0.1}, "not both"),
        ({"density": 0.0}, "density must be above 0"),
        ({"density": "a"}, "density must be a number"),
        ({"density": {"fc9": 0.1}}, "fits no layer"),
        ({"density": {"fc0": 0.1}}, "no pattern that fits"),
        ({"refit": "yes"}, "refit must be"),
        ({"effort": "all"}, "effort must be"),
        ({"density": 0.1, "method": "l0", "rounds": 2}, "rounds are those of"),
        ({"density": 0.1, "method": "l0", "refit": "within"}, "refit='within'"),
    ],
)
def test_wrong_choices_name_the_argument(options, error):
    layers, x = network()
    with pytest.raises((TypeError, ValueError), match=error):
        nt.prune(layers, x, **options)


def test_a_diverging_problem_is_a_status():
    rng = np.random.default_rng(0)
    X = np.maximum(rng.standard_normal((40, 12)), 0).astype(np.float32)
    X = np.hstack([X, X])
    # the same inputs twice, with different outputs: nothing comes near
    Y = np.maximum(rng.standard_normal((5, 24)), 0).astype(np.float32)
    for method in ("admm", "auto"):
        sol = nt.solve(X, Y, 1e-3, method=method, max_iterations=3000)
        assert sol.status in (nt.Status.INFEASIBLE, nt.Status.MAX_ITERATIONS) and np.isfinite(sol.W).all()
    assert nt.solve(X, Y, density=0.1, max_iterations=3000).status == nt.Status.SOLVED


def test_torch_models(tmp_path):
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    torch.manual_seed(0)
    nn = torch.nn
    layers = [nn.Conv2d(1, 6, 3), nn.ReLU(), nn.AvgPool2d(5), nn.Flatten(), nn.Linear(24, 20), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(20, 4))
    x = [torch.randn(60, 1, 12, 12) for _ in range(5)]
    for options in (
        {"density": 0.3, "method": "l0"},
        {"density": 0.3, "method": "alps", "refit": "free"},
        {"density": 0.3, "rounds": 2},
        {"epsilon": 0.2, "refit": "within"},
        {"epsilon": 0.2, "refit": "free"},
    ):
        # the radii of a cascade follow the errors before them: after a refit these are tiny
        for scheme in ("parallel", "cascade") if "density" in options else ("parallel",):
            pruned = ntt.prune(net, x, scheme=scheme, feas_tol=1e-3, **options)
            path = tmp_path / "pruned.safetensors"
            pruned.save(path)
            assert all(row.holds for row in ntt.verify(path, x, net)), (options, scheme, pruned.table())
            if "density" in options:
                assert pruned.kept < 0.36


def test_a_run_by_density_goes_on(tmp_path):
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.ReLU(), torch.nn.Linear(20, 4))
    x = [torch.randn(300, 30)]
    whole = ntt.prune(net, x, density=0.3, method="l0", directory=tmp_path)
    again = ntt.prune(net, x, density=0.3, method="l0", directory=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    assert again.table() == whole.table()
    with pytest.raises(ValueError, match="differs in its .*density"):
        ntt.prune(net, x, density=0.2, method="l0", directory=tmp_path)
    with pytest.raises(ValueError, match="differs in its .*method"):
        ntt.prune(net, x, density=0.3, method="wanda", directory=tmp_path)


@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("penalty", ["inputs", "outputs"])
def test_whole_inputs_or_outputs_leave(penalty, scheme, rounds):
    layers, x = network()
    pruned = nt.prune(layers, x, 0.3, scheme, penalty=penalty, rounds=rounds, penalise_bias=False)
    plain = nt.prune(layers, x, 0.3, scheme, rounds=rounds, penalise_bias=False)
    axis = {"inputs": 0, "outputs": 1}[penalty]
    gone = 0
    for layer, report in zip(pruned.layers, pruned.reports, strict=True):
        assert report.status == "solved" and report.violation <= 1e-4
        used = (layer.weight != 0).any(axis)
        # all of a group or nothing of it, but for inputs that are always zero
        alive = layer.weight[:, (layer.weight != 0).any(0)] if axis else layer.weight
        assert np.array_equal((alive != 0).all(axis), used)
        gone += int((~used).sum())
        if report.bound is not None:
            assert report.error <= report.bound * (1 + 1e-3)
    assert gone > 0
    if penalty == "inputs":
        # l1 leaves every input to some neuron
        assert gone > sum(int((~(layer.weight != 0).any(axis)).sum()) for layer in plain.layers)


def test_channels_of_a_convolution_leave():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((6, 5, 3, 3))
    weight[:, 3:] *= 0.02
    layer = nt.Layer(weight, rng.standard_normal(6), geometry=nt.Geometry((3, 3), padding=(1, 1)))
    x = np.maximum(rng.standard_normal((40, 5, 6, 6)), 0)
    # what could serve the inequalities is not worth its weights
    x[:, 3:] *= 0.05
    pruned = nt.prune([layer], x, 0.2, penalty="inputs")
    used = (pruned.layers[0].weight != 0).any((0, 2, 3))
    assert used.tolist() == [True, True, True, False, False]


@pytest.mark.parametrize("penalty", ["inputs", "outputs"])
def test_structured_files_are_verified(tmp_path, penalty):
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.ReLU(), torch.nn.Linear(16, 5))
    x = torch.randn(300, 12)
    pruned = ntt.prune(model, [x], 0.2, penalty=penalty, directory=tmp_path / "run")
    pruned.save(tmp_path / "w.safetensors")
    verified = ntt.verify(tmp_path / "w.safetensors", [x], model, bound=True)
    assert all(v.holds and abs(v.gap) <= 1e-3 for v in verified)
    again = ntt.prune(model, [x], 0.2, penalty=penalty, directory=tmp_path / "run")
    assert torch.equal(again.model[2].weight, pruned.model[2].weight)
    with pytest.raises(ValueError, match="another run, which differs in its penalty"):
        ntt.prune(model, [x], 0.2, directory=tmp_path / "run")


def of_four(weight: np.ndarray) -> np.ndarray:
    """Non-zeros of every four consecutive inputs."""
    return (weight.reshape(weight.shape[0], -1, 4) != 0).sum(2)


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
@pytest.mark.parametrize("method", ["l0", "magnitude", "alps"])
def test_patterns(method, scheme):
    layers, x = plain_network((24, 40, 32, 6), mixed=True)
    pruned = nt.prune(layers, x, scheme=scheme, method=method, pattern="2:4")
    for layer, report in zip(pruned.layers, pruned.reports, strict=True):
        assert (of_four(layer.weight) == 2).all() and report.status == "measured"
    if method == "l0":
        others = [nt.prune(layers, x, scheme=scheme, method=m, pattern="2:4", refit="free") for m in ("alps", "wanda")]
        assert pruned.reports[-1].holdout < min(o.reports[-1].holdout for o in others)


def test_patterns_of_torch_models(tmp_path):
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt
    from nettrim.torch.semi_structured import compress, decompress

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32))
    x = torch.randn(400, 64)
    pruned = ntt.prune(model, [x], pattern="2:4", method="l0", directory=tmp_path / "run")
    pruned.save(tmp_path / "w.safetensors")
    assert all(v.holds for v in ntt.verify(tmp_path / "w.safetensors", [x], model))
    for layer in (pruned.model[0], pruned.model[2]):
        half = layer.weight.detach().half()
        values, metadata = compress(half)
        assert values.shape == (half.shape[0], 32) and values.numel() * 2 == half.numel()
        # what the kernels read stands for the same matrix
        assert torch.equal(decompress(values, metadata), half)
    if torch.cuda.is_available():
        gpu = pruned.model.half().cuda()
        before = gpu(x[:64].half().cuda())
        assert ntt.semi_structured(gpu) == ["0", "2"]
        torch.testing.assert_close(gpu(x[:64].half().cuda()), before, rtol=1e-2, atol=1e-2)
    else:
        assert ntt.semi_structured(pruned.model.half()) == []
        with pytest.raises(
            ValueError, match=r"layer '0' must be on an NVIDIA GPU for the sparse kernels; it is on cpu"
        ):
            ntt.semi_structured(pruned.model, targets=["0"])
    with pytest.raises(ValueError, match="layer '2' must be in float16 or bfloat16"):
        ntt.semi_structured(model, targets=["2"])
    with pytest.raises(ValueError, match="weight is not 2:4 sparse"):
        compress(model[0].weight.half())
    with pytest.raises(ValueError, match="must have a multiple of 32 outputs and of 64 inputs"):
        compress(torch.zeros(64, 4, dtype=torch.float16))
    with pytest.raises(TypeError, match="targets must be a list"):
        ntt.semi_structured(model, targets="0")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": "2:4"}, ValueError, "pattern='2:4' needs method='l0' or one of the compared pruners; got 'auto'"),
        ({"pattern": "2:4", "method": "l0", "density": 0.5}, TypeError, "give one of an error"),
        ({"pattern": "2of4", "method": "l0"}, ValueError, "pattern must be of the form 'n:m'"),
        ({"pattern": "2:7", "method": "l0"}, ValueError, "layer 'fc0': a pattern 2:7 needs a multiple of 7 inputs"),
    ],
)
def test_wrong_patterns(options, error, message):
    layers, x = network()
    with pytest.raises(error) as caught:
        nt.prune(layers, x, **options)
    assert message in str(caught.value)


def test_the_relaxation_is_a_start_of_the_search():
    from nettrim.penalties import KSupport
    from nettrim.sparsity import project

    rng = np.random.default_rng(4)
    X, W = rng.standard_normal((40, 600)), rng.standard_normal((40, 6)) ** 3
    Y = np.maximum(W.T @ X, 0)
    relaxed = nt.solve(X, Y, 0.1, penalty=KSupport(2, 4)).W
    projected = project(relaxed, "2:4")
    assert ((projected.reshape(10, 4, 6) != 0).sum(1) <= 2).all()
    both = nt.l0(X, Y, W, pattern="2:4", starts=["dense", projected])
    alone = nt.l0(X, Y, W, pattern="2:4", starts=[projected])
    assert alone.certificate.error < nt.certify(nt.Problem(X, Y, 0.1), projected).error
    assert both.certificate.error <= alone.certificate.error


def test_too_few_samples_are_warned_of():
    layers, x = network()
    with pytest.warns(UserWarning, match=r"too few samples: held out, the error of fc.*times that on the calibration"):
        nt.prune(layers, x[:40], 0.02, holdout=0.5)
    torch = pytest.importorskip("torch")
    import nettrim.torch as ntt

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(50, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5))
    with pytest.warns(UserWarning, match="too few samples"):
        ntt.prune(model, [torch.randn(40, 50)], 0.02, holdout=0.5)
    # a tenth of four is none
    with pytest.warns(UserWarning, match="too few samples: holdout 0.1 of them is none"):
        nt.prune(layers, x[:4], 0.1)
    with pytest.warns(UserWarning, match="too few samples: holdout 0.1 of them is none"):
        ntt.prune(model, [torch.randn(4, 50)], 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        ntt.prune(model, [torch.randn(4, 50)], 0.1, holdout=0)
