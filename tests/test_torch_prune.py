"""Pruning torch models: the same as pruning their arrays, and nothing of the model is changed that should not be."""

from __future__ import annotations

import copy
import itertools
import json
import signal

import numpy as np
import pytest

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional

import nettrim as nt  # noqa: E402
import nettrim.torch as ntt  # noqa: E402
from nettrim import how, layer  # noqa: E402
from nettrim.torch import capture  # noqa: E402


def mlp(sizes=(10, 14, 8, 3), dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    parts = []
    for n, m in itertools.pairwise(sizes):
        parts += [nn.Linear(n, m, dtype=dtype), nn.ReLU()]
    model = nn.Sequential(*parts[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(8 * p**3 / p.abs().max() ** 2)
    return model


def samples_of(model, count=240, shape=(10,), size=50, dtype=torch.float64):
    torch.manual_seed(1)
    x = torch.randn(count, *shape, dtype=dtype)
    return list(x.split(size)), x


class Net(nn.Module):
    """Convolutions with batch norms, a residual sum, pooling, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.a, self.norm_a = nn.Conv2d(4, 4, 3, padding="same"), nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.head = nn.Linear(4 * 3 * 3, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = F.relu(self.norm_a(self.a(x)), inplace=True)
        x = torch.relu(x + self.b(y))
        return self.head(F.max_pool2d(x, 2).flatten(1))


def trained_net():
    torch.manual_seed(0)
    net = Net().double()
    net.train()
    with torch.no_grad():
        for _ in range(5):
            net(torch.randn(16, 1, 6, 6, dtype=torch.float64))
    return net.eval()


def layers_of(model):
    """The same network as plain layers."""
    linears = [m for m in model if isinstance(m, nn.Linear)]
    return [
        nt.Layer(m.weight.detach().numpy(), m.bias.detach().numpy(), relu=k < len(linears) - 1, name=str(2 * k))
        for k, m in enumerate(linears)
    ]


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_it_is_the_network_of_its_arrays(scheme):
    model = mlp()
    batches, x = samples_of(model)
    settings = {"gap_tol": 1e-7, "feas_tol": 1e-7}
    ours = ntt.prune(model, batches, 0.1, scheme, holdout=0.0, **settings)
    plain = nt.prune(layers_of(model), x.numpy(), 0.1, scheme, holdout=0.0, **settings)
    for mine, theirs in zip(ours.reports, plain.reports, strict=True):
        assert (mine.name, mine.kind, mine.status) == (theirs.name, theirs.kind, "solved")
        assert mine.error == pytest.approx(theirs.error, rel=1e-3)
        assert mine.holdout is None and mine.bound is None
    for mine, theirs in zip((m for m in ours.model if isinstance(m, nn.Linear)), plain.layers, strict=True):
        np.testing.assert_allclose(mine.weight.detach(), theirs.weight, atol=1e-4)
    assert ours.kept == pytest.approx(plain.kept, abs=0.02) and 0 < ours.kept < 0.9


def test_the_model_is_untouched_unless_in_place():
    model = mlp()
    model[0].train()
    model[2].weight.requires_grad_(False)
    model[2].weight.grad = None
    before, flags = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    batches, _ = samples_of(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    pruned = ntt.prune(model, batches, 0.1)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags == [m.training for m in pruned.model.modules()]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pruned.model.modules()] == hooks
    assert not pruned.model[2].weight.requires_grad and pruned.model[0].weight.requires_grad
    same = ntt.prune(model, batches, 0.1, inplace=True)
    assert same.model is model
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pruned.model.parameters(), strict=True))


def test_convolutions_batch_norms_and_sums():
    """Every layer's error is within its epsilon, in the folded model; a layer before a sum is linear."""
    net = trained_net()
    batches, x = samples_of(net, 60, (1, 6, 6), 20)
    pruned = ntt.prune(net, batches, 0.1, holdout=0.0)
    assert [(r.name, r.kind) for r in pruned.reports] == [
        ("stem", "convolution, ReLU"),
        ("a", "convolution, ReLU"),
        ("b", "convolution, linear"),
        ("head", "dense, linear"),
    ]
    assert pruned.folded == [("stem", "norm"), ("a", "norm_a")]
    for r in pruned.reports:
        assert r.status == "solved" and r.epsilon == pytest.approx(0.1) and r.discrepancy <= 0.1001
    # the first layer's inputs are those of the unpruned model: its error in the network is its own
    assert pruned.reports[0].error <= 0.1001
    assert ((pruned.model(x) - net(x)).norm() / net(x).norm()).item() == pytest.approx(
        pruned.reports[-1].error, rel=1e-6
    )
    with pytest.raises(ValueError, match="fold=False"):
        ntt.prune(net, batches, 0.1, inplace=True)


def test_the_cascade_is_nearer_to_its_inputs():
    net = trained_net()
    batches, _ = samples_of(net, 60, (1, 6, 6), 20)
    pruned = ntt.prune(net, batches, 0.1, "cascade", gamma=1.2, holdout=0.2)
    assert [r.status for r in pruned.reports] == ["solved"] * 4
    assert pruned.reports[0].epsilon == pytest.approx(0.1)
    assert all(r.holdout is not None and r.holdout > 0 for r in pruned.reports)


def test_sequences_and_keywords():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 4)

        def forward(self, tokens, scale=1.0):
            return self.second(F.relu(self.first(tokens * scale)))

    torch.manual_seed(0)
    model = Encoder()
    batches = [{"tokens": torch.randn(8, 5, 6), "scale": 0.5} for _ in range(4)]
    pruned = ntt.prune(model, batches, 0.1, holdout=0.25, gap_tol=1e-3)
    assert [r.kind for r in pruned.reports] == ["dense, ReLU", "dense, linear"]
    assert pruned.reports[0].samples == 3 * 8 * 5
    own = ntt.prune(model, [(b["tokens"],) for b in batches], 0.1, arguments=lambda b: ((b[0], 0.5), {}), holdout=0.25)
    assert all(torch.equal(a, b) for a, b in zip(own.model.parameters(), pruned.model.parameters(), strict=True))


def test_half_precision_weights_have_their_own_certificate():
    model = mlp(dtype=torch.float32).to(torch.bfloat16)
    batches, _ = samples_of(model, dtype=torch.bfloat16)
    pruned = ntt.prune(model, batches, 0.1, holdout=0.0)
    assert pruned.model[0].weight.dtype == torch.bfloat16
    # rounding moves the weights by up to 1/256, and the certificate says so
    fine = ntt.prune(mlp(dtype=torch.float32), [b.float() for b in batches], 0.1, holdout=0.0)
    assert max(r.violation for r in fine.reports) <= 1e-4 < max(r.violation for r in pruned.reports)


@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_large_activations_go_to_a_file(monkeypatch, scheme):
    net = trained_net()
    batches, _ = samples_of(net, 40, (1, 6, 6), 10)
    files, add = [], capture.Store.add

    def watched(self, a):
        add(self, a)
        files.append(self.in_memory)

    monkeypatch.setattr(capture.Store, "add", watched)
    one = ntt.prune(net, batches, 0.1, scheme)
    assert all(files)
    files.clear()
    other = ntt.prune(net, batches, 0.1, scheme, memory="10KB")
    assert not all(files)
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


@pytest.mark.parametrize("after", [1, 2])
def test_a_run_that_was_killed_goes_on(tmp_path, monkeypatch, after):
    """With the next layer, and to the same weights bit for bit."""
    net = trained_net()
    batches, _ = samples_of(net, 40, (1, 6, 6), 10)
    whole = ntt.prune(net, batches, 0.1, "cascade")
    seen = []

    def stop(report):
        seen.append(report.name)
        if len(seen) == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ntt.prune(net, batches, 0.1, "cascade", directory=tmp_path, progress=stop)
    solved, solver = [], how.Solver
    monkeypatch.setattr(how, "Solver", lambda *a, **k: solved.append(1) or solver(*a, **k))
    again = ntt.prune(net, batches, 0.1, "cascade", directory=tmp_path)
    # the grouped layer has two problems
    assert len(solved) == 5 - after
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))
    timeless = [r.__class__(**{**r.__dict__, "seconds": 0.0}) for r in whole.reports]
    assert timeless == [r.__class__(**{**r.__dict__, "seconds": 0.0}) for r in again.reports]
    with pytest.raises(ValueError, match="another run"):
        ntt.prune(net, batches, 0.2, "cascade", directory=tmp_path)
    with pytest.raises(ValueError, match="another run"):
        ntt.prune(net, batches[1:], 0.1, "cascade", directory=tmp_path)


