"""`nettrim prune`, `verify` and `report` on runs: what is written, resumed, refused and found to be tampered with."""

from __future__ import annotations

import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

import nettrim.torch as ntt  # noqa: E402
from nettrim import cli  # noqa: E402
from nettrim.cli.job import Job, arguments  # noqa: E402

CERTIFIED, USAGE, NOT_CONVERGED = 0, 1, 2

MODEL = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 3))
    return net.train()

def images():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.join = nn.Embedding(5, 4), nn.Linear(12, 6)

    def forward(self, x, token):
        return torch.relu(self.join(torch.cat([x, self.table(token)], 1)))

def two():
    torch.manual_seed(0)
    return Two()

def upwards():
    return nn.Sequential(nn.Linear(12, 12), nn.Unflatten(1, (3, 4)), nn.ConvTranspose1d(3, 2, 3))

def broken():
    raise KeyError("no such layer")

number = 3
built = build()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with net.py and x.npz."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("net.py").write_text(MODEL)
    np.savez("x.npz", X=rng.standard_normal((300, 12)).astype(np.float32))
    np.savez(
        "two.npz",
        x=rng.standard_normal((200, 8)).astype(np.float32),
        token=rng.integers(0, 5, 200),
        labels=rng.integers(0, 3, 200),
    )
    np.save("images.npy", rng.standard_normal((60, 1, 6, 6)).astype(np.float32))
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process: (exit code, standard output, standard error)."""

    def call(*given: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in given])
        return code, *capsys.readouterr()

    return call


def prune(run, *more: Any, model: str = "net.py:build", data: str = "x.npz", epsilon: str = "0.1"):
    return run("prune", model, "--data", data, "--epsilon", epsilon, "-o", "run", *more)


# runs


def test_run_verify_report(folder, run):
    code, out, err = prune(run)
    assert code == CERTIFIED
    for word in ("solved", "kept", "error", "held out", "run/pruned.safetensors", "nettrim verify"):
        assert word in out
    assert "plan: 3 layers, 270 samples, 30 held out" in err and "layer 3 of 3, 4: solved" in err
    assert {"job.json", "run.json", "pruned.safetensors", "pruned.json"} < set(os.listdir("run"))
    code, out, err = run("verify", "run")
    assert code == CERTIFIED and err == "" and out.count("yes") == 3 and "--bound" in out
    code, out, err = run("report", "run")
    assert code == CERTIFIED and out.startswith("run/report.html") and err == ""


def test_it_is_what_the_library_does(folder, run):
    """With the weights of a file, and samples in batches of another size: the same pruned weights, bit for bit."""
    net = Job("net.py:build", str(folder), None, "x.npz").build()
    with torch.no_grad():
        net[0].weight.mul_(2)
    safetensors_torch.save_file(net.state_dict(), "w.safetensors")
    code, out, _ = prune(run, "--weights", "w.safetensors", "--scheme", "cascade", "--gamma", "1.2", "--json")
    assert code == CERTIFIED
    found = json.loads(out)
    X = torch.from_numpy(np.load("x.npz")["X"])
    expected = ntt.prune(net, [X[:256], X[256:]], 0.1, "cascade", gamma=1.2, feas_tol=1e-4)
    state, about = ntt.load("run/pruned.safetensors")
    assert all(torch.equal(state[key], value) for key, value in expected.model.state_dict().items())
    assert found["kept"] == expected.kept == about["kept"] and found["scheme"] == "cascade"
    assert [row["status"] for row in found["layers"]] == ["solved"] * 3
    assert found["bytes"]["dense"] > 0 and found["weights"] == "run/pruned.safetensors"


def test_patterns_and_layout(folder, run):
    code, out, _ = prune(run, "--epsilon", "*=0.05", "--ignore", "4", "--layout", "csr", "--json", epsilon="2=0.3")
    assert code == CERTIFIED
    rows = json.loads(out)["layers"]
    assert [row["name"] for row in rows] == ["0", "2"]
    assert [row["epsilon"] for row in rows] == pytest.approx([0.05, 0.3])
    state, _ = ntt.load("run/pruned.safetensors")
    assert torch.equal(state["4.weight"], Job.read(Path("run")).build()[4].weight)


def test_plan_only(folder, run):
    code, out, err = run("prune", "net.py:build", "--data", "x.npz", "--plan")
    assert code == CERTIFIED and err == "" and "3 layers" in out and not Path("run").exists()
    code, out, err = run("prune", "net.py:build", "--data", "x.npz", "--plan", "--json", "--samples", "100")
    plan = json.loads(out)
    assert plan["samples"] == 90 and plan["held_out"] == 10
    assert [(row["N"], row["M"], row["P"]) for row in plan["layers"]] == [(13, 20, 90), (21, 10, 90), (11, 3, 90)]
    assert all(row["memory"] > 0 and row["seconds"] > 0 for row in plan["layers"])


def test_batch_norms_are_folded(folder, run):
    code, out, _ = prune(run, model="net.py:images", data="images.npy")
    assert code == CERTIFIED and "1 batch norms" in out
    assert run("verify", "run", "--bound")[0] == CERTIFIED
    assert run("report", "run")[0] == CERTIFIED
    code, _, err = prune(run, "--no-fold", model="net.py:images", data="images.npy")
    assert code == USAGE and "another run" in err


def test_several_inputs(folder, run):
    code, out, err = prune(run, model="net.py:two", data="two.npz")
    assert code == USAGE and out == "" and "--inputs" in err and "labels" in err
    code, out, _ = prune(run, "--inputs", "x,token", model="net.py:two", data="two.npz")
    assert code == CERTIFIED and "join" in out
    assert "left        20 parameters of other modules (Embedding), as they were" in out
    assert Job.read(Path("run")).inputs == ("x", "token")
    code, out, _ = run("verify", "run", "--bound", "--json")
    assert code == CERTIFIED
    found = json.loads(out)
    assert found["holds"] and abs(found["layers"][0]["gap"]) <= 1e-3


def test_a_package_and_a_module_object(folder, run):
    Path("parts_of_a_test").mkdir()
    Path("parts_of_a_test/net.py").write_text(MODEL)
    assert prune(run, model="parts_of_a_test.net:built")[0] == CERTIFIED


# going on


def test_interrupted_and_resumed(folder, run, monkeypatch):
    assert prune(run)[0] == CERTIFIED
    Path("run").rename("whole")
    from nettrim.torch import layer_run

    solve, solved = layer_run.solve_groups, []

    def second_stops(layer, *given, **settings):
        solved.append(layer.name)
        if len(solved) == 2:
            raise KeyboardInterrupt
        return solve(layer, *given, **settings)

    monkeypatch.setattr(layer_run, "solve_groups", second_stops)
    code, out, err = prune(run)
    assert code == NOT_CONVERGED and out == "" and "1 of 3 layers are finished" in err and "Traceback" not in err
    assert not Path("run/pruned.safetensors").exists()
    for command in ("verify", "report"):
        code, _, err = run(command, "run")
        assert code == USAGE and "not finished" in err

    def counted(layer, *given, **settings):
        solved.append(layer.name)
        return solve(layer, *given, **settings)

    monkeypatch.setattr(layer_run, "solve_groups", counted)
    assert prune(run)[0] == CERTIFIED
    assert solved == ["0", "2", "2", "4"]
    state, expected = (ntt.load(f"{name}/pruned.safetensors")[0] for name in ("run", "whole"))
    assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_layer_that_falls_short(folder, run):
    code, out, err = prune(run, "--time-limit", "1e-9")
    assert code == NOT_CONVERGED and "not certified within the tolerances: 0, 2" in err
    assert "keeps its own weights" in err and "time_limit" in out


# what is found and refused


def test_tampering_is_found(folder, run):
    prune(run)
    state, about = ntt.load("run/pruned.safetensors")
    net = Job.read(Path("run")).build()
    net.load_state_dict(state)
    with torch.no_grad():
        net[2].weight[0].mul_(1.5)
    from nettrim.torch.store import save

    save("run/pruned.safetensors", net, about)
    code, out, err = run("verify", "run")
    assert code == NOT_CONVERGED and "NO" in out and "does not hold: 2" in err


def test_other_samples_are_told(folder, run):
    prune(run)
    np.savez("x.npz", X=np.load("x.npz")["X"][::-1])
    _, _, err = run("verify", "run")
    assert "other samples" in err


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["net.py"], ["module:function"]),
        (["net.py:"], ["module:function"]),
        (["nowhere.py:build"], ["nowhere.py", "does not exist"]),
        (["nowhere_at_all:build"], ["importing nowhere_at_all", "ModuleNotFoundError"]),
        (["net.py:nothing"], ["'nothing'"]),
        (["net.py:number"], ["neither a module nor a function"]),
        (["net.py:broken"], ["net.py:broken()", "KeyError", "no such layer"]),
        (["net.py:images"], ["the model, on the first samples", "X (12,) float32"]),
        (["net.py:build", "--weights", "none.safetensors"], ["--weights", "does not exist"]),
        (["net.py:build", "--weights", "x.npz"], ["--weights", "safetensors.torch.save_file"]),
        (["net.py:build", "--weights", "other.safetensors"], ["--weights", "does not fit"]),
        (["net.py:build", "--epsilon", "much"], ["--epsilon", "much"]),
        (["net.py:build", "--epsilon", "2"], ["--epsilon", "between 0 and 1"]),
        (["net.py:build", "--epsilon", "0.1", "--epsilon", "0.2"], ["--epsilon", "twice"]),
        (["net.py:build", "--epsilon", "0.1", "--epsilon", "0=0.2"], ["--epsilon", "either one number"]),
        (["net.py:build", "--epsilon", "0=0.1", "--epsilon", "0=0.2"], ["--epsilon", "'0' twice"]),
        (["net.py:build", "--epsilon", "o=0.1", "--epsilon", "*=0.2"], ["--epsilon", "'o'", "fits no layer"]),
        (["net.py:build", "--samples", "-5"], ["--samples", "at least 1"]),
        (["net.py:build", "--data", "long.npz"], ["no tensors"]),
        (["net.py:build", "--epsilon", "2=0.1"], ["--epsilon", "no pattern that fits layer '0'"]),
        (["net.py:build", "--epsilon", "*=0.1", "--epsilon", "2=0.3"], ["'2'", "the first that fits counts"]),
        (["net.py:build", "--epsilon", "2=0.1", "--scheme", "cascade"], ["first layer's"]),
        (["net.py:build", "--scheme", "serial"], ["--scheme", "cascade"]),
        (["net.py:build", "--targets", "fc*"], ["--targets", "'fc*'", "'0'"]),
        (["net.py:build", "--ignore", "head"], ["--ignore", "'head'"]),
        (["net.py:upwards"], ["is a transposed convolution", "leave it out with --ignore"]),
        (["net.py:build", "--memory", "much"], ["--memory", "4GB"]),
        (["net.py:build", "--holdout", "1"], ["--holdout"]),
        (["net.py:build", "--layout", "sparse"], ["--layout"]),
        (["net.py:build", "--batch-size", "0"], ["--batch-size"]),
        (["net.py:build", "--inputs", "Z"], ["lacks Z"]),
        (["net.py:build", "--gap-tol", "-1"], ["--gap-tol"]),
        (["net.py:build", "--data", "none.npz"], ["none.npz", "does not exist"]),
        (["net.py:build", "--data", "nan.npz"], ["NaN"]),
        (["net.py:build", "--data", "text.npz"], ["numbers"]),
        (["net.py:build", "--data", "object.npy"], ["object.npy"]),
        (["net.py:build", "-o", "net.py"], ["--output", "not a folder"]),
    ],
)
def test_refused(folder, run, given, words):
    safetensors_torch.save_file({"weight": torch.zeros(2)}, "other.safetensors")
    np.savez("nan.npz", X=np.full((5, 12), np.nan))
    np.savez("text.npz", X=np.array(["a", "b"]))
    np.savez("long.npz", X=np.zeros((5, 12), np.longdouble))
    np.save("object.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    data = [] if "--data" in given else ["--data", "x.npz"]
    code, out, err = run("prune", *given, *data, *([] if "-o" in given else ["-o", "run"]))
    assert code == USAGE and out == "" and "Traceback" not in err
    for word in words:
        assert word in err, err
    assert not Path("run").exists()


def test_refused_folders(folder, run):
    Path("run").mkdir()
    for command in ("verify", "report"):
        code, out, err = run(command, "run")
        assert code == USAGE and out == "" and "job.json" in err
    Path("run/job.json").write_text('{"model": 3}')
    Path("run/pruned.safetensors").write_bytes(b"")
    code, _, err = run("verify", "run")
    assert code == USAGE and "not what nettrim prune writes" in err
    assert run("verify", "x.npz")[0] == USAGE
    assert run("verify", "x.npz", "x.npz", "--bound")[0] == USAGE
    assert run("prune", "net.py:build", "--data", "x.npz")[0] == USAGE


# code and files that have moved, or are somebody else's


def test_code_beside_the_model_and_a_model_that_prints(folder, run):
    Path("sub").mkdir()
    Path("sub/parts_beside.py").write_text("WIDTH = 12\n")
    text = MODEL.replace("import torch\n", "import torch, warnings\nfrom parts_beside import WIDTH\n", 1)
    noisy = "    print('building')\n    torch.manual_seed(0)\n    warnings.warn('old', UserWarning)\n"
    Path("sub/statistics.py").write_text(text.replace("    torch.manual_seed(0)\n", noisy, 1))
    code, out, err = prune(run, "--json", model="sub/statistics.py:build")
    assert code == CERTIFIED and json.loads(out)["layers"]
    assert "building" in err
    import statistics

    assert statistics.median([1, 2, 3]) == 2


def test_a_project_that_has_moved(folder, run):
    Path("project").mkdir()
    for name in ("net.py", "x.npz"):
        Path(name).rename(Path("project", name))
    assert prune(run, model="project/net.py:build", data="project/x.npz")[0] == CERTIFIED
    Path("project").rename("moved")
    code, _, err = run("verify", "run")
    assert code == USAGE and "does not exist" in err
    for command in ("verify", "report"):
        assert run(command, "run", "--model", "moved/net.py:build", "--data", "moved/x.npz")[0] == CERTIFIED


def test_code_in_the_folder_of_a_run_is_not_run(folder, run):
    prune(run)
    Path("run/evil.py").write_text("open('ran', 'w')\ndef build(): pass\n")
    for place in (
        {"model": "evil.py:build", "folder": str(folder / "run")},
        {"model": "run/evil.py:build", "folder": "."},
    ):
        about = json.loads(Path("run/job.json").read_text())
        Path("run/job.json").write_text(json.dumps(about | place))
        for command in ("verify", "report"):
            code, _, err = run(command, "run")
            assert code == USAGE and "--model" in err and not Path("ran").exists()


# the page


class Page(HTMLParser):
    """Counts tags, and keeps what the page would fetch."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br", "link", "!doctype"):
            self.open.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1].append(data)


