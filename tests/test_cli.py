"""The command line on real files: exit codes, JSON, hostile input, tampering, Ctrl-C, and what is left on the disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import nettrim as nt
from nettrim import cli, show
from nettrim.report import table, to_json, write_atomically

CERTIFIED, USAGE, NOT_CONVERGED, INFEASIBLE = 0, 1, 2, 3


def layer(dtype: type = np.float64) -> dict[str, np.ndarray]:
    """A ReLU layer of 20 inputs, the row of ones last, and 5 neurons on 300 samples."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.standard_normal((19, 300)), np.ones((1, 300))])
    W = rng.standard_normal((20, 5)) * (rng.random((20, 5)) < 0.5)
    return {"X": X.astype(dtype), "Y": np.maximum(W.T @ X, 0).astype(dtype)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working directory with the layer in in.npz."""
    monkeypatch.chdir(tmp_path)
    np.savez("in.npz", **layer())
    return tmp_path


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call


def assert_refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 1, nothing on the standard output, one line on the standard error that holds the words."""
    code, out, err = result
    assert code == USAGE and out == ""
    assert err.startswith("nettrim: ") and err.count("\n") == 1 and "Traceback" not in err
    for word in words:
        assert word in err, err


def tamper(path: str, **changes: np.ndarray) -> None:
    with np.load(path) as bundle:
        arrays = dict(bundle)
    np.savez(path, **(arrays | changes))


def stored_problem(path: str) -> dict[str, Any]:
    with np.load(path) as bundle:
        return json.loads(str(bundle["problem"]))


# the program itself


def test_version_and_help(run):
    assert run("--version") == (0, f"nettrim {nt.__version__}\n", "")
    for arguments in ((), ("--help",), ("solve", "--help")):
        code, out, err = run(*arguments)
        assert code == 0 and "Usage" in out and err == ""


def test_entry_point_is_quick_and_light(tmp_path):
    """As a process of its own: what is slow to import is imported by the command that needs it."""
    program = """
import sys, time
# processor time: what other programs do meanwhile is not the command's
began = time.process_time()
from nettrim import cli
code = cli.main(["--version"])
print(code, time.process_time() - began, [m for m in ("numba", "sklearn", "matplotlib", "torch") if m in sys.modules])
"""
    runs = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
        for _ in range(3)
    ]
    code, seconds, *heavy = runs[0].stdout.splitlines()[1].split(" ", 2)
    assert code == "0" and heavy == ["[]"]
    assert min(float(done.stdout.splitlines()[1].split()[1]) for done in runs) < 1.0, seconds


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], ["bogus"]),
        (["solve"], ["IN.npz"]),
        (["solve", "in.npz", "--epsilon", "0.1"], ["--output"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "abc"], ["--epsilon"]),
        (["solve", "in.npz", "-o", "o.npz", "--wat"], ["--wat"]),
        (["solve", "in.npz", "-o", "o.npz"], ["--epsilon", "--epsilon-abs"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--epsilon-abs", "1"], ["--epsilon", "--epsilon-abs"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "-1"], ["--epsilon must", "-1"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "nan"], ["--epsilon must", "nan"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--gap-tol", "0"], ["--gap-tol must", "0"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--feas-tol", "2"], ["--feas-tol must", "2"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--threads", "0"], ["--threads must", "0"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--max-iterations", "0"], ["--max-iterations must"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--time-limit", "-1"], ["--time-limit must", "-1"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--backend", "abacus"], ["--backend must", "abacus"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--dtype", "float16"], ["--dtype", "float16"]),
        (
            ["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.1", "--unpenalised-row", "20"],
            ["--unpenalised-row", "20"],
        ),
        (["solve", "in.npz", "-o", "in.npz", "--epsilon", "0.1"], ["--output in.npz", "input"]),
        (["solve", "in.npz", "-o", "missing/o.npz", "--epsilon", "0.1"], ["--output", "missing"]),
        (["solve", "in.npz", "-o", ".", "--epsilon", "0.1"], ["--output", "regular file"]),
        (["solve", "in.npz", "-o", os.devnull, "--epsilon", "0.1"], ["--output", "regular file"]),
        (["solve", "none.npz", "-o", "o.npz", "--epsilon", "0.1"], ["none.npz does not exist"]),
        (["verify", "in.npz", "none.npz"], ["none.npz does not exist"]),
        (["verify", "in.npz", "in.npz"], ["in.npz lacks W and problem"]),
        (["demo", "--epsilon", "0"], ["--epsilon must"]),
        (["demo", "--epsilon", "nan"], ["--epsilon must"]),
    ],
)
def test_bad_usage(folder, run, arguments, words):
    before = (folder / "in.npz").read_bytes()
    assert_refused(run(*arguments), *words)
    assert os.listdir(folder) == ["in.npz"] and (folder / "in.npz").read_bytes() == before