def test_a_layer_that_fell_short_keeps_its_weights(tmp_path):
    """It is neither used nor counted as finished."""
    model = mlp()
    batches, _ = samples_of(model)
    with pytest.warns(UserWarning, match="layer '0' keeps its own weights: max_iterations"):
        pruned = ntt.prune(model, batches, 0.1, directory=tmp_path, max_iterations=1, method="admm")
    assert {r.status for r in pruned.reports} == {"max_iterations"} and pruned.kept == 1
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), pruned.model.parameters(), strict=True))
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_ctrl_c_ends_the_run(tmp_path):
    """The layer that was being solved is not stored; the next run begins with it."""
    model = mlp()
    batches, _ = samples_of(model)
    whole = ntt.prune(model, batches, 0.1)
    with pytest.raises(KeyboardInterrupt):
        ntt.prune(model, batches, 0.1, directory=tmp_path, progress=lambda report: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        # in a solve it is a request to stop, as this is
        ntt.prune(model, batches, 0.1, directory=tmp_path, callback=lambda row: signal.raise_signal(signal.SIGINT))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["layer_000.npz", "run.json"]
    again = ntt.prune(model, batches, 0.1, directory=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True))


def test_hooks_and_modes_survive_an_error():
    model = mlp().train()
    batches, _ = samples_of(model)
    fast = torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ValueError, match="inputs of layer '0'"):
        ntt.prune(model, [*batches, torch.randn(5, 3, dtype=torch.float64)], 0.1, holdout=0.0)
    assert model.training and not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() == fast and torch.is_grad_enabled()