def test_the_page_needs_nothing_else_and_tells_the_truth(folder, run):
    prune(run)
    code, out, _ = run("report", "run", "--json")
    assert code == CERTIFIED and json.loads(out)["page"] == "run/report.html"
    text = Path("run/report.html").read_text()
    page = Page(text)
    assert page.open == [] and page.sources and all(s.startswith("data:image/") for s in page.sources)
    # two plots, and two pictures for each of three layers
    assert len(page.sources) == 2 + 6 and "http" not in re.sub(r'src="[^"]*"', "", text)
    about = json.loads(Path("run/pruned.json").read_text())
    rows = page.tables[0][1:]
    assert [row[0] for row in rows] == ["0", "2", "4"]
    for row, claimed in zip(rows, about["layers"], strict=True):
        assert f"{claimed['kept']:,} of {claimed['weights']:,}" in row and f"{claimed['gap']:.1e}" in row
    run("report", "run")
    assert Path("run/report.html").read_text() == text


def test_a_page_of_several_runs(folder, run):
    prune(run)
    Path("run").rename("tight <b>")
    prune(run, epsilon="0.3")
    code, _, _ = run("report", "tight <b>", "run", "-o", "both.html")
    assert code == CERTIFIED
    page = Page(Path("both.html").read_text())
    assert [row[0] for row in page.tables[0][1:]] == ["tight <b>", "run"] and len(page.sources) == 3 + 6
    Path("run").rename("loose")
    assert prune(run, "--targets", "0")[0] == CERTIFIED
    code, _, err = run("report", "tight <b>", "run")
    assert code == USAGE and "other layers" in err


