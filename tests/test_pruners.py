"""The compared pruners: each against the property that defines it, and against the figures of the authors' own code."""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim import pruners, sparsity
from nettrim.sparsity import NofM, PerNeuron, Unstructured

PATTERNS = [Unstructured(40), PerNeuron(7), NofM(2, 4), NofM(1, 4)]


def layer(seed: int = 0, N: int = 24, M: int = 6, P: int = 300):
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((N, N)) @ rng.standard_normal((N, P))
    return rng.standard_normal((N, M)), np.maximum(mixed, 0)


def loss(W: np.ndarray, W0: np.ndarray, H: np.ndarray) -> float:
    return float(((W - W0) * (H @ (W - W0))).sum())


# patterns


@given(st.integers(1, 12), st.integers(1, 5), st.floats(0, 1), st.integers(0, 9))
@example(4, 1, 0.0, 0)
@example(12, 5, 1.0, 0)
def test_masks_have_their_count_and_keep_the_largest(groups, columns, density, seed):
    N = 4 * groups
    scores = np.random.default_rng(seed).random((N, columns))
    scores[::3] = 0.5  # ties
    for pattern in (
        sparsity.make((N, columns), density),
        sparsity.make((N, columns), density, per="neuron"),
        NofM(2, 4),
        NofM(4, 4),
    ):
        mask = pattern.mask(scores)
        assert mask.sum() == pattern.count(scores.shape)
        if isinstance(pattern, NofM):
            pieces = [(scores[i : i + 4, m], mask[i : i + 4, m]) for i in range(0, N, 4) for m in range(columns)]
        elif isinstance(pattern, PerNeuron):
            pieces = [(scores[:, m], mask[:, m]) for m in range(columns)]
        else:
            pieces = [(scores, mask)]
        for s, kept in pieces:
            if isinstance(pattern, NofM):
                assert kept.sum() == pattern.n
            assert kept.all() or not kept.any() or s[kept].min() >= s[~kept].max()
        # shares of blocks add up
        blocks = [pattern.block(scores[i : i + 8], i, N) for i in range(0, N, 8)]
        assert sum(int(b.sum()) for b in blocks) == pattern.count(scores.shape)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"density": 1.5}, "density must be in"),
        ({"density": True}, "density must be a number"),
        ({"nnz": 2.5}, "nnz must be a whole number"),
        ({"nnz": 99}, "nnz must be between 0 and the 32"),
        ({"nnz": 9, "per": "neuron"}, "its 8 inputs"),
        ({"nnz": 1, "per": "row"}, "per must be"),
        ({"pattern": "2-4"}, "form 'n:m'"),
        ({"pattern": "5:4"}, "0 < n <= m"),
        ({"pattern": "1:3"}, "multiple of 3"),
        ({"pattern": 24}, "must be a string"),
        ({}, "give one of"),
        ({"density": 0.1, "nnz": 3}, "give one of"),
    ],
)
def test_wrong_targets_name_the_argument(options, error):
    with pytest.raises((TypeError, ValueError), match=error):
        sparsity.make((8, 4), **options)


def test_global_counts():
    assert pruners.global_counts([np.array([[3.0, 1]]), np.array([[2.0], [5]])], 3) == [1, 2]
    with pytest.raises(ValueError, match="nnz"):
        pruners.global_counts([np.ones((2, 2))], 5)


# each pruner's property


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("method", list(pruners.METHODS))
@pytest.mark.parametrize("refit", [False, True], ids=["", "refit"])
def test_counts_are_met_and_a_refit_never_hurts(method, pattern, refit):
    W, X = layer()
    H = pruners.second_moments(X)
    found = pruners.prune(W, X, method, pattern=pattern, refit=refit)
    assert np.count_nonzero(found) == pattern.count(W.shape)
    if isinstance(pattern, NofM):
        assert (np.count_nonzero(found.reshape(-1, pattern.m, W.shape[1]), axis=1) == pattern.n).all()
    if refit:
        assert loss(found, W, H) <= loss(pruners.prune(W, X, method, pattern=pattern), W, H) * (1 + 1e-9)


