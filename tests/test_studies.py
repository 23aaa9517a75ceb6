"""Studies: their data, models, training and records; the smoke presets run, and go on where they stopped."""

from __future__ import annotations

import json
import math
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nettrim import cli  # noqa: E402
from nettrim.studies import data, models, networks, training  # noqa: E402
from nettrim.studies.records import Records, interval  # noqa: E402

needs_data = pytest.mark.skipif("NETTRIM_DATA" not in os.environ, reason="the variable NETTRIM_DATA is not set")


def parameters(model) -> int:
    return sum(p.numel() for p in model.parameters())


# models and training


def test_sizes_of_the_models():
    assert parameters(models.lenet5()) == 61_706
    assert parameters(models.resnet18(64)) == 11_173_962
    assert (
        parameters(models.fully_connected()) == 784 * 300 + 300 + 300 * 1000 + 1000 + 1000 * 100 + 100 + 100 * 10 + 10
    )
    for model, shape in (
        (models.lenet5(), (2, 1, 28, 28)),
        (models.fully_connected(), (2, 1, 28, 28)),
        (models.resnet18(4), (2, 3, 32, 32)),
        (models.resnet18(4, "group"), (2, 3, 32, 32)),
        (models.Encoder("gelu", width=8, heads=2, hidden=16, layers=1), (2, 28, 28)),
    ):
        assert model(torch.zeros(shape)).shape == (2, 10)
    with pytest.raises(ValueError, match="norm must be"):
        models.resnet18(norm="layer")


def test_batches_are_shuffled_alike():
    x, y = np.arange(50, dtype=np.float32)[:, None], np.arange(50)
    first, second, other = (training.Batches(x, y, 8, seed) for seed in (1, 1, 2))
    epochs = [[labels.tolist() for _, labels in batches] for batches in (first, second, other)]
    assert epochs[0] == epochs[1] != epochs[2]
    assert len(first) == 6 == len(epochs[0]) and len({v for batch in epochs[0] for v in batch}) == 48
    assert [labels.tolist() for _, labels in first] != epochs[0]
    assert all(torch.equal(inputs[:, 0].long(), labels) for inputs, labels in first)


def test_images_are_flipped_and_shifted():
    x = torch.arange(2 * 1 * 6 * 6, dtype=torch.float32).reshape(2, 1, 6, 6) + 1
    made = torch.cat([training.flipped_and_shifted(x, torch.Generator().manual_seed(k)) for k in range(40)])
    assert made.shape == (80, 1, 6, 6) and len(torch.unique(made.flatten(1), dim=0)) > 40
    possible = set()
    for image in (*x, *x.flip(3)):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        possible |= {tuple(padded[0, i : i + 6, j : j + 6].flatten().tolist()) for i in range(9) for j in range(9)}
    assert {tuple(image.flatten().tolist()) for image in made} <= possible