def test_errors_on_the_page_are_those_of_the_layers(folder, run):
    """The comparison against a product by hand, and its ends: all weights kept, and none."""
    from nettrim.torch import comparison

    prune(run)
    net = Job.read(Path("run")).build().eval()
    X = torch.from_numpy(np.load("x.npz")["X"])
    found = comparison.compare(net, [(X,)], ["run/pruned.safetensors"], arguments)
    state, _ = ntt.load("run/pruned.safetensors")
    assert found.samples == 30 and found.held_out
    with torch.no_grad():
        inputs = torch.relu(net[0](X[270:]))
        before = torch.relu(net[2](inputs))
        after = torch.relu(inputs @ state["2.weight"].T + state["2.bias"])
    layer = found.layers[1]
    assert layer.points[0][1] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    assert layer.points[0][0] == pytest.approx(float((state["2.weight"] != 0).float().mean()))
    np.testing.assert_array_equal(layer.before, net[2].weight.detach().numpy().T)
    # nearly all weights, nearly no error
    assert layer.magnitude[0] > layer.magnitude[-1] and layer.magnitude[-1] < 0.1
    kept = comparison._largest(net[2].weight.detach(), 10)
    assert int(torch.count_nonzero(kept)) == 10
    assert kept.abs()[kept != 0].min() >= net[2].weight.abs()[kept == 0].max()


