"""The demonstration, run once on the real network, and the data that ships with the package."""

from __future__ import annotations

import importlib.resources
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from nettrim import cli
from nettrim.demo import (
    CURVE,
    SPLIT_NAMES,
    DemoReport,
    accuracy,
    digits,
    hidden_outputs,
    load_network,
    run_demo,
    shifted,
)
from nettrim.report import to_json

EPSILON = 0.1
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("demo") / "made"


@pytest.fixture(scope="module")
def stages() -> list[tuple[str, dict | None]]:
    return []


@pytest.fixture(scope="module")
def report(folder, stages) -> DemoReport:
    return run_demo(EPSILON, folder, progress=lambda stage, check: stages.append((stage, check)))


def stored() -> dict[str, np.ndarray]:
    with (importlib.resources.files("nettrim") / "data" / "digits_relu.npz").open("rb") as file:
        return dict(np.load(file, allow_pickle=False))


# the network that ships with the package


def test_the_file_is_small():
    assert len((importlib.resources.files("nettrim") / "data" / "digits_relu.npz").read_bytes()) <= 300_000


def test_the_four_sets_are_disjoint():
    split = load_network().split
    together = np.concatenate([split[name] for name in SPLIT_NAMES])
    assert together.size == np.unique(together).size == len(digits()[1])
    assert together.min() == 0 and all(split[name].size >= 200 for name in SPLIT_NAMES)


def test_the_stored_accuracy_is_that_of_the_stored_weights():
    network, (images, labels) = load_network(), digits()
    test = network.split["test"]
    reached = accuracy(network.weights, network.biases, images[test], labels[test])
    assert reached == network.test_accuracy >= 0.97
    assert [W.shape for W in network.weights] == [(64, 300), (300, 100), (100, 10)]
    assert "bench/train_digits.py" in network.provenance