def test_training_learns_and_repeats():
    samples = data.load("synthetic_images")
    found = []
    for _ in range(2):
        torch.manual_seed(0)
        model = models.fully_connected((784, 30, 10))
        losses = training.train(model, training.Batches(*samples.train), 3, weight_decay=0.01)
        assert losses[-1] < losses[0] and not model.training
        found.append(model.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert training.accuracy(model, *samples.test) > 0.9
    model.train()
    training.accuracy(model, *samples.test)
    assert model.training


# data


def test_synthetic_data_are_seeded():
    first, second, other = (data.load("synthetic_rows", seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train[0], second.train[0])
    assert not np.array_equal(first.train[0], other.train[0])
    with pytest.raises(ValueError, match="name must be one of"):
        data.load("imagenet")


def test_missing_data_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("NETTRIM_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="NETTRIM_DATA"):
        data.load("cifar10")


@pytest.mark.data
@needs_data
def test_mnist():
    samples = data.mnist(3)
    assert [len(x) for x, _ in (samples.train, samples.validation, samples.test)] == [55000, 5000, 10000]
    assert samples.train[0].shape[1:] == (1, 28, 28) and samples.train[0].dtype == np.float32
    assert samples.train[0].min() == 0 and samples.train[0].max() == 1
    # disjoint, and together the 60000 of which 6742 are ones
    assert (samples.train[1] == 1).sum() + (samples.validation[1] == 1).sum() == 6742
    assert not np.array_equal(samples.validation[0], data.mnist(4).validation[0])
    np.testing.assert_array_equal(data.digit_rows(3).test[0], samples.test[0][:, 0])


@pytest.mark.data
@needs_data
@pytest.mark.slow
def test_cifar10():
    samples = data.cifar10()
    assert [len(x) for x, _ in (samples.train, samples.validation, samples.test)] == [45000, 5000, 10000]
    assert samples.train[0].shape[1:] == (3, 32, 32)
    everything = np.concatenate([samples.train[0], samples.validation[0]])
    np.testing.assert_allclose(everything.mean((0, 2, 3), dtype=np.float64), 0, atol=1e-4)
    np.testing.assert_allclose(everything.std((0, 2, 3), dtype=np.float64), 1, atol=1e-4)
    assert np.bincount(samples.test[1]).tolist() == [1000] * 10
    # the first n, as `fewer` takes them, are of all classes
    for _, labels in (samples.train, samples.validation, samples.test):
        assert np.bincount(labels[:300], minlength=10).min() >= 15


# records


def test_records_are_kept_once(tmp_path):
    records = Records(tmp_path / "a" / "r.jsonl", ("case", "seed"))
    records.add(case="fc", seed=0, value=math.inf)
    records.add(case="fc", seed=1, value=2.0)
    with pytest.raises(ValueError, match="already"):
        records.add(case="fc", seed=1, value=3.0)
    again = Records(tmp_path / "a" / "r.jsonl", ("case", "seed"))
    assert again.rows == records.rows and again.find(case="fc", seed=1)["value"] == 2.0
    assert again.find(case="fc", seed=0)["value"] is None and again.find(case="lenet5", seed=0) is None
    assert again.rows[0]["environment"]["numpy"] == np.__version__


@pytest.mark.parametrize("cut", range(1, 25, 4))
def test_a_line_that_was_cut_off_is_dropped(tmp_path, cut):
    path = tmp_path / "r.jsonl"
    records = Records(path, ("seed",))
    records.add(seed=0)
    records.add(seed=1)
    path.write_bytes(path.read_bytes()[:-cut])
    again = Records(path, ("seed",))
    left = [row["seed"] for row in again.rows]
    # without its line's end only, a record is whole
    assert left == ([0, 1] if cut == 1 else [0])
    again.add(seed=2)
    assert [row["seed"] for row in Records(path, ("seed",)).rows] == [*left, 2]


def test_a_first_line_that_was_cut_off(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"seed": 0')
    records = Records(path, ("seed",))
    assert records.rows == []
    records.add(seed=0)
    assert len(Records(path, ("seed",)).rows) == 1


def test_damaged_records_are_refused(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text('{"seed": 0\n{"seed": 1}\n')
    with pytest.raises(ValueError, match="line 1"):
        Records(path, ("seed",))


def test_intervals():
    mean, half = interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 * 1 / math.sqrt(3), rel=1e-3)
    assert math.isnan(interval([1.0])[1])


# the study of networks


def test_the_smoke_preset_goes_on(tmp_path, capsys):
    """Everything once; then nothing again; then what was taken out of the records."""
    command = ["study", "networks", "--preset", "smoke", "-o", str(tmp_path), "--json"]
    assert cli.main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["case"] for row in rows] == [case.name for case in networks.PRESETS["smoke"].cases]
    for row in rows:
        # of 180 samples in float32: a layer may end within ten times the tolerances
        assert 0 < row["kept"] < 1 and all(layer["status"].startswith("solved") for layer in row["layers"])
        assert ("tuned" in row) == ("epochs" in row)
    assert cli.main(command) == 0
    found = capsys.readouterr()
    assert json.loads(found.out) == rows and found.err == ""
    path = tmp_path / "networks.smoke.jsonl"
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[:-1]))
    assert cli.main(command[:-1]) == 0
    found = capsys.readouterr()
    assert "resnet18" in found.err and "fc" not in found.err and "records" in found.out
    again = Records(path, networks.KEY).rows[-1]
    assert again["kept"] == rows[-1]["kept"] and again["pruned"] == rows[-1]["pruned"]


def test_what_a_study_refuses(capsys):
    assert cli.main(["study", "nothing"]) == 1
    assert cli.main(["study", "networks", "--preset", "huge"]) == 1
    assert "smoke, cpu" in capsys.readouterr().err


def test_presets_do_not_share_networks(tmp_path):
    """In one folder: the same name trained otherwise is another network, and another recipe another record."""
    from dataclasses import replace

    case = networks.PRESETS["smoke"].cases[1]
    samples = data.load(case.data)
    first = networks.trained(case, samples, 0, tmp_path, lambda line: None)
    again = networks.trained(case, None, 0, tmp_path, lambda line: None)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    other = networks.trained(replace(case, rate=1e-2), samples, 0, tmp_path, lambda line: None)
    assert not torch.equal(next(first.parameters()), next(other.parameters()))
    assert networks._key(case, case.runs[0]) != networks._key(replace(case, calibration=50), case.runs[0])
    assert networks._key(case, case.runs[0]) != networks._key(case, replace(case.runs[0], calibration=50))


def test_the_smoke_preset_of_the_pruners(tmp_path, capsys):
    from nettrim.studies import pruners

    command = ["study", "pruners", "--preset", "smoke", "-o", str(tmp_path)]
    with pytest.warns(UserWarning, match="too few samples"):
        assert cli.main(command) == 0
    found = capsys.readouterr()
    assert "l0, even" in found.out and "rival, tuned" in found.out and "densities in" in found.err
    rows = Records(tmp_path / "pruners.smoke.jsonl", pruners.KEY).rows
    assert [row["method"] for row in rows] == ["l0, even", "wanda + refit, allocated"]
    for row in rows:
        # biases stay on top of the weights that are counted
        assert 0.19 < row["left"] < 0.205 and row["seconds"] > 0
    # nothing is left to be done
    assert cli.main(command) == 0 and "densities in" not in capsys.readouterr().err