def test_a_page_of_a_run_that_fell_short(folder, run):
    prune(run, "--time-limit", "1e-9")
    code, _, _ = run("report", "run")
    assert code == CERTIFIED and "none proved" in Path("run/report.html").read_text()


def test_a_page_with_odd_names(folder, run):
    """Formulas, underscores, the same name twice, layers without any weight left."""
    Path("odd.py").write_text(
        "import torch\nfrom torch import nn\nfrom collections import OrderedDict\n"
        "def build():\n    torch.manual_seed(0)\n    net = nn.Sequential(OrderedDict([('$x_{$', nn.Linear(12, 5)), "
        "('<b>', nn.ReLU()), ('_last', nn.Linear(5, 2))]))\n    net[0].bias.data.fill_(-100)\n    return net\n"
    )
    for place in ("a", "b"):
        Path(place).mkdir()
        code, _, err = prune(run, model="odd.py:build")
        assert code == CERTIFIED, err
        Path("run").rename(f"{place}/_run")
    code, _, err = run("report", "a/_run", "b/_run", "-o", "both.html")
    assert code == CERTIFIED and err == ""
    page = Page(Path("both.html").read_text())
    assert [row[0] for row in page.tables[0][1:]] == ["a/_run", "b/_run"]
    assert [row[0] for row in page.tables[1][1:]] == ["$x_{$", "_last"]
    assert run("report", "a/_run", "-o", "nowhere/page.html")[0] == USAGE


