"""What a run will take: counts of layers, what grows with what, and how it is written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nettrim.geometry import Geometry
from nettrim.layer import Layer
from nettrim.planning import NetworkPlan, plan_layer
from nettrim.units import align, as_bytes, as_seconds, to_bytes


def dense(relu: bool = True, dtype: type = np.float32) -> Layer:
    return Layer(np.ones((30, 20), dtype), np.ones(30, dtype), relu, name="fc")


def test_counts_of_a_dense_layer():
    plan = plan_layer(dense(), 1000, 0, budget=1e9)
    assert (plan.N, plan.M, plan.P, plan.kind, plan.disk) == (21, 30, 1000, "dense, ReLU", 0)
    # inputs, outputs, and at least a state of the outputs' size, for each further sample
    more = plan_layer(dense(), 2000, 0, budget=1e9)
    assert more.memory - plan.memory > 4 * 1000 * (21 + 2 * 30)
    assert more.seconds > plan.seconds > 0


def test_inputs_beyond_the_budget_go_to_a_file():
    plan, small = (plan_layer(dense(), 10**6, 0, budget) for budget in (1e9, 1e6))
    assert small.disk == 4 * 21 * 10**6 and plan.memory - small.memory == small.disk


def test_a_linear_layer_needs_no_samples_in_memory():
    plan, more = (plan_layer(dense(relu=False), P, 0, 1e9) for P in (10**4, 10**6))
    assert plan.memory == more.memory and more.seconds > plan.seconds


def test_a_convolution_is_not_unfolded():
    layer = Layer(np.ones((8, 2, 3, 3), np.float32), None, True, Geometry(3), groups=2, name="conv")
    plan = plan_layer(layer, 500, stored=4 * 10 * 4 * 12 * 12, budget=1e9)
    assert (plan.N, plan.M, plan.P, plan.kind) == (18, 4, 500, "convolution, ReLU")
    assert plan.memory < plan_layer(layer, 500, stored=4 * 18 * 500 * 2 + 10**6, budget=1e9).memory


def test_the_table_tells_all_layers():
    plans = [plan_layer(dense(relu), 500, 0, 1e3) for relu in (True, False)]
    plan = NetworkPlan(plans, 500, 50)
    text = plan.table()
    assert text.splitlines()[0] == "plan: 2 layers, 500 samples, 50 held out"
    assert "on disk" in text and as_bytes(plans[0].disk) in text
    assert plan.to_dict()["memory"] == plan.memory == max(p.memory for p in plans)
    assert "on disk" not in NetworkPlan(plans[1:], 500, 0).table()


@given(st.floats(0, 1e15))
@example(999.0)
@example(1000.0)
def test_bytes_are_read_back(count):
    assert to_bytes(as_bytes(count)) == pytest.approx(count, rel=0.05, abs=0.5)


@pytest.mark.parametrize(("given", "expected"), [("4GB", 4e9), ("1.5 mb", 1.5e6), ("12", 12.0), (0, 0.0), ("7B", 7.0)])
def test_bytes_of_text(given, expected):
    assert to_bytes(given) == expected


@pytest.mark.parametrize("given", ["much", "GB", "-1MB", -1, True, "nan", None])
def test_no_bytes(given):
    with pytest.raises(ValueError, match='memory must be bytes, or like "4GB"'):
        to_bytes(given)


def test_seconds_and_columns():
    assert [as_seconds(s) for s in (0.2, 1, 99.4, 100, 3599, 7200)] == [
        "< 1 s",
        "1 s",
        "99 s",
        "2 min",
        "60 min",
        "2.0 h",
    ]
    text = align((("a", "bb", "empty"), ("long", "1", ""), ("x", "22", "")), left=1)
    assert text.splitlines() == ["a     bb", "long   1", "x     22"]
