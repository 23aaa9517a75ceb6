"""Build the source archive and the wheel, and try the wheel in environments of its own.

python tests/check_package.py                    the core, without extras
python tests/check_package.py reference torch    and with these extras, each in an environment of its own
python tests/check_package.py all                and with every extra that this machine can use

`make package` calls it. Everything is made in a temporary folder, so that nothing is imported from the working tree.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import textwrap
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: what must be in the archives, beside the Python files
FILES = ("nettrim/py.typed", "nettrim/data/digits_relu.npz", "kernels/cuda/admm.cu", "kernels/cuda/prox.cuh")

CORE = """
import sys
import numpy as np
import nettrim as nt
heavy = {"torch", "cupy", "cvxpy", "dask", "matplotlib", "sklearn", "opacus", "h5py", "zarr"} & set(sys.modules)
assert not heavy, heavy
rng = np.random.default_rng(0)
X = rng.standard_normal((20, 300))
Y = np.maximum(rng.standard_normal((20, 3)).T @ X, 0)
solution = nt.solve(X, Y, epsilon=0.1)
assert solution.status == "solved", solution
assert nt.certify(nt.Problem(X, Y, epsilon=0.1), solution.W, solution.dual).holds(1e-3, 1e-4)
print(nt.__file__)
"""

#: a use of each extra that fails without it
EXTRAS = {
    "reference": """
        import numpy as np, nettrim as nt
        X = np.random.default_rng(0).standard_normal((8, 60))
        problem = nt.Problem(X, np.maximum(X[:2], 0), epsilon=0.1)
        for solver in ("CLARABEL", "SCS"):
            assert nt.reference.solve(problem, solver).certificate.holds(1e-2, 1e-2), solver
    """,
    "torch": """
        import torch, nettrim.torch as ntt
        assert torch.version.cuda is None, "the CPU build is what is tested"
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(10, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        pruned = ntt.prune(model, [torch.randn(400, 10)], epsilon=0.1)
        pruned.save("pruned.safetensors")
        assert ntt.load("pruned.safetensors", model) is not None
    """,
    "demo": """
        import sys
        from nettrim.cli import main
        assert main(["demo", "--output", "pictures"]) == 0
    """,
    "dask": "import nettrim, dask, distributed",
    "disk": """
        import h5py, numpy as np, nettrim as nt, zarr, dask.array
        X = np.random.default_rng(0).standard_normal((300, 8))
        with h5py.File("x.h5", "w") as file:
            file["X"], file["Y"] = X, np.maximum(X[:, :2], 0)
        with h5py.File("x.h5") as file:
            chunked = [nt.Chunked(file[name], samples="rows") for name in "XY"]
            assert nt.solve(*chunked, epsilon=0.1, feas_tol=1e-3).status == "solved"
    """,
    "privacy": "import nettrim.privacy.inversion, nettrim.privacy.dp_sgd, nettrim.privacy.accountant",
    "studies": "import pandas, matplotlib, PIL, skimage, sklearn",
}


def run(*command: object, folder: Path) -> str:
    """Output of a command; its errors end the script."""
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:
    """Python of a new environment with the wheel."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{wheel}{extra}", folder=folder)
    return python


def contents(archive: Path) -> set[str]:
    if archive.suffix == ".whl":
        return set(zipfile.ZipFile(archive).namelist())
    with tarfile.open(archive) as tar:
        return {name.partition("/")[2] for name in tar.getnames()}


def main() -> None:
    wanted = list(EXTRAS) if sys.argv[1:] == ["all"] else sys.argv[1:]
    if unknown := set(wanted) - set(EXTRAS):
        sys.exit(f"no such extra: {', '.join(sorted(unknown))}; there are {', '.join(EXTRAS)}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # the wheel is built from the source archive
        run(sys.executable, "-m", "build", "--outdir", folder, ROOT, folder=folder)
        (source,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
        for archive in (source, wheel):
            wheels = {f.replace("kernels/", "nettrim/kernels/") for f in FILES}
            missing = (set(FILES) if archive is source else wheels) - contents(archive)
            if missing:
                sys.exit(f"{archive.name} lacks {', '.join(sorted(missing))}")
            print(f"{archive.name}: {len(contents(archive))} files")
        python = environment(folder / "core", wheel)
        print(f"core: {run(python, '-c', CORE, folder=folder).strip()}")
        run(python.with_name("nettrim"), "doctor", folder=folder)
        for extra in wanted:
            python = environment(folder / extra, wheel, f"[{extra}]")
            run(python, "-c", textwrap.dedent(EXTRAS[extra]), folder=folder)
            print(f"[{extra}]: works")


if __name__ == "__main__":
    main()