def test_runs_of_other_weights_are_refused(folder, run):
    prune(run)
    Path("run").rename("first")
    net = Job("net.py:build", str(folder), None, "x.npz").build()
    with torch.no_grad():
        net[0].weight.mul_(2)
    safetensors_torch.save_file(net.state_dict(), "w.safetensors")
    prune(run, "--weights", "w.safetensors")
    code, _, err = run("report", "first", "run")
    assert code == USAGE and "other weights" in err


def test_a_density_by_a_search_and_its_page(folder, run):
    code, out, err = run(
        *("prune", "net.py:build", "--data", "x.npz", "-o", "run", "--density", "0.3", "--method", "l0"),
        *("--scheme", "cascade", "--ignore", "4"),
    )
    assert code == CERTIFIED, err
    assert "measured    2 layers: errors are verified, but no gap is proved" in out
    code, out, err = run("verify", "run")
    assert code == CERTIFIED and "measured" in out, err
    refitted = ("-o", "refitted", "--refit", "free", "--rounds", "2", "--ignore", "4")
    code, out, err = run("prune", "net.py:build", "--data", "x.npz", *refitted)
    assert code == CERTIFIED and "measured" in out, err
    code, out, err = run("report", "run", "refitted")
    assert code == CERTIFIED, err
    page = Path("run/report.html").read_text()
    assert "2 measured, by a method without a dual bound" in page
    assert "density 0.3" in page and "epsilon 0.05" in page and re.search("<td[^>]*>l0</td>", page)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--method", "l0"), "needs a density"),
        (("--density", "0.1", "--epsilon", "0.1"), "not both"),
        (("--density", "2"), "density must be above 0"),
        (("--density", "x=0.1"), "fits no layer"),
        (("--allocate",), "--allocate needs a --density"),
        (("--density", "*=0.1", "--allocate"), "--allocate needs one --density"),
        (("--pattern", "2:4"), "pattern='2:4' needs method="),
        (("--penalty", "rows"), "penalty must be None, 'inputs' or 'outputs'"),
        (("--density", "a"), "--density must be a number"),
        (("--method", "magic"), "method must be one of"),
        (("--refit", "yes"), "refit must be"),
        (("--density", "0.1", "--method", "l0", "--effort", "all"), "effort must be"),
    ],
)
def test_wrong_targets_are_refused_before_the_work(folder, run, options, error):
    code, _, err = run("prune", "net.py:build", "--data", "x.npz", "-o", "run", *options)
    assert code == USAGE and error in err, err
    assert not (folder / "run").exists() or not list((folder / "run").glob("layer_*"))


