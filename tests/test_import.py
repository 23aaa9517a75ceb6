"""`import nettrim` is light: no optional package, and what is said where something is missing."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from nettrim.extras import OPTIONAL, install

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "torch",
    "distributed",
    "cupy",
    "cvxpy",
    "matplotlib",
    "dask",
    "sklearn",
    "pandas",
    "numba",
    "typer",
    "rich",
    "scipy",
}


def fresh_import() -> set[str]:
    program = "import json, sys, nettrim; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    # away from the working directory: the installed package, not a folder that happens to be here
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd="/")
    return set(json.loads(out.stdout))


def test_import_is_light():
    """NumPy and threadpoolctl are all that is loaded; what the import takes is measured by bench/startup.py."""
    beyond = fresh_import() - sys.stdlib_module_names
    assert not HEAVY & beyond
    # what an environment loads by itself (.pth files of editable installs) comes under a name with an underscore
    assert {name for name in beyond if not name.startswith("_")} <= {"nettrim", "numpy", "threadpoolctl"}, beyond


def test_reference_is_part_of_the_package():
    """`nt.reference.solve` works without a further import, and still loads cvxpy only when it is used."""
    program = """
import sys, nettrim as nt
assert callable(nt.reference.solve)
assert "cvxpy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_reference_is_importable_without_cvxpy():
    """The package is only needed by a solve, whose ImportError names the extra."""
    program = """
import sys

sys.modules["cvxpy"] = None
import numpy as np, nettrim as nt, nettrim.reference
assert nettrim.reference
try:
    nt.reference.solve(nt.Problem(np.ones((2, 3)), np.ones((1, 3)), 0.1))
except ImportError as error:
    assert "extra reference" in str(error), error
else:
    raise SystemExit("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


@pytest.mark.parametrize(("module", "extra"), [("torch", "torch"), ("privacy.inversion", "privacy")])
def test_what_needs_pytorch_names_its_extra(module, extra):
    program = f"""
import sys
sys.modules["torch"] = None
try:
    import nettrim.{module}
except ImportError as error:
    assert "needs PyTorch" in str(error) and "extra {extra}" in str(error), error
else:
    raise SystemExit("no ImportError")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd="/")


def test_sources_that_are_not_installed_say_so():
    """As in the clone after a plain `pip install .`: without `site`, an editable installation is not seen either."""
    paths = os.pathsep.join((str(ROOT), str(Path(np.__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import nettrim"],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        cwd="/",
    )
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith("ImportError: nettrim was imported from its sources") and str(ROOT) in last
    assert "pip install -e ." in last


# the extras


def extras() -> dict[str, set[str]]:
    """Names of the packages that each extra of pyproject.toml brings itself, but for those of developers."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return {
        extra: {re.split(r"[\[=<>~! ]", package)[0] for package in packages} - {"nettrim"}
        for extra, packages in told.items()
        if extra not in ("dev", "docs")
    }


def test_optional_packages_are_those_of_the_extras():
    of_cuda = {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy"}
    told = {extra: {of_cuda.get(name, name) for name in names} for extra, names in extras().items()}
    assert {p.name for p in OPTIONAL} == set().union(*told.values())
    for package in OPTIONAL:
        for extra in package.extras:
            # distributed brings Dask
            assert package.name in told[extra] or (package.name, extra) == ("dask", "dask")
    assert {extra for p in OPTIONAL for extra in p.extras} == set(told)


def test_the_message_of_several_extras():
    assert install("torch", "studies") == (
        "install nettrim's extras torch and studies (in a clone: pip install -e '.[torch,studies]')"
    )


def test_every_extra_that_the_code_names_exists():
    named = {
        extra
        for path in (ROOT / "nettrim").rglob("*.py")
        for call in re.findall(r"\binstall\(([^)]*)\)\}", path.read_text(encoding="utf-8"))
        for extra in re.findall(r"[\"']([a-z0-9]+)[\"']", call)
    }
    assert {"torch", "studies", "cuda12", "demo"} <= named <= set(extras())
