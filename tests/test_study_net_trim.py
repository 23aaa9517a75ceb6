"""The studies of Net-Trim's own paper: their smoke presets run and go on, their tables and figures are made."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from torch import nn

from nettrim.studies import (
    data,
    dropped_inputs,
    hptd,
    models,
    parallel_cascade,
    recovery,
    regularised,
    rivals,
    robustness,
    trimming,
)
from nettrim.studies.records import Records
from nettrim.studies.recovery_report import needed

STUDIES = {
    "parallel_cascade": parallel_cascade,
    "regularised": regularised,
    "hptd": hptd,
    "dropped_inputs": dropped_inputs,
    "rivals": rivals,
    "recovery": recovery,
    "robustness": robustness,
}
COUNTS = {
    "parallel_cascade": 12,
    "regularised": 18,
    "hptd": 12,
    "dropped_inputs": 8,
    "rivals": 6,
    "recovery": 18,
    "robustness": 6,
}
#: what a run does not repeat
TIMES = ("environment", "seconds", "prune_seconds")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Folder and records of each study, made when first asked for."""
    found: dict = {}

    def of(name: str):
        if name not in found:
            folder, study = tmp_path_factory.mktemp(name), STUDIES[name]
            records = Records(folder / "records.jsonl", study.KEY)
            study.run(study.PRESETS["smoke"], records, folder / "weights", lambda line: None)
            found[name] = folder, records
        return found[name]

    return of


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_goes_on(made, name, tmp_path):
    folder, records = made(name)
    study, path = STUDIES[name], tmp_path / "again.jsonl"
    assert len(records.rows) == COUNTS[name]
    lines = records.path.read_text().splitlines()
    dropped = len(lines) // 2
    path.write_text("".join(line + "\n" for k, line in enumerate(lines) if k != dropped))
    again = Records(path, study.KEY)
    # from the weights and layers that the first run has kept, and without them
    study.run(study.PRESETS["smoke"], again, folder / "weights", lambda line: None)
    row = {key: value for key, value in records.rows[dropped].items() if key not in TIMES}
    found = again.find(**{key: row[key] for key in study.KEY})
    assert {key: found[key] for key in row} == row
    said: list[str] = []
    study.run(study.PRESETS["smoke"], again, folder / "weights", said.append)
    assert len(again.rows) == len(records.rows) and said == []


@pytest.mark.parametrize("name", STUDIES)
def test_tables_are_rows_of_text(made, name):
    study, (folder, records) = STUDIES[name], made(name)
    tables = study.tables(records)
    assert tables
    for title, rows in tables.items():
        assert rows, title
        for row in rows:
            assert all(isinstance(cell, str) for cell in row.values())
            for cell in row.values():
                if re.fullmatch(r"[-\d.]+ ± [\d.]+", cell):
                    assert all(math.isfinite(float(number)) for number in cell.split(" ± "))
    assert study.tables(Records(folder / "none.jsonl", study.KEY)) == {}


@pytest.mark.parametrize("name", STUDIES)
def test_figures_are_drawn(made, name, tmp_path):
    pytest.importorskip("matplotlib")
    study, (folder, records) = STUDIES[name], made(name)
    paths = study.plot(records, tmp_path / "figures")
    assert paths and all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    assert study.plot(Records(folder / "none.jsonl", study.KEY), tmp_path / "none") == []


def test_presets_can_have_intervals():
    for study in STUDIES.values():
        assert set(study.PRESETS) >= {"smoke", "cpu", "paper"}
        assert len(study.PRESETS["cpu"].seeds) >= 3 and len(study.PRESETS["paper"].seeds) >= 3


def test_a_part_of_the_records_makes_tables(made, tmp_path):
    """A study that was stopped early still has a table, and a figure."""
    for name, study in STUDIES.items():
        first = made(name)[1].path.read_text().splitlines()[:2]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(line + "\n" for line in first))
        some = Records(path, study.KEY)
        assert study.tables(some)
        study.plot(some, tmp_path)


# what the records say


def test_cascades_have_smaller_discrepancies_on_their_samples(made):
    rows = made("parallel_cascade")[1].rows
    for row in rows:
        if row["scheme"] == "cascade":
            key = {name: row[name] for name in ("samples", "subset", "epsilon", "seed")}
            other = next(r for r in rows if r["scheme"] == "parallel" and all(r[k] == v for k, v in key.items()))
            assert row["discrepancy"]["calibration"] < other["discrepancy"]["calibration"]
            # the first layer's program is the same in both
            first = next(iter(row["layers"]))
            assert row["layers"][first] == pytest.approx(other["layers"][first], abs=1e-12)


def test_hptd_keeps_as_many_weights_in_every_layer(made):
    rows = made("hptd")[1].rows
    for row in rows:
        other = next(
            r for r in rows if all(r[k] == row[k] for k in ("case", "epsilon", "seed")) and r["method"] == "Net-Trim"
        )
        assert row["layers"] == other["layers"]
        assert len(row["validation"]) == 2 and len(row["test"]) == 2


def test_only_net_trim_trains_nothing_more(made):
    for row in made("rivals")[1].rows:
        weights = 784 * 30 + 30 * 20 + 20 * 10
        assert row["extra"] == (0 if row["method"] == "Net-Trim" else weights)
        assert row["parameters"] == weights + 60 and 0 < row["zeros"] < 1