def test_input_through_a_link_is_not_overwritten(folder, run):
    os.symlink("in.npz", "link.npz")
    assert_refused(run("solve", "in.npz", "-o", "link.npz", "--epsilon", 0.1), "--output link.npz", "input")


# hostile files


def hostile(name: str) -> tuple[dict[str, Any], list[str]]:
    """Arrays of an input file, and words of the refusal."""
    X, Y = layer().values()
    nan = X.copy()
    nan[3, 4] = np.nan
    return {
        "without Y": ({"X": X}, ["lacks Y", "holds X"]),
        "empty archive": ({}, ["lacks X and Y", "nothing"]),
        "objects": ({"X": np.array([{}, None]), "Y": Y}, ["X in bad.npz", "pickle"]),
        "other samples": ({"X": X, "Y": Y[:, :7]}, ["X and Y", "(20, 300)", "(5, 7)"]),
        "samples in rows": ({"X": X.T, "Y": Y.T}, ["X.T and Y.T"]),
        "samples of X in rows": ({"X": X.T, "Y": Y}, ["of X seem to be in rows", "pass X.T"]),
        "samples of Y in rows": ({"X": X, "Y": Y.T}, ["of Y seem to be in rows", "pass Y.T"]),
        "vector": ({"X": X[0], "Y": Y}, ["X must be a matrix"]),
        "no samples": ({"X": X[:, :0], "Y": Y[:, :0]}, ["X is empty"]),
        "nan": ({"X": nan, "Y": Y}, ["X contains NaN"]),
        "integers": ({"X": X, "Y": Y.astype(int)}, ["Y must be float32 or float64"]),
        "complex": ({"X": X * 1j, "Y": Y}, ["X must be float32 or float64"]),
        "text": ({"X": np.array([["a"]]), "Y": Y}, ["X must be float32 or float64"]),
        "wrong omega": ({"X": X, "Y": Y, "omega": np.ones((2, 2), bool)}, ["omega must have the shape of Y"]),
        "omega of numbers": ({"X": X, "Y": Y, "omega": np.ones(Y.shape)}, ["omega must be a mask"]),
        "wrong V": ({"X": X, "Y": Y, "V": np.zeros(3)}, ["V must be"]),
        "negative C": ({"X": X, "Y": Y, "C": np.full(20, -1.0)}, ["C must be"]),
    }[name]


