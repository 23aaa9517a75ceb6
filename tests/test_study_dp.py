"""The studies of DP-SGD: their smoke presets run and go on, their tables and figures are made."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch

from nettrim.privacy.accountant import MASK_NOTICE
from nettrim.studies import data, dp_noise_clip, dp_phases, dp_prune, dp_training, landscape
from nettrim.studies.dp_snapshots import restore, snapshots
from nettrim.studies.records import Records

STUDIES = {"dp_phases": dp_phases, "dp_noise_clip": dp_noise_clip, "dp_prune": dp_prune, "landscape": landscape}
COUNTS = {"dp_phases": 12, "dp_noise_clip": 24, "dp_prune": 10, "landscape": 32}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    """Folder and records of each study."""
    found = {}
    for name, study in STUDIES.items():
        folder = tmp_path_factory.mktemp(name)
        records = Records(folder / "records.jsonl", study.KEY)
        study.run(study.PRESETS["smoke"], records, folder / "weights", lambda line: None)
        found[name] = folder, records
    return found


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_goes_on(made, name, tmp_path):
    folder, records = made[name]
    study, path = STUDIES[name], tmp_path / "again.jsonl"
    assert len(records.rows) == COUNTS[name]
    lines = records.path.read_text().splitlines()
    dropped = len(lines) // 2
    path.write_text("".join(line + "\n" for k, line in enumerate(lines) if k != dropped))
    again = Records(path, study.KEY)
    study.run(study.PRESETS["smoke"], again, folder / "weights", lambda line: None)
    row = {key: value for key, value in records.rows[dropped].items() if key not in ("environment", "seconds")}
    found = again.find(**{key: row[key] for key in study.KEY})
    assert {key: found[key] for key in row} == row
    said: list[str] = []
    study.run(study.PRESETS["smoke"], again, folder / "weights", said.append)
    assert len(again.rows) == len(records.rows) and said == []


@pytest.mark.parametrize("name", STUDIES)
def test_tables_are_rows_of_text(made, name):
    study, (folder, records) = STUDIES[name], made[name]
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
    paths = STUDIES[name].plot(made[name][1], tmp_path / "figures")
    assert paths and all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_presets_can_have_intervals():
    for study in STUDIES.values():
        assert set(study.PRESETS) >= {"smoke", "cpu", "paper"}
        assert len(study.PRESETS["cpu"].seeds) >= 3 and len(study.PRESETS["paper"].seeds) >= 3


# what the records say


def test_only_dp_sgd_throughout_has_an_epsilon(made):
    config = dp_phases.PRESETS["smoke"]
    for row in made["dp_phases"][1].rows:
        private = row["first"] == row["second"] == "DP-SGD"
        assert (row["epsilon"] is not None) == private == (row["privacy"] is not None)
        done = row["k"] or 0
        assert [point["epoch"] for point in row["curve"]] == list(range(done + 1, config.epochs + 1))
        size = config.dp.size if row["second"] == "DP-SGD" else config.sgd.size
        assert row["steps"] == pytest.approx((config.epochs - done) * 600 / size, abs=config.epochs)


def test_modes_of_a_few_steps_start_alike(made):
    rows = [row for row in made["dp_noise_clip"][1].rows if row["part"] == "steps"]
    for start in ("initial", "trained"):
        for seed in (0, 1):
            own = {row["mode"]: row for row in rows if row["start"] == start and row["seed"] == seed}
            assert set(own) == {"SGD", "clipped SGD", "noisy SGD", "DP-SGD"}
            before = [row["loss_before"] for row in own.values()]
            np.testing.assert_allclose(before, before[:1] * 4, rtol=1e-6)
            assert np.mean(own["SGD"]["loss"]) < np.mean(own["SGD"]["loss_before"])


def test_masks_and_their_privacy(made):
    rows = made["dp_prune"][1].rows
    weights = 6 * 25 + 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
    for row in rows:
        private = row["source"] in ("full data", "share")
        assert row["notice"] == (MASK_NOTICE if private else "") and (MASK_NOTICE in row["privacy"]) == private
        assert row["epsilon"] > 0 and -1 <= row["cosine"] <= 1
        if row["source"] == "none":
            assert row["kept"] == 1 and row["weights"] is None
        else:
            assert abs(row["weights"] - row["kept"] * weights) < 5
    cells = [row for rows in dp_prune.tables(made["dp_prune"][1]).values() for row in rows]
    assert any(MASK_NOTICE in row.get("privacy", "") for row in cells)
    assert any(row["mask from"] == "20% of the data" for row in cells)


def test_lines_and_the_signal(made):
    rows = made["landscape"][1].rows
    for row in rows:
        if row["part"] == "line":
            losses = row["losses"]
            assert len(losses) == 5
            assert row["instability"] == pytest.approx(max(losses) - (losses[0] + losses[-1]) / 2)
            assert row["instability"] >= 0 and row["distance"] > 0
        elif row["part"] == "signal":
            assert (row["noise"] < 1e-14) == (row["pair"] == "balanced")
            assert row["R_pruned"] < row["R"]
        else:
            assert np.shape(row["losses"]) == (4, 3) and row["radii"] == [0, 1, 15]
            assert np.ptp([one[0] for one in row["losses"]]) == 0
            assert [one["count"] for one in row["clipping"]] == [10, 50]
            assert all(one["projection"] >= one["bound"] for one in row["clipping"])
    other = [row for row in rows if row["pair"] == "SGD - SGD elsewhere"]
    near = [row for row in rows if row["pair"] == "SGD - SGD" and row["k"] == 0]
    assert min(row["distance"] for row in other) > max(row["distance"] for row in near)


# what the studies share


def test_masks_keep_a_fraction_of_every_layer():
    model = dp_training.build(0)
    masks = dp_training.magnitude_masks(model, 0.3)
    for name, p in model.named_parameters():
        if name in masks:
            kept = torch.from_numpy(masks[name])
            assert int(kept.sum()) == round(0.3 * p.numel())
            assert p[kept].abs().min() >= p[~kept].abs().max()
        else:
            assert p.ndim == 1
    one, same, other = (dp_training.magnitude_masks(model, 0.3, seed) for seed in (0, 0, 1))
    assert all((one[name] == same[name]).all() and (one[name] != other[name]).any() for name in one)


def test_a_part_of_the_samples():
    whole, part = data.load("synthetic_images", 0), dp_training.subset("synthetic_images", 0, 50)
    assert len(part.train[0]) == len(part.train[1]) == 50 and len(part.test[0]) == len(whole.test[0])
    assert dp_training.subset("synthetic_images", 0, None).name == whole.name


def test_snapshots_are_those_of_one_training(tmp_path):
    samples = data.load("synthetic_images", 0)
    how = dp_training.Process("SGD", 100, 0.1)
    paths = snapshots(tmp_path, "x", how, samples, 2, (0, 1, 2), 0)
    times = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert snapshots(tmp_path, "x", how, samples, 2, (0, 1, 2), 0) == paths
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == times
    model = dp_training.build(0)
    started = restore(dp_training.build(5), paths[0])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), started.parameters(), strict=True))
    dp_training.train(model, how, samples.train, 1, 0)
    after = restore(dp_training.build(5), paths[1])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), after.parameters(), strict=True))


def test_the_other_digits():
    samples = dp_prune.handwritten()
    x, y = samples.train
    assert x.shape == (1797, 1, 28, 28) and x.dtype == np.float32 and y.dtype == np.int64
    assert x.min() == 0 and x.max() == 1 and (x[:, :, :2] == 0).all()
