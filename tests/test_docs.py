"""The pages: links and anchors, pictures, the table of contents, commands and messages that they quote."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
import typer.main

from nettrim.cli import app

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "_generated"} & set(p.relative_to(DOCS).parts))
GENERATED = sorted((DOCS / "_generated").glob("*.md"))
TEXTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]

FENCE = re.compile(r"^ *(```+|~~~+).*?^ *\1 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?)\[[^\]\n]*(?:\n[^\]\n]+)*\]\(([^()\s]*)\)")
CODE = re.compile(r"`[^`\n]+`")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def prose(path: Path) -> str:
    """The text without blocks of code and formulas, in which brackets are no links."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    text = re.sub(r"\$\$.*?\$\$", "", text, flags=re.DOTALL)
    return CODE.sub("", text)


def links(text: str) -> list[tuple[bool, str]]:
    """(whether it is a picture, target) of every link."""
    return [(bool(mark), target) for mark, target in LINK.findall(text)]


@cache
def anchors(path: Path) -> set[str]:
    """Anchors as GitHub and MyST make them of headings, and labels as (label)= gives them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    found = set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))
    for title in re.findall(r"^#{1,6} +(.+?) *$", text, re.MULTILINE):
        title = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title.lower())
        found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def broken(path: Path, target: str, picture: bool) -> str:
    """What is wrong with a link from a page; empty if nothing is."""
    if re.match(r"[a-z]+:", target):
        return ""
    file, _, anchor = target.partition("#")
    there = (path.parent / file).resolve() if file else path
    if not there.exists():
        return f"{target}: there is no such file"
    if ROOT not in (there, *there.parents):
        return f"{target} leaves the repository"
    if picture and there.suffix not in (".png", ".svg"):
        return f"{target} is no picture"
    if anchor and there.suffix == ".md" and anchor not in anchors(there):
        return f"{target}: {name(there)} has {', '.join(sorted(anchors(there)))}"
    return ""


@pytest.mark.parametrize("path", TEXTS, ids=name)
def test_links_lead_somewhere(path):
    assert [b for picture, target in links(prose(path)) if (b := broken(path, target, picture))] == []


@pytest.mark.parametrize("path", GENERATED, ids=name)
def test_generated_parts_link_to_nothing_relative(path):
    """They are included by pages in several folders."""
    assert [t for _, t in links(prose(path)) if not re.match(r"[a-z]+:", t)] == []


@pytest.mark.parametrize(
    ("target", "trouble"),
    [
        ("nowhere.md", "no such file"),
        ("quickstart.md#nowhere", "has "),
        ("../../elsewhere.md", "no such file"),
        ("../..", "leaves"),
        ("quickstart.md#statuses", ""),
        ("https://example.org/x", ""),
    ],
)
def test_a_broken_link_is_found(target, trouble):
    assert links(f"see [a page]({target})") == [(False, target)]
    found = broken(DOCS / "index.md", target, False)
    assert trouble in found and bool(found) == bool(trouble)


def entries(path: Path) -> list[Path]:
    """What the toctrees of a page list."""
    found = []
    for block in re.findall(r"^```\{toctree\}\n(.*?)^```$", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.split("\n"):
            if line.strip() and not line.startswith(":"):
                stem = path.parent / line.strip()
                found.append(next((p for s in (".md", ".rst") if (p := Path(f"{stem}{s}")).exists()), stem))
    return found


def test_every_page_is_in_the_table_of_contents():
    listed = [entry.resolve() for page in PAGES for entry in entries(page)]
    pages = {*PAGES, *DOCS.glob("*.rst")} - {DOCS / "index.md"}
    assert [name(p) for p in listed if not p.exists()] == []
    assert sorted(map(name, pages - set(listed))) == []
    assert len(listed) == len(set(listed))


def test_every_included_file_exists():
    pattern = re.compile(r"^ *```\{(?:literal)?include\} *(\S+)", re.MULTILINE)
    found = [(page, page.parent / path) for page in PAGES for path in pattern.findall(page.read_text(encoding="utf-8"))]
    assert len(found) > 10
    assert [f"{name(page)}: {path}" for page, path in found if not path.exists()] == []


def test_every_picture_is_shown_somewhere():
    """A picture that no page shows is left over."""
    shown = {(p.parent / t).resolve() for p in [*TEXTS, *GENERATED] for picture, t in links(prose(p)) if picture}
    # generated parts name pictures as the pages that include them do
    text = "".join(p.read_text(encoding="utf-8") for p in [*TEXTS, *GENERATED])
    assert [p.name for p in (DOCS / "_static").glob("*.png") if p not in shown and p.name not in text] == []


# commands


COMMANDS = typer.main.get_command(app).commands


def calls(text: str) -> list[str]:
    """Calls of the command line in blocks of code, indented code and code in lines; lines that end in \\ go on."""
    blocks = "\n".join(match.group(0) for match in FENCE.finditer(text))
    indented = "\n".join(line[4:] for line in text.split("\n") if line.startswith("    "))
    lines = f"{blocks}\n{indented}".replace("\\\n", " ")
    found = re.findall(r"^(?:>>> shell\(\")?(nettrim [a-z][^\n\"]*)", lines, re.MULTILINE)
    return [*found, *re.findall(r"`(nettrim [a-z][^`\n]*)`", FENCE.sub("", text))]


def trouble(call: str) -> str:
    """What is wrong with a call of the command line; empty if nothing is."""
    call = call.split("  #")[0]
    words = shlex.split(call.replace("...", "").replace("…", ""))[1:]
    command = COMMANDS.get(words[0])
    if command is None:
        return f"no command {words[0]!r}"
    options = {name for p in command.params for name in (*p.opts, *p.secondary_opts) if name.startswith("-")}
    wrong = [w for w in words[1:] if re.match(r"-{1,2}[a-z]", w) and w.split("=")[0] not in options | {"--help"}]
    return f"{words[0]} has no {', '.join(wrong)}" if wrong else ""


@pytest.mark.parametrize("path", [p for p in TEXTS if "nettrim " in p.read_text(encoding="utf-8")], ids=name)
def test_commands_and_their_options_exist(path):
    text = path.read_text(encoding="utf-8")
    assert [f"{c}: {t}" for c in calls(text) for part in c.split(" && ") if (t := trouble(part))] == []


def test_options_exist_that_stand_alone():
    """Options named in running text, without their command."""
    text = "".join(FENCE.sub("", path.read_text(encoding="utf-8")) for path in TEXTS)
    found = set(re.findall(r"`(--[a-z][\w-]*)", text))
    known = {option for command in COMMANDS.values() for p in command.params for option in (*p.opts, *p.secondary_opts)}
    # those of nettrim's scripts and of the programs that it is developed with
    others = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "bench").glob("*.py"))
    assert len(found & known) > 10
    assert [option for option in sorted(found - known) if f'"{option}"' not in others] == []


@pytest.mark.parametrize("call", ["nettrim frobnicate x", "nettrim solve in.npz --frobnicate", "nettrim prune -x y"])
def test_a_command_that_does_not_exist_is_found(call):
    for text in (f"```sh\n{call}\n```", f"    {call}\n", f"as `{call}` does"):
        assert calls(text) == [call]
        assert trouble(call)


def test_commands_are_looked_for():
    assert sum(len(calls(p.read_text(encoding="utf-8"))) for p in TEXTS) > 40


# messages


@cache
def messages() -> str:
    """Every piece of text in the package's code."""
    pieces = []
    for path in (ROOT / "nettrim").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                pieces.append(" ".join(node.value.split()))
    return "\n".join(pieces)


def quoted(text: str) -> list[str]:
    """Messages that the page of troubles quotes: blocks of text, and what is in italics in its tables."""
    blocks = re.findall(r"^ *```text\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL)
    cells = [
        c for line in text.split("\n") if line.startswith("|") for c in re.findall(r"(?<!\*)\*([^*|]+)\*(?!\*)", line)
    ]
    return [*blocks, *cells]


def missing(message: str) -> list[str]:
    """Parts of a message, between the places where values stand, that the code does not say."""
    parts = [" ".join(part.split()).strip(" :") for part in message.split("…")]
    return [part for part in parts if len(part) > 3 and part not in messages()]


def test_quoted_messages_are_those_of_the_code():
    found = quoted((DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(found) > 25
    assert {m: absent for m in found if (absent := missing(m.replace("`", "")))} == {}
    assert missing("layer … keeps nothing at all: …") == ["keeps nothing at all"]