HOSTILE = [
    "without Y",
    "empty archive",
    "objects",
    "other samples",
    "samples in rows",
    "samples of X in rows",
    "samples of Y in rows",
    "vector",
    "no samples",
    "nan",
    "integers",
    "complex",
    "text",
    "wrong omega",
    "omega of numbers",
    "wrong V",
    "negative C",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays(folder, run, name):
    arrays, words = hostile(name)
    np.savez("bad.npz", **arrays)
    assert_refused(run("solve", "bad.npz", "-o", "o.npz", "--epsilon", 0.1), *words)
    assert not Path("o.npz").exists()


@pytest.mark.parametrize("kind", ["text", "npy", "truncated", "zip of text", "damaged", "folder"])
def test_hostile_files(folder, run, kind):
    bad = Path("bad.npz")
    if kind == "text":
        bad.write_text("not an archive")
    elif kind == "npy":
        with open(bad, "wb") as file:
            np.save(file, layer()["X"])
    elif kind == "truncated":
        bad.write_bytes(Path("in.npz").read_bytes()[:5000])
    elif kind == "zip of text":
        with zipfile.ZipFile(bad, "w") as archive:
            archive.writestr("X", "hello")
            archive.writestr("Y", "hello")
    elif kind == "damaged":
        content = bytearray(Path("in.npz").read_bytes())
        content[1000:1100] = bytes(100)
        bad.write_bytes(content)
    else:
        bad.mkdir()
    assert_refused(run("solve", bad, "-o", "o.npz", "--epsilon", 0.1), "bad.npz")
    assert not Path("o.npz").exists()


def test_linear_and_a_mask_contradict_each_other(folder, run):
    tamper("in.npz", omega=layer()["Y"] > 0)
    assert_refused(run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--linear"), "--linear", "omega")


# solve


def test_solve_writes_what_the_library_returns(folder, run):
    code, out, err = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--backend", "numpy", "--threads", 1)
    assert code == CERTIFIED and err == ""
    assert "solved" in out and "o.npz" in out
    expected = nt.solve(**layer(), epsilon=0.1, backend="numpy", n_threads=1)
    with np.load("o.npz") as bundle:
        assert sorted(bundle.files) == ["W", "dual", "problem"]
        np.testing.assert_array_equal(bundle["W"], expected.W)
        np.testing.assert_array_equal(bundle["dual"], expected.dual)
    about = stored_problem("o.npz")
    assert about["status"] == "solved" and about["certificate"] == expected.certificate.to_dict()
    assert about["settings"]["backend"] == "numpy" and about["settings"]["n_threads"] == 1
    assert about["epsilon_relative"] == pytest.approx(0.1)
    assert sorted(os.listdir(folder)) == ["in.npz", "o.npz"]


@pytest.mark.parametrize(("method", "word"), [("admm", "iteration"), ("working_set", "round")])
def test_the_method_is_chosen_and_named(folder, run, method, word):
    code, out, _ = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--method", method)
    assert code == CERTIFIED
    assert f"({method.replace('_', ' ')})" in out and word in out
    assert stored_problem("o.npz")["settings"]["method"] == method
    assert_refused(
        run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--method", "simplex"), "--method", "simplex"
    )


def test_solve_options_reach_the_problem(folder, run):
    C = np.linspace(0.5, 2, 20)
    tamper("in.npz", C=C)
    options = [
        "--neuronwise",
        "--unpenalised-row",
        -1,
        "--epsilon-abs",
        2.5,
        "--dtype",
        "float32",
        "--backend",
        "numpy",
    ]
    assert run("solve", "in.npz", "-o", "o.npz", *options)[0] == CERTIFIED
    C[-1] = 0
    expected = nt.solve(**layer(), epsilon_abs=2.5, neuronwise=True, C=C, dtype=np.float32, backend="numpy")
    with np.load("o.npz") as bundle:
        assert bundle["W"].dtype == np.float32
        np.testing.assert_array_equal(bundle["W"], expected.W)
    assert run("verify", "in.npz", "o.npz")[0] == CERTIFIED


@pytest.mark.parametrize("scalar", [1, 2.0])
def test_an_unpenalised_row_with_a_scalar_c(folder, run, scalar):
    tamper("in.npz", C=np.asarray(scalar))
    arguments = ["solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--backend", "numpy"]
    assert run(*arguments, "--unpenalised-row", 19)[0] == CERTIFIED
    assert stored_problem("o.npz")["unpenalised_row"] == 19
    with np.load("o.npz") as bundle:
        assert bundle["W"][-1].all()
    assert run("verify", "in.npz", "o.npz")[0] == CERTIFIED


def test_solve_linear(folder, run):
    rng = np.random.default_rng(1)
    X = layer()["X"]
    np.savez("in.npz", X=X, Y=rng.standard_normal((5, 20)) @ X)
    code, _, err = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.2, "--linear", "--backend", "numpy", "--quiet")
    assert (code, err) == (CERTIFIED, "")
    err = run("solve", "in.npz", "-o", "r.npz", "--epsilon", 0.9)[2]
    assert "nettrim: warning: Y has negative entries" in err and "use --linear" in err
    code, out, _ = run("verify", "in.npz", "o.npz")
    assert code == CERTIFIED and "certificate holds" in out


def test_json_is_all_there_is_on_the_standard_output(folder, run):
    code, out, err = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--backend", "numpy", "--json")
    found = json.loads(out)
    assert code == CERTIFIED and err == ""
    assert found["status"] == "solved" and abs(found["certificate"]["gap"]) <= 1e-3
    assert found["settings"]["time_limit"] is None and found["output"] == "o.npz"
    code, out, err = run("verify", "in.npz", "o.npz", "--json")
    verdict = json.loads(out)
    assert code == CERTIFIED and err == "" and verdict["holds"] is True
    assert verdict["recomputed"] == pytest.approx(verdict["stored"])


def test_quiet(folder, run):
    assert run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--backend", "numpy", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("option", "value", "status"), [("--max-iterations", 3, "max_iterations"), ("--time-limit", 0, "time_limit")]
)
def test_not_converged_is_exit_code_2_and_still_written(folder, run, option, value, status):
    code, out, err = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, option, value, "--json")
    assert code == NOT_CONVERGED
    assert json.loads(out)["status"] == status and stored_problem("o.npz")["status"] == status
    assert option in err and err.count("\n") == 1
    code, out, err = run("verify", "in.npz", "o.npz")
    assert code == NOT_CONVERGED and "does NOT hold" in out and "does not hold" in err