def test_an_allocated_density_and_its_curves(folder, run):
    given = (
        "prune",
        "net.py:build",
        "--data",
        "x.npz",
        "-o",
        "run",
        "--density",
        "0.3",
        "--allocate",
        "--method",
        "l0",
    )
    code, out, _ = run(*given, "--json")
    found = json.loads(out)
    densities = found["settings"]["allocation"]["densities"]
    assert code == CERTIFIED and set(densities) == {"0", "2", "4"} and found["settings"]["density"] == densities
    sizes = {"0": 240, "2": 200, "4": 30}
    assert sum(sizes[name] * d for name, d in densities.items()) == pytest.approx(0.3 * 470, rel=0.03)
    assert run("verify", "run")[0] == CERTIFIED
    assert run("report", "run", "-o", "page.html")[0] == CERTIFIED
    page = Path("page.html").read_text()
    assert "Densities of the layers" in page and "allocation" not in page


@pytest.mark.parametrize(
    "option", [("--pattern", "2:4", "--method", "l0", "--ignore", "2", "--ignore", "4"), ("--penalty", "inputs")]
)
def test_structured_runs(folder, run, option):
    given = ("prune", "net.py:build", "--data", "x.npz", "-o", "run", *option)
    code, out, _ = run(*given, "--json")
    assert code == CERTIFIED and json.loads(out)["settings"][option[0][2:]] == option[1]
    assert run("verify", "run")[0] == CERTIFIED and run("report", "run")[0] == CERTIFIED
    assert run(*given)[0] == CERTIFIED, "a finished run goes on to its end at once"
