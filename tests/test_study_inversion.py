"""The inversion study: its smoke preset runs and goes on, its tables and figures are made."""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("skimage")

from nettrim.privacy.images import TOO_WEAK
from nettrim.studies import data, inversion
from nettrim.studies.inversion_tables import PAPER, gate_of
from nettrim.studies.records import Records

SMOKE = inversion.PRESETS["smoke"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("study")
    records = Records(folder / "inversion.smoke.jsonl", inversion.KEY)
    inversion.run(SMOKE, records, folder / "weights", lambda line: None)
    return folder, records


def test_the_records(made):
    folder, records = made
    accuracies = [row for row in records.rows if row["part"] == "accuracy"]
    assert [row["kept"] for row in accuracies] == [61470, 49176, 39341]
    cells = [row for row in records.rows if row["part"] == "inversion"]
    assert len(cells) == len(SMOKE.rounds) * len(SMOKE.layers) * len(SMOKE.attackers)
    for row in cells:
        for name in ("psnr", "ssim", "feature_error", "blank", "mean"):
            assert len(row[name]) == SMOKE.images and all(map(math.isfinite, row[name]))
        assert row["weight"] in SMOKE.weights and set(map(float, row["tuning_psnr"])) == set(SMOKE.weights)
        assert (row["neighbours"] is None) == (row["attacker"] == "grey")
        shown = np.load(folder / row["images"], allow_pickle=False)
        assert shown.shape == (2, 4, 1, 28, 28) and (folder / row["images"]).stat().st_size < 20_000
        # the file shows test images, which no weight was chosen on
        np.testing.assert_allclose(shown[0], data.load(SMOKE.data).test[0][:4], atol=0.01)


def test_it_goes_on(made):
    folder, records = made
    path = folder / "again.jsonl"
    lines = records.path.read_text().splitlines()
    dropped = [0, 3, len(lines) - 1]
    path.write_text("".join(line + "\n" for k, line in enumerate(lines) if k not in dropped))
    again = Records(path, inversion.KEY)
    inversion.run(SMOKE, again, folder / "weights", lambda line: None)
    assert len(again.rows) == len(records.rows)
    for k in dropped:
        row = records.rows[k]
        found = again.find(**row)
        for name in row.keys() - {"environment", "seconds"}:
            assert found[name] == row[name], name
    before, said = path.read_text(), []
    inversion.run(SMOKE, again, folder / "weights", said.append)
    assert path.read_text() == before and said == []


def test_the_tables(made, tmp_path):
    _, records = made
    tables = inversion.tables(records)
    assert len(tables) == 6
    for title, rows in tables.items():
        assert rows and len({tuple(row) for row in rows}) == 1, title
        assert all(isinstance(cell, str) for row in rows for cell in row.values())
    first = tables["Table 1: test accuracy after rounds of pruning"]
    assert [row["kept, %"] for row in first] == ["100.0", "80.0", "64.0"]
    assert [row["paper's, MNIST"] for row in first] == ["99.0", "98.9", "99.0"]
    assert {len(row) for row in PAPER.values()} == {16}
    lines = tables["PSNR of the inverted images, dB"]
    assert [(row["layer"], row["attacker"]) for row in lines] == [
        (layer, attacker) for layer in SMOKE.layers for attacker in SMOKE.attackers
    ]
    for row in lines:
        assert row["100 %"] != TOO_WEAK and (row["64 %"] == TOO_WEAK) == row["gate"].startswith(TOO_WEAK)
    assert inversion.tables(Records(tmp_path / "none.jsonl", inversion.KEY)) == {}


def test_an_attack_that_fails_on_the_dense_network_says_nothing(made, tmp_path):
    _, records = made
    weak = Records(tmp_path / "weak.jsonl", inversion.KEY)
    for row in records.rows:
        if row["part"] == "inversion":
            # as good as the mean image, up to chance; much better on the pruned network
            psnr = [value + (-1) ** k + 30 * row["round"] for k, value in enumerate(row["mean"])]
            weak.add(**{**{k: v for k, v in row.items() if k != "environment"}, "psnr": psnr})
    assert not gate_of({0: [row for row in weak.rows if row["round"] == 0][:1]}).passed
    for row in inversion.tables(weak)["PSNR of the inverted images, dB"]:
        assert row["64 %"] == TOO_WEAK and row["gate"].startswith(TOO_WEAK)


def test_the_figures(made, tmp_path):
    pytest.importorskip("matplotlib")
    folder, records = made
    paths = inversion.plot(records, tmp_path / "figures")
    kinds = ["psnr", *(f"{attacker}.{name}" for attacker in SMOKE.attackers for name in ("layers", "images"))]
    assert [path.name for path in paths] == [f"inversion.smoke.{kind}.png" for kind in kinds]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
    # of a stopped study: one layer has been attacked once more than the other
    lines = records.path.read_text().splitlines()
    stopped = folder / "inversion.stopped.jsonl"
    stopped.write_text("".join(line + "\n" for line in lines[:-2]))
    assert len(inversion.plot(Records(stopped, inversion.KEY), tmp_path / "stopped")) == 7
    # without the images beside the records there are the curves
    alone = Records(tmp_path / "inversion.smoke.jsonl", inversion.KEY)
    alone.path.write_text(records.path.read_text())
    assert len(inversion.plot(Records(alone.path, inversion.KEY), tmp_path / "other")) == 1
    assert inversion.plot(Records(tmp_path / "none.jsonl", inversion.KEY), tmp_path) == []


def test_the_presets_have_a_dense_network_and_intervals():
    for config in inversion.PRESETS.values():
        assert 0 in config.rounds and max(config.rounds) <= config.recipe.rounds and config.images >= 4
    cpu = inversion.PRESETS["cpu"]
    kept = [round(100 * 0.8**n, 1) for n in cpu.rounds]
    assert kept == [100.0, 41.0, 10.7, 3.5] and cpu.layers == ("conv1", "conv2", "fc1", "fc2", "fc3")
