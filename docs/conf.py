"""Sphinx configuration: MyST pages, numpydoc docstrings, the furo theme; `make docs` treats warnings as errors."""

import re
from pathlib import Path

import nettrim

project = "nettrim"
author = "nettrim developers"
project_copyright = "2026, nettrim developers"
release = version = nettrim.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.mathjax"]
exclude_patterns = ["_build", "_generated"]
html_theme = "furo"
html_title = f"nettrim {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]  # measured tables have many columns
pygments_style = "default"

myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "substitution"]
myst_heading_anchors = 3

# A single backtick in a docstring links what Sphinx knows and is plain code otherwise (a parameter, say).
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the types are in the docstrings, with shapes
numpydoc_show_class_members = False  # the members are listed by autodoc

# The examples are small: one BLAS thread is faster, and on a busy machine much faster, than several.
doctest_global_setup = """
import numpy as np
import nettrim as nt
import threadpoolctl
threadpoolctl.threadpool_limits(1)
"""


def _figures(name):
    """What bench/report.py has written from the results of bench/; the pages build without it too."""
    path = Path(__file__).parent / "_generated" / f"{name}.md"
    if path.exists():
        return path.read_text(encoding="utf-8")
    return "*No benchmark has been run in this copy; `python bench/report.py` puts the figures here.*"


myst_substitutions = {
    "measured_figures": _figures("bench"),
    "measured_rounds": _figures("rounds"),
    "measured_equalities": _figures("equalities"),
}


def _escape_bars(app, what, name, obj, options, lines):
    """Docstrings write absolute values as |W|, for the terminal; reStructuredText would look for a substitution."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = re.split(r"(``.*?``)", line)
            lines[i] = "".join(p if p.startswith("``") else p.replace("|", r"\|") for p in parts)


def setup(app):
    # after numpydoc, which has the default priority
    app.connect("autodoc-process-docstring", _escape_bars, priority=900)
