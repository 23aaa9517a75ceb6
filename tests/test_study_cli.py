"""``nettrim table`` and ``nettrim plot``: from the records of studies alone, apart from what made them."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

pytest.importorskip("torch")

from nettrim import cli
from nettrim.cli.study import STUDIES
from nettrim.studies import networks
from nettrim.studies.records import Records


@pytest.fixture
def drawing(monkeypatch):
    """A study "made-up" with two tables, one of them empty, and a figure."""
    study = ModuleType("nettrim.studies.made_up")
    study.KEY, study.PRESETS = ("seed",), {"smoke": None}

    def run(config, records, folder, say):
        if records.find(seed=0) is None:
            records.add(seed=0, value=0.5)

    def tables(records):
        found = [{"seed": str(row["seed"]), "kind": "word", "value": f"{-row['value']:g}"} for row in records.rows]
        return {"Values": found, "Others": []}

    def plot(records, folder):
        from matplotlib import pyplot as plt

        file = folder / f"{records.path.stem}.values.png"
        figure, axes = plt.subplots()
        axes.plot([row["value"] for row in records.rows])
        figure.savefig(file)
        plt.close(figure)
        return [file]

    study.run, study.tables, study.plot = run, tables, plot
    monkeypatch.setitem(sys.modules, "nettrim.studies.made_up", study)
    monkeypatch.setitem(STUDIES, "made-up", "made_up")


def of_networks(folder):
    """Records as the study of networks makes them."""
    records = Records(folder / "networks.cpu.jsonl", networks.KEY)
    for seed, kept in enumerate((0.1, 0.3)):
        about = {"case": "fc", "seed": seed, "scheme": "cascade", "epsilon": 0.1, "rounds": 1, "recipe": "abc"}
        records.add(**about, kept=kept, dense={"test": 0.9}, pruned={"test": 0.8})
    return records.path


def test_tables_of_a_folder(tmp_path, capsys, drawing):
    of_networks(tmp_path)
    assert cli.main(["study", "made-up", "-o", str(tmp_path)]) == 0
    alone = capsys.readouterr().out
    # another program's file is left alone
    (tmp_path / "others.cpu.jsonl").write_text("not JSON\n")
    assert cli.main(["table", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert alone in text and "20.00 ± 127.06" in text and "Values" in text and "no records yet" in text
    assert "0     word   -0.5" in text
    assert cli.main(["table", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [str(tmp_path / name) for name in ("made-up.smoke.jsonl", "networks.cpu.jsonl")]
    first, second = found.values()
    assert first == {"Values": [{"seed": "0", "kind": "word", "value": "-0.5"}], "Others": []}
    assert [row["network"] for rows in second.values() for row in rows] == ["fc"]


def test_tables_of_one_file(tmp_path, capsys, drawing):
    path = of_networks(tmp_path)
    assert cli.main(["study", "made-up", "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    assert cli.main(["table", str(path)]) == 0
    text = capsys.readouterr().out
    assert "cascade" in text and "Values" not in text and text.endswith(f"records  {path}\n")


def test_figures(tmp_path, capsys, drawing):
    pytest.importorskip("matplotlib")
    path = of_networks(tmp_path)
    assert cli.main(["study", "made-up", "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    figure = tmp_path / "made-up.smoke.values.png"
    assert cli.main(["plot", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"written to {figure}" in text and f"{path}: this study has no figures" in text
    assert figure.read_bytes().startswith(b"\x89PNG")
    other = tmp_path / "figures" / "here"
    assert cli.main(["plot", str(tmp_path), "-o", str(other), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found.values()) == [[str(other / figure.name)], []] and (other / figure.name).exists()


@pytest.mark.parametrize("command", ["table", "plot"])
def test_what_is_refused(tmp_path, capsys, command):
    assert cli.main([command, str(tmp_path / "nowhere")]) == 1
    assert "is not there" in capsys.readouterr().err
    assert cli.main([command, str(tmp_path)]) == 1
    assert "has no records of a study" in capsys.readouterr().err
    other = tmp_path / "others.cpu.jsonl"
    other.write_text("")
    assert cli.main([command, str(other)]) == 1
    assert "coreset-report" in capsys.readouterr().err
    damaged = tmp_path / "networks.cpu.jsonl"
    damaged.write_text("no\n{}\n")
    assert cli.main([command, str(tmp_path)]) == 1
    assert "line 1" in capsys.readouterr().err


def test_rows_may_lack_columns():
    from nettrim.cli.study import lines_of

    assert lines_of([{"a": "1"}, {"a": "2", "b": "3"}]) == [("a", "b"), ("1", ""), ("2", "3")]