def test_magnitude_and_random_keep_weights_as_they_are():
    W, _ = layer()
    kept = pruners.magnitude(W, Unstructured(30))
    assert np.array_equal(kept[kept != 0], W[kept != 0])
    assert np.abs(W[kept != 0]).min() > np.abs(W[kept == 0]).max()
    drawn = [pruners.random(W, Unstructured(30), seed) for seed in range(300)]
    share = np.mean([d != 0 for d in drawn], axis=0)
    # every weight is as likely as any other: 30 of 144, within five standard deviations
    assert np.abs(share - 30 / W.size).max() < 5 * np.sqrt(0.21 * 0.79 / 300)


def test_wanda_is_magnitude_of_scaled_inputs():
    W, X = layer()
    scale = np.linspace(0.1, 3, len(W))[:, None]
    norms = np.sqrt(pruners.second_moments(X).diagonal())[:, None]
    unit = X / norms
    as_magnitude = pruners.prune(W, unit, "wanda", density=0.3)
    np.testing.assert_array_equal(as_magnitude, pruners.magnitude(W, sparsity.make(W.shape, 0.3)))
    # inputs scaled up and weights down: the same layer, the same choice
    both = pruners.prune(W / scale, X * scale, "wanda", density=0.3)
    np.testing.assert_array_equal(both != 0, pruners.prune(W, X, "wanda", density=0.3) != 0)


def test_sparsegpt_leaves_the_best_correction_of_what_comes_after():
    # given the weights decided so far, those not yet decided minimise the loss: its derivative there vanishes
    W, X = layer(N=24)
    H = pruners.second_moments(X)
    H[np.diag_indices(24)] += 0.01 * H.diagonal().mean()
    found = pruners.prune(W, X, "sparsegpt", density=0.4)
    for m in range(W.shape[1]):
        last = np.flatnonzero(found[:, m] == 0).max()
        gradient = H @ (found[:, m] - W[:, m])
        assert np.abs(gradient[last + 1 :]).max(initial=0) <= 1e-8 * np.abs(H).max()
        assert np.abs(gradient[last]) > 1e-6 * np.abs(H).max()


def test_sparsegpt_corrects_across_blocks(monkeypatch):
    W, X = layer(N=24)
    H = pruners.second_moments(X)
    # masks are decided block by block, but with nothing to decide the corrections do not depend on the blocks
    first = pruners.sparsegpt(W, H, NofM(1, 4))
    monkeypatch.setattr(sys.modules["nettrim.pruners.sparsegpt"], "_BLOCK", 8)
    np.testing.assert_allclose(pruners.sparsegpt(W, H, NofM(1, 4)), first, rtol=1e-9, atol=1e-12)


def test_uncorrelated_inputs_leave_nothing_to_correct():
    W, _ = layer()
    pattern, H = Unstructured(48), 7.0 * np.eye(len(W))
    best = pruners.magnitude(W, pattern)
    np.testing.assert_allclose(pruners.sparsegpt(W, H, pattern), best, rtol=1e-12)
    found = pruners.alps(W, H, pattern)
    np.testing.assert_allclose(found[found != 0], W[found != 0], rtol=1e-4)
    assert loss(found, W, H) <= 1.02 * loss(best, W, H)


def test_alps_finds_what_is_sparse_already():
    W, X = layer()
    W = pruners.magnitude(W, Unstructured(36))
    found = pruners.prune(W, X, "alps", nnz=36)
    np.testing.assert_allclose(found, W, atol=0.02 * np.abs(W).max())


def test_alps_beats_what_it_starts_from():
    W, X = layer()
    H = pruners.second_moments(X)
    for density in (0.5, 0.25, 0.1):
        errors = {m: loss(pruners.prune(W, X, m, density=density, refit=True), W, H) for m in pruners.METHODS}
        assert errors["alps"] <= 1.02 * min(errors.values())
        assert errors["random"] == max(errors.values())