def test_the_report_is_plain(capsys):
    model = mlp()
    batches, _ = samples_of(model)
    pruned = ntt.prune(model, batches, {"0": 0.2, "*": 0.1}, ignore=["re:4"])
    record = json.loads(json.dumps(pruned.to_dict()))
    assert [row["name"] for row in record["layers"]] == ["0", "2"]
    assert record["layers"][0]["epsilon"] == pytest.approx(0.2)
    assert record["settings"]["scheme"] == record["scheme"] == "parallel"
    assert pruned.table().splitlines()[1].startswith("0 ")


# batches


def test_batches_are_cut_and_split():
    batches = [torch.arange(4), (torch.arange(4, 8), torch.zeros(4)), {"x": torch.arange(8, 12), "flag": True}]
    kept = capture.batches_of(iter(batches), 10)
    assert [capture.length(b) for b in kept] == [4, 4, 2]
    assert kept[2]["flag"] is True
    used, back = capture.split(kept, 0.3)
    assert sum(map(capture.length, used)) == 7 and sum(map(capture.length, back)) == 3
    first = torch.cat([capture._tensors(b)[0] for b in (*used, *back)])
    assert first.tolist() == list(range(10))
    assert capture.split(kept, 0.0) == (kept, [])


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"model": 3}, TypeError, "model must be"),
        ({"loader": torch.zeros(3, 10)}, TypeError, "wrap one batch in a list"),
        ({"loader": []}, ValueError, "no samples"),
        ({"loader": [3.0]}, TypeError, "no tensor|a batch must be"),
        ({"loader": [torch.zeros(3, 10), torch.full((3, 10), torch.nan)]}, ValueError, "loader gave NaN, in batch 1"),
        ({"scheme": "serial"}, ValueError, "scheme must be one of"),
        ({"holdout": 1.5}, ValueError, "holdout must be in"),
        ({"targets": "0"}, TypeError, "list of patterns"),
        ({"targets": ["nothing"]}, ValueError, "nothing|fits"),
        ({"memory": "4 apples"}, ValueError, "memory must be"),
        ({"gap_tols": 1}, TypeError, "unknown setting"),
        ({"epsilon": {"0": 0.1}}, ValueError, "no pattern that fits layer '2'"),
        ({"epsilon": 5}, ValueError, "epsilon must be between 0 and 1"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be between 0 and 1"),
        ({"epsilon": "5%"}, TypeError, "epsilon must be a number"),
        ({"scheme": "cascade", "gamma": 0.5}, ValueError, "gamma must be at least 1; got 0.5 for '2'"),
    ],
)
def test_wrong_arguments(arguments, error, match):
    model = mlp()
    given = {"model": model, "loader": samples_of(model)[0]} | arguments
    with pytest.raises(error, match=match):
        ntt.prune(given.pop("model"), given.pop("loader"), **given)


# saved and verified


