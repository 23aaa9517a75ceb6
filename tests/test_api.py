"""The public interface, against what is written down in api.txt: nothing of it changes unnoticed.

python tests/test_api.py     writes api.txt anew; a change of it belongs into CHANGELOG.md (see CONTRIBUTING.md)
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("api.txt")
#: a package that offers no names itself offers those of its modules
PACKAGES = (
    "nettrim",
    "nettrim.bounds",
    "nettrim.distributed",
    "nettrim.penalties",
    "nettrim.privacy",
    "nettrim.pruners",
    "nettrim.torch",
)
MODULES = ("nettrim.reference",)


def signature(function: Any) -> str:
    """Names, kinds and defaults of the arguments; annotations are for mypy, and may become more precise."""
    parameters = []
    for p in inspect.signature(function).parameters.values():
        # an object's address is no part of the interface
        default = p.default if isinstance(p.default, int | float | str | tuple | None) else type(p.default)
        given = p.default is not inspect.Parameter.empty
        parameters.append(p.replace(annotation=inspect.Parameter.empty, default=default if given else p.empty))
    return str(inspect.Signature(parameters))


def members(name: str, kind: type) -> Iterator[str]:
    """Lines of a class: its constructor, fields, members, properties and methods, those of base classes included."""
    if issubclass(kind, enum.Enum):
        yield from (f"{name}.{member.name} = {member.value!r}" for member in kind)
        return
    yield f"{name}{signature(kind)}"
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    yield from (f"{name}.{field}" for field in sorted(fields) if not field.startswith("_"))
    for attribute in sorted(set(dir(kind)) - fields):
        value = inspect.getattr_static(kind, attribute)
        if attribute.startswith("_") or getattr(value, "__module__", "nettrim").partition(".")[0] not in OURS:
            continue
        plain = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        yield f"{name}.{attribute}{signature(plain) if inspect.isfunction(plain) else ''}"


#: of functions and descriptors of the classes that are listed; the latter have no module
OURS = ("nettrim", "builtins", "functools")


def names() -> Iterator[tuple[str, Any]]:
    """Full name and object of everything that the packages offer."""
    modules = list(MODULES)
    for package in PACKAGES:
        module = importlib.import_module(package)
        inner = [info.name for info in pkgutil.iter_modules(module.__path__, f"{package}.")]
        modules += [package] if hasattr(module, "__all__") else inner
    for name in sorted(modules):
        module = importlib.import_module(name)
        yield from ((f"{name}.{public}", getattr(module, public)) for public in sorted(module.__all__))


def interface() -> list[str]:
    """A line for everything public, and for every command and its options."""
    lines = []
    for full, value in names():
        if inspect.isclass(value):
            lines += members(full, value)
        else:
            lines.append(f"{full}{signature(value)}" if inspect.isroutine(value) else full)
    return lines + list(commands())


def commands() -> Iterator[str]:
    import typer.main

    from nettrim import cli

    group: Any = typer.main.get_command(cli.app)
    for name, command in sorted(group.commands.items()):
        options = sorted("/".join(p.opts + p.secondary_opts) for p in command.params)
        yield f"$ nettrim {name} {' '.join(options)}"


def test_the_interface_is_what_is_written_down():
    written, found = FILE.read_text(encoding="utf-8").splitlines(), interface()
    changes = "\n".join(difflib.unified_diff(written, found, "tests/api.txt", "the code", lineterm="", n=0))
    assert not changes, (
        f"the public interface has changed; if it should have, run `python tests/test_api.py`:\n{changes}"
    )


def test_every_public_name_is_written_down():
    lines = FILE.read_text(encoding="utf-8").splitlines()
    for full, _ in names():
        assert any(line == full or line.startswith((f"{full}(", f"{full}.")) for line in lines), full


if __name__ == "__main__":
    FILE.write_text("\n".join(interface()) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(interface())} lines")