@pytest.mark.parametrize("linear", [True, False])
def test_infeasible_is_exit_code_3_and_its_proof_is_verified(folder, run, linear):
    rng = np.random.default_rng(1)
    np.savez("in.npz", X=layer()["X"], Y=np.abs(rng.standard_normal((5, 300))) + 0.1)
    options = ["--epsilon", 0.01, "--json", *(["--linear"] if linear else [])]
    code, out, err = run("solve", "in.npz", "-o", "o.npz", *options)
    found = json.loads(out)
    assert code == INFEASIBLE and found["status"] == "infeasible"
    assert found["smallest_epsilon"] > found["epsilon_abs"]
    assert f"{found['smallest_epsilon']:.6g}" in err
    assert run("verify", "in.npz", "o.npz")[0] == CERTIFIED
    # with the smallest radius that works, and a little more, it does work
    arguments = ["--epsilon-abs", 1.01 * found["smallest_epsilon"], "--quiet", *options[3:]]
    assert run("solve", "in.npz", "-o", "o2.npz", *arguments)[0] == CERTIFIED
    with np.load("o.npz") as bundle:
        tamper("o.npz", ray=-bundle["ray"])
    code, out, err = run("verify", "in.npz", "o.npz")
    assert code == NOT_CONVERGED and "does NOT hold" in out and "ray" in err


def test_zero_is_optimal(folder, run):
    code, out, _ = run("solve", "in.npz", "-o", "o.npz", "--epsilon", 1, "--json")
    assert code == CERTIFIED and json.loads(out)["certificate"]["nnz"] == 0
    assert run("verify", "in.npz", "o.npz")[0] == CERTIFIED


# verify


@pytest.fixture
def solved(folder, run) -> Path:
    assert run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--backend", "numpy", "--quiet")[0] == CERTIFIED
    return folder


