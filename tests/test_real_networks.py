"""Networks trained on MNIST, pruned whole: what is kept, what it costs, and that the file holds."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")

import nettrim.torch as ntt  # noqa: E402
from nettrim.studies import data, models, training  # noqa: E402

pytestmark = [
    pytest.mark.data,
    pytest.mark.slow,
    pytest.mark.skipif("NETTRIM_DATA" not in os.environ, reason="the variable NETTRIM_DATA is not set"),
]


@pytest.fixture(scope="module")
def digits() -> data.DataSet:
    return data.mnist()


def batches(samples: data.DataSet, count: int) -> list:
    return list(torch.from_numpy(samples.train[0][:count]).split(200))


def trained(model, samples: data.DataSet, count: int = 10000, epochs: int = 1):
    torch.manual_seed(0)
    training.train(model, training.Batches(samples.train[0][:count], samples.train[1][:count], 64), epochs, 2e-3)
    return model


def check(pruned: ntt.PrunedModel, loader: list, model, path: Path, kinds: set[str]) -> None:
    """Every layer certified, as the program that its place asks for, and again from the file."""
    assert {report.kind for report in pruned.reports} == kinds
    for report in pruned.reports:
        assert report.status == "solved" and report.discrepancy <= report.epsilon * (1 + 1e-3)
    pruned.save(path)
    assert all(row.holds for row in ntt.verify(path, loader, model))


def test_fully_connected(digits, tmp_path):
    """The trained network of 97.9 %: a few hundred samples keep it above 95.5 %."""
    arrays = np.load(Path(os.environ["NETTRIM_DATA"]) / "mnist_fc.npz")
    model = models.fully_connected()
    with torch.no_grad():
        for k, place in enumerate((1, 4, 7, 10)):
            model[place].weight.copy_(torch.from_numpy(arrays[f"W{k}"]))
            model[place].bias.copy_(torch.from_numpy(arrays[f"b{k}"]))
    before = training.accuracy(model, *digits.test)
    assert before > 0.978
    loader = batches(digits, 1000)
    pruned = ntt.prune(model, loader, 0.05, rounds=3, feas_tol=1e-3)
    check(pruned, loader, model, tmp_path / "fc.safetensors", {"dense, ReLU", "dense, linear"})
    assert pruned.kept < 0.2 and any(report.round > 1 for report in pruned.reports)
    assert training.accuracy(pruned.model, *digits.test) > 0.955


def test_lenet5(digits, tmp_path):
    model = trained(models.lenet5(), digits)
    before = training.accuracy(model, *digits.test)
    loader = batches(digits, 200)
    pruned = ntt.prune(model, loader, 0.05, "cascade", feas_tol=1e-3)
    check(pruned, loader, model, tmp_path / "lenet.safetensors", {"convolution, ReLU", "dense, ReLU", "dense, linear"})
    assert before > 0.8 and training.accuracy(pruned.model, *digits.test) > before - 0.03
    assert pruned.kept < 0.6


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_encoder(digits, tmp_path, activation):
    """Sequences; GELU makes both parts of the feed-forward linear programs."""
    samples = data.digit_rows()
    torch.manual_seed(0)
    model = trained(models.Encoder(activation, width=32, hidden=64, layers=1), samples, 8000, 2)
    before = training.accuracy(model, *samples.test)
    loader = batches(samples, 200)
    pruned = ntt.prune(model, loader, 0.05, feas_tol=1e-3)
    kinds = {"dense, linear"} | ({"dense, ReLU"} if activation == "relu" else set())
    check(pruned, loader, model, tmp_path / "encoder.safetensors", kinds)
    names = [report.name for report in pruned.reports]
    assert names == ["project", "encoder.layers.0.linear1", "encoder.layers.0.linear2", "classify"]
    assert before > 0.5 and training.accuracy(pruned.model, *samples.test) > before - 0.03