def test_plain_net_trim_drops_the_inputs_that_are_blank(tmp_path):
    # blank for every sample: l1 leaves no weight there
    made = data.load("synthetic_images")
    images = made.train[0].copy()
    images[:, :, :5] = 0
    samples = data.DataSet("blank", (images, made.train[1]), made.validation, made.test)
    torch.manual_seed(0)
    model = models.fully_connected((784, 10, 10), 0.0)
    pruned = trimming.trim(model, samples, 0, trimming.Trim(0.2, 60, targets=("1",)))
    gone = dropped_inputs.dropped(trimming.layers_of(pruned.model)["1"].numpy())
    assert set(range(5 * 28)) <= set(gone.tolist())
    # and the other layer is as it was
    assert torch.equal(trimming.layers_of(pruned.model)["3"], trimming.layers_of(model)["3"])


def test_separation():
    ink = np.array([0.0, 0.1, 0.2, 0.3])
    assert dropped_inputs.separation(ink, np.array([0, 1])) == 1
    assert dropped_inputs.separation(ink, np.array([2, 3])) == 0
    assert dropped_inputs.separation(np.ones(4), np.array([0])) == 0.5
    assert dropped_inputs.separation(ink, np.array([], int)) is None


def test_truncating_keeps_the_largest():
    torch.manual_seed(0)
    model, like = models.lenet5(), models.lenet5()
    with torch.no_grad():
        for W in trimming.layers_of(like).values():
            W[W.abs() < 0.02] = 0
    made = trimming.truncate(model, like)
    for name, W in trimming.layers_of(made).items():
        before, kept = trimming.layers_of(model)[name], W != 0
        assert int(kept.sum()) == int((trimming.layers_of(like)[name] != 0).sum())
        assert torch.equal(W[kept], before[kept])
        assert before[kept].abs().min() >= before[~kept].abs().max()
    assert trimming.sparsity(model) == 0


def test_subsets_differ_and_repeat():
    samples = data.load("synthetic_images")
    first, again = (trimming.calibration_of(samples, 1, 50) for _ in range(2))
    assert np.array_equal(first, again) and first.shape == (50, 1, 28, 28)
    assert not np.array_equal(first, trimming.calibration_of(samples, 1, 50, subset=1))
    assert not np.array_equal(first, trimming.calibration_of(samples, 2, 50))


def test_noise_is_the_same_up_to_its_size():
    x = np.zeros((2, 3), np.float32)
    assert np.allclose(2 * robustness.noisy(x, 0.1, 5), robustness.noisy(x, 0.2, 5))
    assert np.array_equal(robustness.noisy(x, 0.0, 5), x)


def test_small_weights_are_cleared():
    model = nn.Sequential(nn.Linear(2, 1))
    with torch.no_grad():
        model[0].weight[:] = torch.tensor([[5e-4, -0.5]])
    assert regularised.cleared(model)[0].weight.tolist() == [[0.0, -0.5]]


def test_discrepancy_of_a_network_from_itself():
    model = models.fully_connected((784, 10), 0.0).eval()
    x = data.load("synthetic_images").test[0]
    assert parallel_cascade.discrepancy(model, model, x) == 0
    silent = models.fully_connected((784, 10), 0.0).eval()
    for p in silent.parameters():
        nn.init.zeros_(p)
    assert parallel_cascade.discrepancy(silent, model, x) == pytest.approx(1)


# planted neurons: the optimum is known


@pytest.mark.parametrize("inputs", recovery.INPUTS)
def test_planted_neurons_are_found_from_many_samples(inputs):
    import nettrim as nt

    X, W = recovery.planted(inputs, 20, 400, 3, 4, seed=0)
    assert ((W != 0).sum(axis=0) == 3).all()
    Y = np.maximum(W.T @ X, 0)
    found = nt.solve(X, Y, epsilon_abs=0.0, gap_tol=1e-7, feas_tol=1e-7)
    seen = (Y > 0).sum(axis=1) >= 40
    assert seen.any()
    np.testing.assert_allclose(found.W[:, seen], W[:, seen], atol=1e-5)


def test_planted_neurons_are_not_found_from_few_samples():
    # half of 10 samples leave 15 of 20 dimensions free
    X, W = recovery.planted("gaussian", 20, 10, 12, 4, seed=0)
    import nettrim as nt

    found = nt.solve(X, np.maximum(W.T @ X, 0), epsilon_abs=0.0)
    assert np.linalg.norm(found.W - W) > 0.1 * np.linalg.norm(W)
    assert np.abs(found.W).sum() < np.abs(W).sum()


@pytest.mark.parametrize("inputs", recovery.INPUTS)
def test_samples_are_the_first_of_more(inputs):
    few, W = recovery.planted(inputs, 8, 5, 2, 3, seed=1)
    many, same = recovery.planted(inputs, 8, 50, 2, 3, seed=1)
    assert np.array_equal(many[:, :5], few) and np.array_equal(W, same)


def test_planting_refuses():
    with pytest.raises(ValueError, match="inputs must be one of"):
        recovery.planted("uniform", 8, 5, 2, 3, seed=1)
    with pytest.raises(ValueError, match="s must be from 1 to N = 8"):
        recovery.planted("signs", 8, 5, 9, 3, seed=1)


def test_needed_samples_are_those_from_which_all_suffice():
    rows = [{"P": 10 * k, "active": [5 * k], "plain": [int(k in (2, 4, 5))]} for k in (1, 2, 3, 4, 5)]
    row = {"N": 10, "rows": rows}
    # found at 20, missed at 30, found from 40: the middle of 30 and 40
    assert needed(row, "plain", "P") == 3.5 and needed(row, "plain", "active") == 1.75
    assert needed({"N": 10, "rows": rows[:3]}, "plain", "P") == math.inf