@pytest.mark.parametrize(
    "what", ["weight dropped", "weight added", "all scaled", "dual lost", "data changed", "radius"]
)
def test_verify_detects_tampering(solved, run, what):
    with np.load("o.npz") as bundle:
        W, dual = bundle["W"].copy(), bundle["dual"].copy()
    if what == "weight dropped":
        W.flat[np.abs(W).argmax()] = 0
        tamper("o.npz", W=W)
    elif what == "weight added":
        W[(W == 0).nonzero()[0][0], (W == 0).nonzero()[1][0]] = 0.5
        tamper("o.npz", W=W)
    elif what == "all scaled":
        tamper("o.npz", W=1.01 * W)
    elif what == "dual lost":
        tamper("o.npz", dual=0 * dual)
    elif what == "data changed":
        tamper("in.npz", X=1.05 * layer()["X"])
    else:
        about = stored_problem("o.npz")
        about["epsilon_abs"] *= 2
        tamper("o.npz", problem=np.str_(json.dumps(about)))
    code, out, err = run("verify", "in.npz", "o.npz")
    assert code == NOT_CONVERGED and "does NOT hold" in out
    assert err.startswith("nettrim: does not hold") and err.count("\n") == 1
    code, out, _ = run("verify", "in.npz", "o.npz", "--json")
    assert code == NOT_CONVERGED and json.loads(out)["holds"] is False


def test_verify_does_not_believe_the_stored_certificate(solved, run):
    """Better numbers in the stored text change nothing: it is only shown."""
    run("solve", "in.npz", "-o", "o.npz", "--epsilon", 0.1, "--max-iterations", 3, "--quiet")
    about = stored_problem("o.npz")
    about["status"] = "solved"
    about["certificate"] |= {"gap": 0.0, "ball_violation": 0.0, "inequality_violation": 0.0}
    tamper("o.npz", problem=np.str_(json.dumps(about)))
    assert run("verify", "in.npz", "o.npz")[0] == NOT_CONVERGED


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"W": np.zeros((3, 3))}, ["W must be 20 x 5"]),
        ({"W": np.full((20, 5), np.nan)}, ["W contains NaN"]),
        ({"dual": np.zeros((2, 2))}, ["dual must have the shape"]),
        ({"problem": np.str_("not json")}, ["'problem' in o.npz"]),
        ({"problem": np.str_("{}")}, ["'problem' in o.npz"]),
        ({"problem": np.str_("[1]")}, ["'problem' in o.npz"]),
        ({"W": np.array([None])}, ["W in o.npz", "pickle"]),
        ({"W": np.full((20, 5), "a")}, ["W in o.npz", "floating"]),
    ],
)
def test_verify_refuses_what_does_not_fit(solved, run, changes, words):
    tamper("o.npz", **changes)
    assert_refused(run("verify", "in.npz", "o.npz"), *words)


# progress and Ctrl-C


