"""The gallery's examples run, draw their pictures, and show what the page says that they show."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
GALLERY = ROOT / "docs" / "gallery"
EXAMPLES = runpy.run_path(str(GALLERY / "__main__.py"), run_name="gallery")["EXAMPLES"]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run an example, with its picture going to a folder of its own; what it has defined is returned."""
    monkeypatch.syspath_prepend(str(GALLERY))
    shared = ("digits", "picture")
    threads = torch.get_num_threads()

    def example(name: str) -> dict:
        # on a busy machine the threads of small products would wait for each other
        with threadpool_limits(1):
            found = runpy.run_path(str(GALLERY / f"{name}.py"))
        assert [path.name for path in tmp_path.iterdir()] == [f"gallery_{name}.png"]
        return found

    with matplotlib.rc_context():
        monkeypatch.setattr(importlib.import_module("picture"), "FOLDER", tmp_path)
        yield example
    torch.set_num_threads(threads)
    for module in shared:
        sys.modules.pop(module, None)


def solved(*solutions) -> bool:
    return all(solution.status == "solved" for solution in solutions)


def test_every_example_is_on_the_page_with_its_picture():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    files = {path.stem for path in GALLERY.glob("*.py")} - {"__main__", "digits", "picture"}
    assert files == set(EXAMPLES)
    for name in EXAMPLES:
        assert f"gallery/{name}.py" in page and f"_static/gallery_{name}.png" in page
        assert (ROOT / "docs" / "_static" / f"gallery_{name}.png").exists()


def test_curve(run):
    path = run("curve")["path"]
    assert solved(*path) and list(path.densities) == sorted(path.densities)
    assert all(1 < error / epsilon < 1.3 for error, epsilon in zip(path.heldout, path.epsilons, strict=True))


def test_rounds(run):
    found = run("rounds")
    plain, sol = found["plain"], found["sol"]
    assert solved(plain, sol) and sol.certificate.nnz < 0.7 * plain.certificate.nnz
    assert np.median(np.abs(sol.W[sol.W != 0])) > np.median(np.abs(plain.W[plain.W != 0]))


def test_methods(run):
    found = run("methods")
    exact, first_order = found["exact"], found["first_order"]
    assert solved(exact, first_order) and 10 * exact.iterations < first_order.iterations
    assert {row["method"] for row in exact.history} == {"working_set"}
    assert {row["method"] for row in first_order.history} == {"admm"}


def test_inputs(run):
    l1, rows, reweighted = run("inputs")["solutions"].values()
    pixels = [np.count_nonzero((sol.W[:-1] != 0).any(axis=1)) for sol in (l1, rows, reweighted)]
    assert solved(l1, rows, reweighted) and pixels[0] > pixels[1] > pixels[2]
    assert l1.density < rows.density


def test_moments(run):
    found = run("moments")
    assert found["gram"].P == 600 and solved(*found["path"])


@pytest.mark.slow
def test_convolution(run):
    found = run("convolution")
    assert solved(found["sol"]) and np.mean(found["kernels"] != 0) < 0.7
    assert found["dense"] > 0.95 and found["pruned"] > found["dense"] - 0.05


@pytest.mark.slow
def test_network(run):
    found = run("network")
    for parallel, cascade in zip(*(found["pruned"][scheme] for scheme in ("parallel", "cascade")), strict=True):
        assert all(report.status == "solved" for net in (parallel, cascade) for report in net.reports)
        assert cascade.kept > parallel.kept
    last = [(net(found["test"]).argmax(1) == found["test_labels"]).mean() for net in (parallel, cascade)]
    assert last[1] > last[0]


@pytest.mark.slow
def test_search(run):
    ours, *others = run("search")["errors"].values()
    assert (np.array(ours) < np.min(others, axis=0)).all()
