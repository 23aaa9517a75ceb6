"""How the gallery's pictures look, and where they go."""

from pathlib import Path

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

FOLDER = Path(__file__).resolve().parent.parent / "_static"
#: of Okabe and Ito, which stay apart for colour-blind readers
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, GREY = "#CC79A7", "#8a9299"
#: blue, grey and red for weights; white is kept for exact zeros, given as NaN
LADDER = ["#053061", BLUE, "#dfe3e6", ORANGE, "#67200a"]
SIGNED = LinearSegmentedColormap.from_list("signed", LADDER).with_extremes(
    bad="white"
)

matplotlib.rcParams.update(
    {
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.fontsize": 8,
        "legend.frameon": False,
        "lines.linewidth": 1.5,
        "lines.markersize": 4,
    }
)


def panels(rows=1, columns=2, height=2.8):
    """A figure and its axes."""
    figure = Figure(
        figsize=(7.5, height),
        layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08),
    )
    return figure, figure.subplots(rows, columns)


def bare(axes, title=""):
    """Axes of an image: a title, a frame and no ticks."""
    axes.set_title(title, loc="left")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(True)


def save(figure, name):
    """Write ``_static/gallery_<name>.png``."""
    figure.savefig(FOLDER / f"gallery_{name}.png", dpi=150)
