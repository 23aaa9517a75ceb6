"""The coreset study: its smoke preset runs, goes on, and says what its records hold; its networks are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from nettrim import cli  # noqa: E402
from nettrim.studies import coreset_report, training  # noqa: E402
from nettrim.studies.coreset_networks import Case, layers, linear, load, put, trained, with_ones  # noqa: E402
from nettrim.studies.records import Records  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("study")
    assert cli.main(["study", "coreset-report", "--preset", "smoke", "-o", str(made)]) == 0
    return made


def test_records_and_tables(folder, capsys):
    records = Records(folder / "coreset-report.smoke.jsonl", coreset_report.KEY)
    # two seeds of seven parts, and of one for each easy case
    assert len(records.rows) == 2 * (7 + 2)
    tables = coreset_report.tables(records)
    assert len(tables) == 7
    for rows in tables.values():
        assert rows and all(row.keys() == rows[0].keys() for row in rows)
        assert not any("nan" in cell for row in rows for cell in row.values())
    capsys.readouterr()
    assert cli.main(["table", str(folder), "--json"]) == 0
    assert next(iter(json.loads(capsys.readouterr().out).values())) == tables


def test_what_is_guaranteed_is_kept(folder):
    records = Records(folder / "coreset-report.smoke.jsonl", coreset_report.KEY)
    seen = 0
    for record in records.rows:
        for row in record["rows"] if record["part"] == "weights" else []:
            if row["translation"] == "residuals":
                # residuals of the judged samples themselves: no probability is involved
                assert row["guaranteed"] >= row["share"] - 1e-9 and row["unchanged"] >= row["guaranteed"]
            elif row["translation"] == "signed":
                assert row["guaranteed"] >= row["share"] - 1e-9
            seen += 1
    assert seen > 100


def test_a_study_goes_on_where_it_stopped(folder, tmp_path, capsys):
    whole = (folder / "coreset-report.smoke.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "coreset-report.smoke.jsonl").write_text("".join(whole[:-1]) + whole[-1][:50])
    assert cli.main(["study", "coreset-report", "--preset", "smoke", "-o", str(tmp_path)]) == 0
    again = (tmp_path / "coreset-report.smoke.jsonl").read_text().splitlines(keepends=True)
    assert again[:-1] == whole[:-1]
    old, new = (json.loads(lines[-1]) for lines in (whole, again))
    assert old["rows"] == new["rows"] and old["accuracy"] == new["accuracy"]


def test_figures(folder, capsys):
    capsys.readouterr()
    assert cli.main(["plot", str(folder), "-o", str(folder / "figures"), "--json"]) == 0
    (paths,) = json.loads(capsys.readouterr().out).values()
    assert len(paths) == 4 and all(open(path, "rb").read(4) == b"\x89PNG" for path in paths)


@pytest.mark.parametrize(("easy", "left"), [("weights", 0.2), ("neurons", 0.3)])
def test_easy_networks_are_sparse(tmp_path, easy, left):
    samples = load("rectified synthetic_images", 0)
    case = Case("easy", "small", "rectified synthetic_images", (), easy, left, epochs=1)
    model = trained(case, samples, 0, tmp_path, lambda line: None)
    found = layers(model, samples.validation[0])
    if easy == "weights":
        assert np.count_nonzero(found.W_out[:-1]) == round(0.2 * 200)
    else:
        alive = found.W_out[:-1].any(1)
        assert alive.sum() == 6 and not found.W_in[:, ~alive].any()
    # and come from the folder the next time
    again = trained(case, samples, 0, tmp_path, lambda line: pytest.fail("trained again"))
    np.testing.assert_array_equal(layers(again, samples.validation[0]).W_out, found.W_out)


def test_layers_are_the_network(tmp_path):
    samples = load("rectified synthetic_images", 1)
    model = trained(Case("difficult", "small", epochs=1), samples, 1, tmp_path, lambda line: None)
    x = samples.test[0]
    for first in (0, -2):
        found = layers(model, x, first)
        one, _ = linear(model, first)
        made = training.outputs(torch.nn.Sequential(*list(model)[: int(one) + 1]), x)
        np.testing.assert_allclose((found.W_in.T @ found.X).T, made, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose((found.W_out.T @ found.hidden).T, training.outputs(model, x), rtol=1e-4, atol=1e-5)
    _, last = linear(model, -1)
    assert put(last, np.zeros((21, 10), np.float32)).sum() == 0 and not training.outputs(model, x).any()
    np.testing.assert_array_equal(with_ones(np.zeros((2, 3))), [[0] * 3, [0] * 3, [1] * 3])