def test_the_script_makes_the_file(tmp_path):
    """The same split, and weights as good; other processors and versions round otherwise, so no more is asked."""
    target = tmp_path / "again.npz"
    script = ROOT / "bench" / "train_digits.py"
    done = subprocess.run(
        [sys.executable, str(script), "--output", str(target)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert "accuracy" in done.stdout
    again, first = dict(np.load(target, allow_pickle=False)), stored()
    assert again.keys() == first.keys()
    for name in SPLIT_NAMES:
        np.testing.assert_array_equal(again[name], first[name])
    for name in ("W0", "W1", "W2"):
        assert again[name].dtype == np.float16 and again[name].shape == first[name].shape
    assert abs(again["test_accuracy"] - first["test_accuracy"]) <= 0.01


def test_shifts_move_by_one_pixel_and_keep_the_image():
    image = np.zeros((1, 64), np.float32)
    image[0, 8 * 3 + 4] = 1
    rows, columns = np.nonzero(shifted(image).reshape(5, 8, 8))[1:]
    moves = set(zip((rows - 3).tolist(), (columns - 4).tolist(), strict=True))
    assert moves == {(0, 0), (0, 1), (0, -1), (1, 0), (-1, 0)}


# the demonstration


def test_every_layer_is_certified(report):
    assert report.certified and not report.interrupted
    assert [layer.name for layer in report.layers] == ["hidden 1", "hidden 2"]
    for layer in report.layers:
        assert layer.status == "solved" and abs(layer.gap) <= 1e-3 and layer.violation <= 1e-4
        assert layer.seconds > 0 and layer.iterations > 0


def test_weights_go_and_the_error_stays_within_epsilon(report):
    for layer in report.layers:
        assert 0 < layer.weights_kept < 0.7 * layer.weights
        assert 0.5 * EPSILON < layer.error_calibration <= EPSILON * (1 + 1e-4)
        # on samples that the program has not seen, nearly as good
        assert np.isfinite(layer.error_heldout)
        assert layer.error_heldout <= 1.2 * layer.error_calibration
    total, kept = (sum(getattr(layer, name) for layer in report.layers) for name in ("weights", "weights_kept"))
    assert kept < 0.35 * total


def test_the_accuracy_hardly_drops(report):
    assert report.accuracy_dense >= 0.97
    assert report.accuracy_pruned >= report.accuracy_dense - 0.0051


def test_the_trade_off_is_monotone(report):
    epsilons = [point["epsilon"] for point in report.trade_off]
    assert epsilons == sorted({*CURVE, EPSILON})
    assert all(point["certified"] for point in report.trade_off)
    for i in range(2):
        kept = [point["kept"][i] for point in report.trade_off]
        assert kept == sorted(kept, reverse=True)
    chosen = report.trade_off[epsilons.index(EPSILON)]
    assert chosen["accuracy"] == report.accuracy_pruned
    assert chosen["kept"] == pytest.approx(
        [layer.weights_kept / (layer.inputs * layer.neurons) for layer in report.layers]
    )


def test_the_saved_network_is_the_reported_one(report, folder):
    assert report.network == folder / "digits_pruned.npz"
    with np.load(report.network, allow_pickle=False) as bundle:
        weights = [bundle[f"W{i}"] for i in range(3)]
        biases = [bundle[f"b{i}"] for i in range(3)]
    original, (images, labels) = load_network(), digits()
    test = original.split["test"]
    assert accuracy(weights, biases, images[test], labels[test]) == report.accuracy_pruned
    assert [np.count_nonzero(W) for W in weights[:2]] == [layer.weights_kept for layer in report.layers]
    np.testing.assert_array_equal(weights[2], original.weights[2])
    # the error on the held-out samples, once more from the file
    heldout = shifted(images[original.split["heldout"]])
    before = hidden_outputs(original.weights, original.biases, heldout)
    for i, layer in enumerate(report.layers):
        after = np.maximum(before[i] @ weights[i] + biases[i], 0)
        error = np.linalg.norm(after - before[i + 1]) / np.linalg.norm(before[i + 1])
        assert error == pytest.approx(layer.error_heldout, rel=1e-4)


def test_the_picture(report, folder):
    from matplotlib import image

    assert report.picture == folder / "demo.png"
    pixels = image.imread(report.picture)
    assert 1000 <= pixels.shape[1] <= 1400 and pixels.shape[0] >= 500
    assert pixels.std() > 0.1


def test_nothing_else_is_left_in_the_folder(report, folder):
    assert sorted(path.name for path in folder.iterdir()) == ["demo.png", "digits_pruned.npz"]


def test_progress_names_the_stages(report, stages):
    names = list(dict.fromkeys(stage for stage, _ in stages))
    assert names[:3] == ["compiling the kernels", "pruning hidden 1", "pruning hidden 2"] and names[-1] == "drawing"
    assert any(check is not None and "gap" in check for _, check in stages)


def test_the_report_is_json(report):
    found = json.loads(to_json(report))
    assert found["epsilon"] == EPSILON and found["layers"][0]["name"] == "hidden 1"
    assert found["images"] == {"train": 797, "calibration": 300, "heldout": 200, "test": 500}
    assert found["samples"] == {"calibration": 1500, "heldout": 1000}


@pytest.mark.parametrize("at", ["pruning hidden 1", "pruning hidden 2", "trade-off, epsilon 0.05, hidden 1"])
def test_ctrl_c_ends_it_early_with_a_report(tmp_path, at):
    """SIGINT at a check of the given solve: what was finished is reported and written, nothing more is solved."""
    seen = []

    def progress(stage: str, check: dict | None) -> None:
        seen.append(stage)
        if stage == at and check is not None and seen.count(at) == 3:
            signal.raise_signal(signal.SIGINT)

    report = run_demo(EPSILON, tmp_path, progress=progress)
    assert report.interrupted and not report.certified
    assert list(dict.fromkeys(seen))[-2:] == [at, "drawing"]
    assert report.network.exists() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finished = at.startswith("trade-off")
    assert len(report.layers) == (1 if at.endswith("g hidden 1") else 2)
    assert report.layers[-1].status == ("solved" if finished else "interrupted")
    assert [point["epsilon"] for point in report.trade_off] == ([EPSILON] if finished else [])
    assert (report.picture is not None) == finished


def test_ctrl_c_during_compilation(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_demo(EPSILON, tmp_path, progress=lambda stage, check: signal.raise_signal(signal.SIGINT))


# its command


def test_the_command(report, tmp_path, monkeypatch, capsys):
    """What is printed of a finished report; the run itself is the one above."""
    monkeypatch.setattr("nettrim.demo.run_demo", lambda *arguments, **options: report)
    assert cli.main(["demo", "--output", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    for layer in report.layers:
        assert f"{layer.weights_kept}" in out and f"{layer.error_heldout:.2%}" in out
    assert str(report.picture) in out and f"{report.accuracy_pruned:.1%} pruned" in out and err == ""
    assert max(len(line.rstrip()) for line in out.splitlines() if str(report.network.parent) not in line) <= 110
    assert cli.main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["certified"] is True


@pytest.mark.parametrize(("module", "name"), [("sklearn.datasets", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named_with_its_extra(module, name, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{name}.*extra demo"):
        run_demo(EPSILON, tmp_path / "made")
    assert cli.main(["demo", "--output", str(tmp_path / "made")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and ".[demo]" in err and err.count("\n") == 1
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("epsilon", [0, -0.1, 1.5, float("nan"), "0.1", True])
def test_a_wrong_epsilon_is_refused(epsilon, tmp_path):
    with pytest.raises(ValueError, match="epsilon must be a number above 0"):
        run_demo(epsilon, tmp_path)


def test_an_output_that_is_a_file_is_refused_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--output", str(tmp_path / "file")]) == 1
    assert "file" in capsys.readouterr().err