def test_progress_lines_are_rare_and_name_the_gap(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(show.time, "monotonic", lambda: now[0])
    with show.Display(1e-3) as display:
        for step in range(200):
            now[0] = 0.1 * step
            display("solving", {"gap": 1 / (1 + step), "iteration": step})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3  # 19.9 seconds, a line every five
    assert all(line.startswith("nettrim: solving: gap ") for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_ctrl_c_writes_the_best_weights(folder):
    """A solve that would never end, as a process of its own."""
    arguments = ["solve", "in.npz", "-o", "o.npz", "--epsilon", "0.05", "--gap-tol", "1e-15", "--feas-tol", "1e-15"]
    endless = [
        *arguments,
        "--method",
        "admm",
        "--max-iterations",
        str(10**9),
        "--backend",
        "numpy",
        "--threads",
        "1",
        "--json",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", WATCHED, *endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not Path("started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == NOT_CONVERGED, err
    assert json.loads(out)["status"] == "interrupted" and "interrupted" in err and "Traceback" not in err
    assert stored_problem("o.npz")["certificate"]["gap"] < 1
    assert sorted(os.listdir(folder)) == ["in.npz", "o.npz", "started"]


#: the command line, which leaves a file when the iteration has begun
WATCHED = """
import pathlib, sys
from nettrim import cli
from nettrim.show import Display
show = Display.__call__
def watched(self, stage, check):
    if check is not None and check["iteration"] >= 100:
        pathlib.Path("started").touch()
    show(self, stage, check)
Display.__call__ = watched
sys.exit(cli.main())
"""


# doctor


def test_doctor(run, monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    monkeypatch.setenv("NETTRIM_DATA", str(tmp_path))
    code, out, err = run("doctor", "--json")
    found = json.loads(out)
    assert code == CERTIFIED and err == ""
    assert found["versions"]["numpy"] == np.__version__ and found["versions"]["nettrim"] == nt.__version__
    assert found["self_check"]["status"] == "solved" and found["self_check"]["seconds"] > 0
    assert found["data"]["found"] == ["mnist"] and found["cores"] >= 1 and found["blas"]
    names = {package["name"] for package in found["optional"]}
    assert {"cvxpy", "scikit-learn", "torch", "cupy", "dask", "opacus", "h5py", "zarr"} <= names
    monkeypatch.delenv("NETTRIM_DATA")
    code, out, err = run("doctor")
    assert code == CERTIFIED and err == "" and "self-check" in out and "NETTRIM_DATA is not set" in out
    assert "cuda12, cuda13" in out and "…" not in out and "pip install -e '.[NAME]'" in out
    assert max(len(line.rstrip()) for line in out[out.index("optional package") :].splitlines()) <= 85


# report


def test_atomic_write_replaces_only_at_the_end(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with write_atomically(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_atomic_write_that_fails_leaves_nothing_behind(tmp_path):
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), write_atomically(target) as file:
        file.write(b"half of it")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    with pytest.raises(OSError, match="regular file"), write_atomically(tmp_path):
        pass
    with pytest.raises(FileNotFoundError), write_atomically(tmp_path / "none" / "file"):
        pass


def test_atomic_write_follows_links(tmp_path):
    (tmp_path / "real").write_bytes(b"old")
    os.symlink("real", tmp_path / "link")
    with write_atomically(tmp_path / "link") as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == b"new"


def test_json_has_no_infinities():
    text = to_json(
        {"a": np.inf, "b": [np.float32(1.5), np.nan], "c": nt.Status.SOLVED, "d": Path("x"), "e": np.int64(3)}
    )
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": "solved", "d": "x", "e": 3}
    with pytest.raises(TypeError, match="ndarray"):
        to_json(np.ones(3))


def test_json_of_a_solution():
    solution = nt.solve(**layer(), epsilon=0.1, backend="numpy")
    assert json.loads(to_json(solution))["certificate"] == solution.certificate.to_dict()


def test_table_interprets_no_markup():
    from rich.console import Console

    console = Console(width=60, record=True, file=open(os.devnull, "w"))
    console.print(table([{"name": "[red]x", "value": "1"}, {"name": "y", "value": "10"}], title="some"))
    text = console.export_text()
    assert "[red]x" in text and "some" in text


def test_solve_for_a_density(tmp_path, capsys):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 500))
    Y = np.maximum((rng.standard_normal((40, 30)) ** 3).T @ X, 0)
    np.savez(tmp_path / "in.npz", X=X, Y=Y)
    given = ["solve", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "--density", "0.3"]
    assert cli.main([*given, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.27 <= found["certificate"]["density"] <= 0.3 and found["epsilon_relative"] == found["settings"]["epsilon"]
    # what was written is certified for the epsilon that was found
    assert cli.main(["verify", str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]) == 0
    assert "epsilon = " in capsys.readouterr().out
    assert cli.main([*given[:-1], "1.5"]) == 1
    assert "density must be in" in capsys.readouterr().err


@pytest.mark.parametrize("penalty", ["rows", "columns", "nuclear", "elastic_net:ridge=0.5", "k_support:k=2,of=5"])
def test_other_penalties_are_solved_and_verified(folder, run, penalty):
    code, out, _ = run("solve", "in.npz", "-o", "out.npz", "--epsilon", "0.1", "--penalty", penalty, "--json")
    found = json.loads(out)
    assert code == CERTIFIED and found["penalty"]["name"] == penalty.partition(":")[0]
    assert run("verify", "in.npz", "out.npz")[0] == CERTIFIED


def test_reweighted_rounds_are_verified(folder, run):
    plain = json.loads(run("solve", "in.npz", "-o", "out.npz", "--epsilon", "0.1", "--json")[1])
    code, out, _ = run("solve", "in.npz", "-o", "out.npz", "--epsilon", "0.1", "--rounds", 4, "--json")
    found = json.loads(out)
    assert code == CERTIFIED and found["certificate"]["nnz"] < plain["certificate"]["nnz"] and found["round"] > 1
    # the gap is that of the last round's norm, whose weights are in the file
    code, out, _ = run("verify", "in.npz", "out.npz", "--json")
    assert code == CERTIFIED
    assert json.loads(out)["recomputed"]["gap"] == pytest.approx(found["certificate"]["gap"], abs=1e-12)


def test_path_is_the_librarys(folder, run):
    arrays = layer()
    np.savez("other.npz", X=arrays["X"][:, :100], Y=arrays["Y"][:, :100])
    given = ["path", "in.npz", "--epsilons", ".1,.3,.2", "--heldout", "other.npz"]
    code, out, _ = run(*given, "-o", "out.npz", "--plot", "curve.png")
    assert code == CERTIFIED and out.splitlines()[0].split()[:3] == ["epsilon", "kept", "error"] and "30.00%" in out
    expected = nt.path(arrays["X"], arrays["Y"], [0.3, 0.2, 0.1])
    with np.load("out.npz") as bundle:
        assert bundle["epsilons"].tolist() == [0.3, 0.2, 0.1] and bundle["W"].shape == (3, 20, 5)
        for W, solution in zip(bundle["W"], expected, strict=True):
            np.testing.assert_allclose(W, solution.W, atol=1e-8)
    assert (folder / "curve.png").read_bytes()[:4] == b"\x89PNG"
    code, out, _ = run(*given, "--json", "--rounds", 2, "--penalty", "rows")
    rows = json.loads(out)["solutions"]
    assert code == CERTIFIED and [row["epsilon"] for row in rows] == [0.3, 0.2, 0.1] and all(r["heldout"] for r in rows)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["path", "in.npz", "--epsilons", "a,b"], ["--epsilons must be numbers", "a,b"]),
        (["path", "in.npz", "--epsilons", "-0.1"], ["--epsilon must be finite and at least 0"]),
        (["path", "in.npz", "--rounds", "0"], ["--rounds must be at least 1"]),
        (["path", "in.npz", "--rounds", "2", "--penalty", "nuclear"], ["need a penalty that stands for a count"]),
        (["path", "in.npz", "--heldout", "small.npz"], ["--heldout has a layer of 3 x 5; the problem is 20 x 5"]),
        (["path", "in.npz", "-o", "in.npz"], ["is the input itself"]),
        (["path", "in.npz", "-o", "a.png", "--plot", "a.png"], ["--plot and --output are the same file"]),
        (["path", "in.npz", "--heldout", "other.npz"], ["--heldout: V must be in both files or in neither"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", ".1", "--penalty", "rows:a=1"], ["has no parameter 'a'"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", ".1", "--penalty", "lasso"], ["penalty must be one of l1"]),
        (["solve", "in.npz", "-o", "o.npz", "--epsilon", ".1", "--penalty", "rows:a=b"], ["must be like 'name:key="]),
        (
            ["solve", "in.npz", "-o", "o.npz", "--epsilon", ".1", "--penalty", "rows", "--method", "working_set"],
            ['method="working_set" is for the l1 norm'],
        ),
    ],
)
def test_wrong_paths_and_penalties(folder, run, arguments, words):
    np.savez("small.npz", X=np.ones((3, 10)), Y=np.ones((5, 10)))
    np.savez("other.npz", **layer(), V=0.5)
    assert_refused(run(*arguments), *words)


def test_an_error_that_allows_for_nothing_is_pointed_out(folder, run):
    np.savez("in.npz", **layer())
    code, out, _ = run("solve", "in.npz", "-o", "out.npz", "--epsilon", 5)
    assert code == CERTIFIED and "kept        0 of" in out and "ask for a smaller one (--epsilon 0.1 is 10 %" in out
