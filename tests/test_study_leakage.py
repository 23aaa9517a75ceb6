"""The leakage study: its smoke preset runs and goes on; every method keeps what it is asked for."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nettrim import cli  # noqa: E402
from nettrim.privacy.iterative import Recipe, prunable  # noqa: E402
from nettrim.studies import leakage, models, training  # noqa: E402
from nettrim.studies.leakage_networks import METHODS, Setting, make, private  # noqa: E402
from nettrim.studies.records import Records  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("study")
    assert cli.main(["study", "leakage", "--preset", "smoke", "-o", str(made)]) == 0
    return made


def test_one_row_for_every_network(folder, capsys):
    records = Records(folder / "leakage.smoke.jsonl", leakage.KEY)
    methods = {row["method"] for row in records.rows}
    assert {"dense", "DP-SGD, epsilon 50", "magnitude, in rounds", "mask + DP-SGD, epsilon 50"} < methods
    tables = leakage.tables(records)
    assert len(tables) == 4 and all(len(rows) == len(records.rows) for rows in tables.values())
    dense = next(row for row in records.rows if row["method"] == "dense")
    assert dense["error"] == 0 and dense["labels_kept"] == 1 and abs(dense["instability"]) < 1e-6
    for row in records.rows:
        assert 0 <= row["membership"]["RMIA"]["auc"] <= 1 and -1 <= row["cosine"] <= 1
        # a count is the most that Net-Trim keeps
        if row["kept"] < 1 and not row["method"].startswith("Net-Trim"):
            assert row["left"] == pytest.approx(row["kept"], abs=0.01)
        assert row["left"] <= row["kept"] + 0.01
        # a mask that was learned is never covered by what DP-SGD has spent, and nothing else has an epsilon
        assert ("not covered" in row["privacy"]) == row["method"].startswith("mask")
        assert ("epsilon =" in row["privacy"]) == ("DP-SGD" in row["method"])
    certified = [row for row in records.rows if row["method"].startswith("Net-Trim")]
    assert certified and all(row["layer_error"] > 0 for row in certified)
    # of a whole network nothing is proven, but for the dense one
    assert [row["method"] for row in records.rows if row["certified"] is not None] == ["dense"]
    capsys.readouterr()
    # nothing is done twice
    before = (folder / "leakage.smoke.jsonl").read_text()
    assert cli.main(["study", "leakage", "--preset", "smoke", "-o", str(folder)]) == 0
    assert (folder / "leakage.smoke.jsonl").read_text() == before


def test_figure(folder, capsys):
    capsys.readouterr()
    assert cli.main(["plot", str(folder), "-o", str(folder / "figures"), "--json"]) == 0
    (paths,) = json.loads(capsys.readouterr().out).values()
    assert len(paths) == 1 and open(paths[0], "rb").read(4) == b"\x89PNG"


@pytest.fixture(scope="module")
def network():
    samples = leakage.load("rectified synthetic_images", 0)
    torch.manual_seed(0)
    model = models.lenet5()
    training.sgd(model, training.Batches(*samples.train, 50), 2, 0.05, 0.9)
    return Setting(Recipe(), members=300, calibration=60, private_epochs=1, private_size=50), samples, model


@pytest.mark.parametrize("method", [m for m in METHODS if not m.startswith("Net-Trim")])
@pytest.mark.parametrize("kept", [0.41, 0.107])
def test_methods_keep_what_they_are_asked_for(network, method, kept):
    setting, samples, model = network
    before = [p.detach().clone() for p in model.parameters()]
    made = make(method, model, kept, setting, samples)
    left = sum(int((w != 0).sum()) for w in prunable(made.model).values())
    total = sum(w.numel() for w in prunable(made.model).values())
    # sampled counts are what is expected; neurons come whole
    assert left / total == pytest.approx(kept, rel=0.15)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("method", ["coreset, random weights", "coreset, deterministic weights"])
def test_coresets_that_are_asked_for_too_much_keep_what_has_an_importance(network, method):
    setting, samples, model = network
    made = make(method, model, 0.99, setting, samples)
    left = sum(int((w != 0).sum()) for w in prunable(made.model).values())
    assert 0.5 < left / sum(w.numel() for w in prunable(made.model).values()) < 0.99


def test_neurons_alone_cannot_keep_so_few(network):
    setting, samples, model = network
    with pytest.raises(ValueError, match="at least .* of the weights are kept"):
        make("coreset, neurons", model, 0.035, setting, samples)


def test_private_training_keeps_to_its_epsilon(network):
    setting, samples, _ = network
    masks = {name: np.asarray(w.detach() > 0) for name, w in prunable(models.lenet5()).items()}
    made = private(setting, samples, 4.0, masks)
    assert 3.5 < made.about["epsilon"] <= 4.0 and "not covered" in made.privacy
    for name, weight in prunable(made.model).items():
        assert not weight.detach().numpy()[~masks[name]].any()
