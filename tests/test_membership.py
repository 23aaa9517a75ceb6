"""Membership inference: scores with a known AUC, scores without a signal, and the two attacks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.stats import norm

pytest.importorskip("sklearn")

from nettrim.privacy.membership import log_probabilities, loss_threshold, measure, rmia


@pytest.mark.parametrize("shift", [0.0, 0.5, 1.5])
@pytest.mark.parametrize(("n", "m"), [(3000, 3000), (2000, 5000)])
def test_shifted_gaussians(shift, n, m):
    # the difference of a member's and another's score is N(shift, 2)
    rng = np.random.default_rng(1)
    found = measure(rng.standard_normal(n) + shift, rng.standard_normal(m))
    low, high = found.auc_interval
    assert low <= norm.cdf(shift / math.sqrt(2)) <= high and low < found.auc < high and high - low < 0.05
    # above the 99 % point of the others
    expected = norm.sf(norm.ppf(0.99) - shift)
    assert (
        found.tpr == pytest.approx(expected, abs=0.03) and found.tpr_interval[0] <= found.tpr <= found.tpr_interval[1]
    )
    assert found.fpr <= 0.01 and (found.members, found.others) == (n, m)


def test_the_interval_covers():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        low, high = measure(rng.standard_normal(60), rng.standard_normal(90)).auc_interval
        covered += low <= 0.5 <= high
    # 190 expected, with a standard deviation of 3.1
    assert 179 <= covered <= 199


@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 40), st.floats(0.02, 0.5))
@example(0, 1, 1, 0.01)
@example(1, 5, 8, 0.25)
def test_measures_are_what_they_say(seed, n, m, fpr):
    rng = np.random.default_rng(seed)
    members, others = rng.integers(0, 6, n).astype(float), rng.integers(0, 5, m).astype(float)
    found = measure(members, others, fpr)
    pairs = members[:, None] - others
    assert found.auc == pytest.approx((pairs > 0).mean() + (pairs == 0).mean() / 2)
    assert found.tpr == pytest.approx((members >= found.threshold).mean())
    assert found.fpr == pytest.approx((others >= found.threshold).mean()) and found.fpr <= fpr * (1 + 1e-9)
    # no other threshold within the share of false alarms finds more
    for threshold in np.unique(np.concatenate([members, others])):
        if (others >= threshold).mean() <= fpr:
            assert (members >= threshold).mean() <= found.tpr + 1e-12
    assert 0 <= found.auc_interval[0] <= found.auc <= found.auc_interval[1] <= 1


def test_scores_that_do_not_overlap_leave_some_doubt():
    found = measure(np.arange(10.0) + 10, np.arange(5.0))
    assert found.auc == 1 and found.auc_interval == pytest.approx((0.4782, 1), abs=1e-4)
    assert measure(np.arange(5.0), np.arange(10.0) + 10).auc_interval == pytest.approx((0, 0.5218), abs=1e-4)


def test_log_probabilities():
    logits = np.random.default_rng(0).standard_normal((6, 4)) * 500
    labels = np.array([0, 1, 2, 3, 0, 1])
    found = log_probabilities(logits, labels)
    shifted = logits - logits.max(1, keepdims=True)
    np.testing.assert_allclose(found, shifted[np.arange(6), labels] - np.log(np.exp(shifted).sum(1)))
    np.testing.assert_array_equal(loss_threshold(found), found)


def test_rmia_is_its_definition():
    rng = np.random.default_rng(0)
    x, r, z, rz = (np.log(rng.random(shape)) for shape in (7, (3, 7), 20, (3, 20)))
    for gamma, a in ((1.0, 0.3), (2.0, 0.0), (1.5, 1.0)):
        ratio = np.exp(x) / ((1 + a) / 2 * np.exp(r).mean(0) + (1 - a) / 2)
        other = np.exp(z) / ((1 + a) / 2 * np.exp(rz).mean(0) + (1 - a) / 2)
        np.testing.assert_allclose(rmia(x, r, z, rz, gamma, a), (ratio[:, None] / other >= gamma).mean(1))
    # probabilities of zero, of both
    never = np.full(7, -np.inf)
    assert np.isfinite(rmia(never, np.full((3, 7), -np.inf), z, rz, a=1.0)).all()
    assert not rmia(never, r, z, rz).any()


def test_rmia_sees_past_how_hard_a_sample_is():
    # hard samples have small probabilities in every model; members a little more than others in the attacked one
    rng = np.random.default_rng(0)

    def models(count, hardness, gain=0.0):
        return -np.exp(hardness + 0.2 * rng.standard_normal((count, len(hardness))) - gain)

    kinds = {name: rng.standard_normal(1500) for name in ("members", "others", "population")}
    target = {name: models(1, hard, 0.4 * (name == "members"))[0] for name, hard in kinds.items()}
    references = {name: models(4, hard) for name, hard in kinds.items()}
    beside = target["population"], references["population"]
    by_rmia = [rmia(target[name], references[name], *beside, a=1.0) for name in ("members", "others")]
    by_loss = [loss_threshold(target[name]) for name in ("members", "others")]
    assert measure(*by_rmia).auc_interval[0] > measure(*by_loss).auc_interval[1]
    # and nothing where there is nothing
    same = rmia(target["others"], references["others"], *beside)
    low, high = measure(same[:700], same[700:]).auc_interval
    assert low <= 0.5 <= high


ones, logs = np.ones(4), -np.ones(4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: measure(np.ones((2, 2)), ones), "members must be a vector"),
        (lambda: measure(ones, np.array([np.nan])), "others must be"),
        (lambda: measure(ones, np.empty(0)), "others must be"),
        (lambda: measure(ones, ones, 1.0), "fpr must be in"),
        (lambda: loss_threshold(ones), "target must be log-probabilities"),
        (lambda: rmia(logs, -np.ones((1, 3)), logs, -np.ones((1, 4))), r"references must be \(models, 4\)"),
        (lambda: rmia(logs, -np.ones((1, 4)), logs, -np.ones((2, 4))), "population_references must be of the 1"),
        (lambda: rmia(logs, -np.ones((1, 4)), logs, -np.ones((1, 4)), gamma=0.5), "gamma must be"),
        (lambda: rmia(logs, -np.ones((1, 4)), logs, -np.ones((1, 4)), a=2.0), "a must be in"),
        (lambda: rmia(logs, logs, logs, logs), "references must be an array of a floating dtype with 2 dimensions"),
        (lambda: log_probabilities(np.ones((4, 2)), np.array([0, 1, 2, 0])), "labels must be between"),
        (lambda: log_probabilities(ones, np.zeros(4, int)), "logits must be a matrix"),
    ],
)
def test_errors(call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call()