def test_least_squares_is_stationary_on_the_support():
    W, X = layer()
    H = pruners.second_moments(X)
    support = Unstructured(50).mask(np.abs(W))
    found = pruners.least_squares(W, H, support)
    gradient = H @ (found - W)
    assert np.abs(gradient[support]).max() <= 1e-6 * np.abs(H @ W).max()
    np.testing.assert_allclose(pruners.least_squares(W, H, np.ones_like(support)), W, rtol=1e-4, atol=1e-6)


def test_a_bias_stays_and_does_not_count():
    W, X = layer(N=25)
    X[-1] = 1
    for method in pruners.METHODS:
        plain = pruners.prune(W, X, method, density=0.1, bias=True)
        assert (plain[-1] == W[-1]).all() and np.count_nonzero(plain[:-1]) == round(0.1 * 24 * 6)
        fitted = pruners.prune(W, X, method, density=0.1, bias=True, refit=True)
        assert (fitted[-1] != W[-1]).any() and np.array_equal(fitted[:-1] != 0, plain[:-1] != 0)


def test_dead_inputs_and_empty_patterns():
    W, X = layer()
    X[3] = 0
    for method in pruners.METHODS:
        assert np.isfinite(pruners.prune(W, X, method, density=0.2, refit=True)).all()
        assert not pruners.prune(W, X, method, nnz=0).any()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"method": "magic"}, "method must be one of"),
        ({"X": np.ones((3, 9))}, "row for each input"),
        ({"W": np.ones(24)}, "W must be a matrix"),
        ({"X": np.full((24, 9), np.nan)}, "X contains NaN"),
        ({"nnz": 3}, "give one of"),
    ],
)
def test_wrong_input_names_the_argument(change, error):
    W, X = layer()
    with pytest.raises((TypeError, ValueError), match=error):
        pruners.prune(**({"W": W, "X": X, "density": 0.1} | change))


#: held-out error after the ReLU of the authors' code with a refit, on the design's network: (layer, kept) -> figure
AUTHORS = {
    ("alps", 2, 0.2): (0.145, 0.145),
    ("alps", 2, 0.05): (0.359, 0.365),
    ("alps", 3, 0.1): (0.043, 0.042),
    ("alps", 3, 0.02): (0.159, 0.155),
    ("sparsegpt", 2, 0.2): (0.280, 0.195),
    ("sparsegpt", 3, 0.05): (0.422, 0.105),
}


@pytest.mark.data
@pytest.mark.skipif("NETTRIM_DATA" not in os.environ, reason="the environment variable NETTRIM_DATA is not set")
def test_the_authors_figures():
    """Within 3 % of what the authors' own code reaches, and the rounding of three printed digits."""
    folder = Path(os.environ["NETTRIM_DATA"])
    network = np.load(folder / "mnist_fc.npz")
    pixels = gzip.open(folder / "mnist" / "train-images-idx3-ubyte.gz").read()
    images = np.frombuffer(pixels, np.uint8, offset=16).reshape(60000, 784) / 255

    def inputs(k: int, seed: int, samples: int) -> np.ndarray:
        S = images[np.random.default_rng(seed).permutation(60000)[:samples]].astype(np.float32)
        for i in range(k):
            S = np.maximum(S @ network[f"W{i}"].T + network[f"b{i}"], 0)
        return np.vstack([S.T, np.ones((1, samples), np.float32)])

    for k in (1, 2):
        W = np.vstack([network[f"W{k}"].T, network[f"b{k}"]])
        X, held = inputs(k, 0, 5000), inputs(k, 7, 12000)
        Y, H = np.maximum(W.T @ held, 0), pruners.second_moments(X)
        for (method, number, kept), figures in AUTHORS.items():
            if number != k + 1:
                continue
            for refit, figure in zip((False, True), figures, strict=True):
                found = pruners.prune(W, X, method, density=kept, refit=refit, bias=True, moments=H)
                error = np.linalg.norm(np.maximum(found.T @ held, 0) - Y) / np.linalg.norm(Y)
                assert error == pytest.approx(figure, rel=0.03, abs=0.0006), (method, number, kept, refit)
