"""``nettrim bounds``: coresets and residuals of a last layer from files; wrong files are named."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nettrim import cli


@pytest.fixture
def layer(tmp_path):
    rng = np.random.default_rng(0)
    X = np.vstack([rng.random((30, 400)), np.ones((1, 400))])
    W = rng.standard_normal((31, 4)) * rng.random((31, 1)) ** 2
    Y = W.T @ X
    np.savez(tmp_path / "layer.npz", X=X, W=W, Y=Y, labels=Y.argmax(0))
    return tmp_path


def test_table_and_json_agree(layer, capsys):
    assert cli.main(["bounds", str(layer / "layer.npz"), "--share", "0.8"]) == 0
    text = capsys.readouterr().out
    assert cli.main(["bounds", str(layer / "layer.npz"), "--share", "0.8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {row["translation"] for row in found["coresets"]} == {"signed", "median Delta", "unsigned"}
    for row in found["coresets"]:
        assert f"{row['density']:.1%}" in text and (f"{row['draws']:,}" in text or row["draws"] == 0)
        if row["translation"] == "signed":
            assert row["guaranteed"] >= 0.8 - 1e-9 and row["unchanged"] >= row["guaranteed"]
    assert 0 <= found["assumption_fails_for"] <= 1 and found["delta_median"] >= 1


def test_residuals_of_a_solution(layer, capsys):
    problem, solution = str(layer / "layer.npz"), str(layer / "out.npz")
    assert cli.main(["solve", problem, "-o", solution, "--linear", "--epsilon", "0.05"]) == 0
    capsys.readouterr()
    assert cli.main(["bounds", problem, solution, "--json"]) == 0
    pruned = json.loads(capsys.readouterr().out)["pruned"]
    assert 0 < pruned["by_ball"] <= pruned["by_residuals"] <= pruned["unchanged"] <= 1 and pruned["samples"] == 400
    # without the dense weights there are no coresets
    with np.load(problem) as held:
        np.savez(layer / "outputs.npz", X=held["X"], Y=held["Y"])
    assert cli.main(["bounds", str(layer / "outputs.npz"), solution]) == 0
    text = capsys.readouterr().out
    assert "coreset" not in text and f"{pruned['by_ball']:.2%}" in text
    # pruned weights of any origin, without what `solve` writes beside them
    with np.load(solution) as held:
        np.savez(layer / "bare.npz", W=held["W"])
    assert cli.main(["bounds", str(layer / "outputs.npz"), str(layer / "bare.npz"), "--json"]) == 0
    bare = json.loads(capsys.readouterr().out)["pruned"]
    assert bare["by_residuals"] == pruned["by_residuals"] and bare["by_ball"] >= pruned["by_ball"]


def test_wrong_files(layer, capsys):
    with np.load(layer / "layer.npz") as held:
        arrays = dict(held)
    for change, message in (
        ({"X": -arrays["X"]}, "X must be non-negative"),
        ({"W": arrays["W"][:5]}, "a row for each input"),
        ({"labels": arrays["labels"][:5]}, "labels must be 400 integers"),
        ({"labels": arrays["labels"] * 1.5}, "labels must be 400 integers"),
        ({"W": None, "Y": None}, "lacks W"),
        ({"W": None}, "with Y, give OUT.npz to judge it"),
        ({"Y": np.maximum(arrays["Y"], 0)}, "is not W^T X: they differ by"),
        ({"X": arrays["X"][:-1], "W": arrays["W"][:-1]}, "is not W^T X: they differ by"),
        ({"Y": arrays["Y"][:2]}, "must be 4 x 400"),
    ):
        np.savez(layer / "wrong.npz", **{k: v for k, v in (arrays | change).items() if v is not None})
        assert cli.main(["bounds", str(layer / "wrong.npz")]) == 1
        assert message in capsys.readouterr().err
    for options, message in (
        (["--share", "0"], "share must be in"),
        (["--delta", "1"], "delta must be in"),
        (["--seed", "-1"], "seed must be"),
    ):
        assert cli.main(["bounds", str(layer / "layer.npz"), *options]) == 1
        assert message in capsys.readouterr().err