@pytest.mark.parametrize("layout", ["dense", "csr"])
@pytest.mark.parametrize("scheme", ["parallel", "cascade"])
def test_a_saved_model_is_verified(tmp_path, scheme, layout):
    """From the file's weights and the original model; on other weights or other samples it does not hold."""
    net = trained_net()
    batches, _ = samples_of(net, 60, (1, 6, 6), 20)
    pruned = ntt.prune(net, batches, 0.1, scheme, holdout=0.2)
    pruned.save(tmp_path / "net.safetensors", layout)
    rows = ntt.verify(tmp_path / "net.safetensors", batches, net, bound=True)
    assert [row.name for row in rows] == ["stem", "a", "b", "head"] and all(row.holds for row in rows)
    for row, report in zip(rows, pruned.reports, strict=True):
        assert row.violation == pytest.approx(report.violation, rel=1e-3, abs=1e-7) == row.claimed
        assert row.discrepancy == pytest.approx(report.discrepancy, rel=1e-3)
        assert (row.weights, row.kept) == (report.weights, report.kept)
        assert row.gap is not None and row.gap <= 1e-3
    state, _ = ntt.load(tmp_path / "net.safetensors")
    assert all(torch.equal(state[k], v) for k, v in pruned.model.state_dict().items())
    # into the model's own class, whose batch norms have been folded
    fresh = Net().double().eval()
    ntt.load(tmp_path / "net.safetensors", fresh)
    assert isinstance(fresh.norm, nn.Identity) and torch.equal(fresh(batches[0]), pruned(batches[0]))
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match="does the loader shuffle"):
        others = ntt.verify(tmp_path / "net.safetensors", [torch.randn_like(b) for b in batches], net)
    assert not all(row.holds for row in others) and all(row.gap is None for row in others)
    with torch.no_grad():
        pruned.model.a.weight[0, 0] += 0.5
    pruned.save(tmp_path / "changed.safetensors", layout)
    assert not ntt.verify(tmp_path / "changed.safetensors", batches, net)[1].holds


def test_verify_says_what_does_not_fit(tmp_path):
    model = mlp()
    batches, _ = samples_of(model)
    ntt.prune(model, batches, 0.1).save(tmp_path / "a.safetensors")
    for other in (mlp((10, 14, 9, 3)), mlp((10, 14, 3)), mlp(seed=1)):
        with pytest.raises(ValueError, match="was pruned from other weights"):
            ntt.verify(tmp_path / "a.safetensors", batches, other)


def test_fine_tuning_keeps_the_zeros():
    model = mlp(dtype=torch.float32)
    batches, _ = samples_of(model, dtype=torch.float32)
    pruned = ntt.prune(model, batches, 0.2)
    zeros = [p == 0 for p in pruned.model.parameters()]
    optimizer = torch.optim.SGD(pruned.model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    data = [(b, model(b).detach()) for b in batches]
    losses = ntt.finetune(pruned.model, data, nn.functional.mse_loss, optimizer, epochs=4)
    assert losses[-1] < losses[0]
    assert all((p[z] == 0).all() for p, z in zip(pruned.model.parameters(), zeros, strict=True))


def test_rounds(tmp_path):
    """Fewer weights within the same errors; the file says so, and its gaps are those of the round's norm."""
    net = mlp()
    batches, _ = samples_of(net)
    plain = ntt.prune(net, batches, 0.1)
    pruned = ntt.prune(net, batches, 0.1, rounds=4, directory=tmp_path / "run")
    assert pruned.kept < 0.95 * plain.kept and any(report.round > 1 for report in pruned.reports)
    assert all(report.discrepancy <= 0.1 * (1 + 1e-4) for report in pruned.reports)
    pruned.save(tmp_path / "net.safetensors")
    rows = ntt.verify(tmp_path / "net.safetensors", batches, net, bound=True)
    for row, report in zip(rows, pruned.reports, strict=True):
        # the norm of a later round is not in the file
        assert row.holds and (row.gap is None) == (report.round > 1)
    again = ntt.prune(net, batches, 0.1, rounds=4, directory=tmp_path / "run")
    assert again.reports == pruned.reports
    with pytest.raises(ValueError, match="another run"):
        ntt.prune(net, batches, 0.1, directory=tmp_path / "run")
    with pytest.raises(ValueError, match="rounds must be"):
        ntt.prune(net, batches, 0.1, rounds=0)


def test_inplace_refuses_batch_norms_before_the_work(monkeypatch):
    from nettrim.torch import layer_run

    monkeypatch.setattr(layer_run, "solve_groups", None)
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU())
    with pytest.raises(ValueError, match="inplace=True cannot fold"):
        ntt.prune(net, [torch.randn(30, 4)], 0.1, inplace=True)


