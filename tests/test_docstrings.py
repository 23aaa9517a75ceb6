"""Docstrings: there is one for everything public, and it says what the signature says."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import pkgutil
import textwrap

import pytest
from numpydoc.docscrape import NumpyDocString

import nettrim

#: modules whose import needs an optional package, or that are a program
SKIPPED = {"nettrim.__main__"}


def modules():
    for info in pkgutil.walk_packages(nettrim.__path__, "nettrim."):
        if info.name.startswith("nettrim.torch") and importlib.util.find_spec("torch") is None:
            continue
        if not any(part.startswith("__") for part in info.name.split(".")[1:]) and info.name not in SKIPPED:
            yield importlib.import_module(info.name)


def public_names():
    """(qualified name, object, promised): `promised` for what `nettrim.__all__` and `nettrim.reference` offer."""
    seen = set()
    for module in modules():
        for name, value in vars(module).items():
            if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
                continue
            if not (inspect.isclass(value) or inspect.isfunction(value)) or value in seen:
                continue
            seen.add(value)
            promised = name in nettrim.__all__ or module.__name__ == "nettrim.reference"
            yield f"{module.__name__}.{name}", value, promised
            if inspect.isclass(value):
                for member, raw in vars(value).items():
                    function = inspect.unwrap(getattr(raw, "__func__", raw))
                    if not member.startswith("_") and inspect.isfunction(function):
                        yield f"{module.__name__}.{name}.{member}", function, promised


OBJECTS = {name: (value, promised) for name, value, promised in public_names()}
#: backends state once, in Backend, what their functions do
SEAM = (
    "nettrim.backends.numpy_.NumpyBackend.",
    "nettrim.backends.numba_.NumbaBackend.",
    "nettrim.backends.cupy_.CupyBackend.",
    "nettrim.backends.numpy_.HostTransfers.",
    "nettrim.backends.cupy_.CudaTransfers.",
    "nettrim.backends.base.",
    # and so does Samples
    "nettrim.samples.Resident.",
    "nettrim.streamed.Streamed.",
    "nettrim.fromdisk.FromDisk.",
    "nettrim.distributed.sharded.Sharded.",
    "nettrim.sweeps.Sweeps.",
    # and Penalty
    *(f"nettrim.penalties.entrywise.{name}." for name in ("L1", "ElasticNet", "Ridge")),
    *(f"nettrim.penalties.groups.{name}." for name in ("Rows", "Columns", "Groups")),
    "nettrim.penalties.nuclear.Nuclear.",
    "nettrim.penalties.support.KSupport.",
    "nettrim.penalties.variation.TotalVariation.",
)


def parameters(value) -> list[str]:
    signature = inspect.signature(value)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    return [stars.get(p.kind, "") + p.name for p in signature.parameters.values() if p.name not in ("self", "cls")]


def documented(value, section: str = "Parameters") -> list[str]:
    names = []
    for entry in NumpyDocString(inspect.getdoc(value) or "")[section]:
        names += [name.strip() for name in (entry.name or entry.type).split(",")]
    return names


def is_record(value) -> bool:
    """A dataclass or named tuple documents its fields, as parameters or as attributes."""
    return inspect.isclass(value) and (hasattr(value, "__dataclass_fields__") or hasattr(value, "_fields"))


@pytest.mark.parametrize("name", [n for n in OBJECTS if not n.startswith(SEAM)])
def test_everything_public_has_a_docstring(name):
    doc = OBJECTS[name][0].__doc__
    assert doc and doc.strip(), f"{name} has no docstring"
    assert not doc.startswith(f"{name.rsplit('.', 1)[1]}("), f"{name} has only the docstring that dataclass makes"


@pytest.mark.parametrize("module", [m.__name__ for m in modules()])
def test_every_module_has_a_docstring(module):
    assert importlib.import_module(module).__doc__


@pytest.mark.parametrize("name", OBJECTS)
def test_parameters_match_the_signature(name):
    """Where a Parameters section is, it is complete and in order; for the promised classes and functions it must be."""
    value, promised = OBJECTS[name]
    names = documented(value)
    if is_record(value):
        names = names or documented(value, "Attributes")
        required = promised
    else:
        # a method whose one-line docstring names its arguments needs no section
        required = promised and (inspect.isclass(value) or name.count(".") == 2)
    if inspect.isclass(value) and issubclass(value, (str, Exception)):
        return
    if names or (required and parameters(value)):
        # grouped names may be in any order among themselves; a record that extends another documents what it adds
        inherited = (
            {n for base in value.__mro__[1:-1] for n in documented(base, "Attributes")} if is_record(value) else {}
        )
        assert sorted(names) == sorted(n for n in parameters(value) if n not in inherited)


@pytest.mark.parametrize("name", [n for n, (_, promised) in OBJECTS.items() if promised])
def test_methods_without_a_section_name_their_arguments(name):
    value, _ = OBJECTS[name]
    if inspect.isclass(value) or documented(value):
        return
    doc = inspect.getdoc(value)
    missing = [p for p in parameters(value) if not p.startswith("*") and p not in doc]
    assert not missing or len(parameters(value)) == 1 or "these" in doc, f"{name} says nothing of {', '.join(missing)}"


def raised(function) -> set[str]:
    """Names of the exceptions that the body raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            target = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if isinstance(target, ast.Name):
                names.add(target.id)
    return names


@pytest.mark.parametrize("name", [n for n, (_, promised) in OBJECTS.items() if promised])
def test_errors_that_are_raised_are_documented(name):
    value, _ = OBJECTS[name]
    body = vars(value).get("__post_init__" if is_record(value) else "__init__") if inspect.isclass(value) else value
    if not inspect.isfunction(body):
        return
    assert raised(body) <= set(documented(value, "Raises")), f"{name} raises {raised(body)}"


def test_public_names_are_offered():
    for name in nettrim.__all__:
        assert hasattr(nettrim, name)
    assert nettrim.__all__ == sorted(nettrim.__all__)
