"""The study of probabilistic bounds: its smoke preset runs and goes on, its tables and figures are made."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

pytest.importorskip("torch")

from nettrim.bounds import laws
from nettrim.studies import probabilistic
from nettrim.studies.records import Records


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("study")
    records = Records(folder / "probabilistic.smoke.jsonl", probabilistic.KEY)
    probabilistic.run(probabilistic.PRESETS["smoke"], records, folder, lambda line: None)
    return folder, records


def test_the_records(made):
    _, records = made
    config = probabilistic.PRESETS["smoke"]
    each = len(config.alphas) * 2 * len(config.seeds)
    counts = {part: sum(row["part"] == part for row in records.rows) for part in ("layer", "network", "initial")}
    assert counts == {"layer": 2 * each, "network": 2 * each, "initial": 2 * each}
    for row in records.rows:
        if row["part"] == "network":
            assert 0 < row["lower"] <= row["upper"]
        else:
            assert row["pruned"] == laws.pruned_fraction(row["width"] ** 2, row["alpha"])
            assert row["error"] > 0 and row["shuffled"] > 0 and row["iid"] > 0
    for row in records.rows:
        if row["part"] == "initial":
            # PyTorch's initial weights are uniform with K = 1
            assert 0.9 < row["K"] <= 1 and abs(row["kurtosis"] + 1.2) < 0.5
            assert row["moved"] > 0


def test_it_goes_on(made):
    folder, records = made
    config, path = probabilistic.PRESETS["smoke"], folder / "again.jsonl"
    lines = records.path.read_text().splitlines()
    dropped = [3, len(lines) // 2, len(lines) - 1]
    path.write_text("".join(line + "\n" for k, line in enumerate(lines) if k not in dropped))
    again = Records(path, probabilistic.KEY)
    probabilistic.run(config, again, folder, lambda line: None)
    assert len(again.rows) == len(records.rows)
    for k in dropped:
        row = {name: value for name, value in records.rows[k].items() if name != "environment"}
        found = again.find(**row)
        for name, value in row.items():
            assert found[name] == (pytest.approx(value, rel=1e-9) if isinstance(value, float) else value)
    before, said = path.read_text(), []
    probabilistic.run(config, again, folder, said.append)
    assert path.read_text() == before and said == []


def test_the_tables(made):
    _, records = made
    tables = probabilistic.tables(records)
    assert len(tables) == 5
    for title, rows in tables.items():
        assert rows and len({tuple(row) for row in rows}) == 1, title
        for row in rows:
            for name, cell in row.items():
                assert isinstance(cell, str)
                assert cell or (name == "trained: / (pruned x norm)" and row["mask"] == "magnitude")
                if cell and name != "mask":
                    numbers = [float(part) for part in re.split(r" ± ", cell)]
                    assert all(map(math.isfinite, numbers)), (title, name, cell)
    assert probabilistic.tables(Records(made[0] / "none.jsonl", probabilistic.KEY)) == {}


def test_the_figures(made, tmp_path):
    pytest.importorskip("matplotlib")
    paths = probabilistic.plot(made[1], tmp_path / "figures")
    assert [path.name for path in paths] == [f"probabilistic_{p}.png" for p in ("layers", "networks", "trained")]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_the_presets_can_have_intervals():
    for name in ("cpu", "paper"):
        config = probabilistic.PRESETS[name]
        assert len(config.seeds) >= 3 and min(config.alphas) > 0 and max(config.alphas) < 0.5
        assert min(len(np.unique(w)) for w in (config.widths, config.deep_widths, config.trained_widths)) >= 3