def test_rounding_that_costs_the_tolerances_is_not_called_solved():
    """The status is that of the weights that the layer holds."""
    from nettrim.layer import group_problems, solve_groups

    net = mlp()
    _, x = samples_of(net)
    old = layers_of(net)[0]
    problems = list(group_problems(old, x.numpy(), old(x.numpy()), 0.05))
    for digits, expected in ((12, "solved"), (2, "solved_inaccurate")):
        made = solve_groups(old, problems, lambda a, what, d=digits: np.round(a, d))
        assert str(made.status) == expected
        assert made.certificates[0].holds(1e-3, 1e-4) == (expected == "solved")


def test_a_time_limit_is_that_of_the_whole_layer(monkeypatch):
    asked = []
    monkeypatch.setattr(how, "reweight", lambda solver, rounds: asked.append(solver.settings.time_limit) or stop())

    def stop():
        if len(asked) == 3:
            raise KeyboardInterrupt
        import time

        time.sleep(0.02)
        return done

    conv = nn.Conv2d(4, 4, 2, groups=4)
    old = nt.Layer(conv.weight.detach().numpy(), None, True, nt.Geometry(2), 4, "conv")
    x = torch.randn(20, 4, 5, 5).numpy()
    problems = list(layer.group_problems(old, x, old(x), 0.1))
    from nettrim.reweight import reweight

    done = reweight(nt.Solver(problems[0][1]), 1)
    with pytest.raises(KeyboardInterrupt):
        layer.solve_groups(old, problems, time_limit=5.0)
    assert 5.0 >= asked[0] > asked[1] + 0.02 > asked[2] + 0.04


def test_what_comes_after_a_layer_that_is_solved_anew_is_too(tmp_path):
    """In the cascade scheme a layer depends on those before it; other limits do not make another run."""
    net = mlp()
    batches, _ = samples_of(net)
    expected = ntt.prune(net, batches, 0.1, "cascade")
    options = {"scheme": "cascade", "directory": tmp_path, "method": "admm"}
    whole = ntt.prune(net, batches, 0.1, "cascade", method="admm")
    ntt.prune(net, batches, 0.1, **options)
    # as if the first layer had not been finished
    (tmp_path / "layer_000.npz").unlink()
    for name in ("layer_001.npz", "layer_002.npz"):
        (tmp_path / name).write_bytes(b"not what belongs there")
    again = ntt.prune(net, batches, 0.1, **options, time_limit=1000.0, max_iterations=30000)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    assert expected.scheme == again.scheme


def test_a_run_says_what_differs(tmp_path):
    net = mlp()
    batches, _ = samples_of(net)
    ntt.prune(net, batches, {"2": 0.3, "*": 0.1}, directory=tmp_path)
    with pytest.raises(ValueError, match="the first that fits counts"):
        ntt.prune(net, batches, {"*": 0.1, "2": 0.3})
    for options, words in (
        ({"epsilon": {"2": 0.2, "*": 0.1}}, "epsilon or gamma"),
        ({"epsilon": 0.1, "scheme": "cascade"}, "scheme"),
        ({"epsilon": {"2": 0.3, "*": 0.1}, "gap_tol": 1e-2}, "gap_tol"),
        ({"epsilon": {"2": 0.3, "*": 0.1}, "samples": 100}, "samples, or their order"),
    ):
        with pytest.raises(ValueError, match="another run, which differs in its .*" + words):
            ntt.prune(net, batches, directory=tmp_path, **options)
    with pytest.raises(ValueError, match="weights"):
        ntt.prune(mlp(seed=3), batches, {"2": 0.3, "*": 0.1}, directory=tmp_path)


def test_names_that_look_like_patterns(tmp_path):
    net = nn.ModuleDict({"a[0]": nn.Linear(10, 8), "re:b": nn.Linear(8, 3)})

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = net

        def forward(self, x):
            # by keyword, too
            return self.m["re:b"](input=torch.relu(self.m["a[0]"](x)))

    batches = list(torch.randn(200, 10).split(50))
    pruned = ntt.prune(Net(), batches, 0.1)
    pruned.save(tmp_path / "a.safetensors")
    model = Net()
    model.m = net
    assert [row.name for row in ntt.verify(tmp_path / "a.safetensors", batches, model)] == ["m.a[0]", "m.re:b"]
