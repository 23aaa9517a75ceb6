"""The page of a pruned network: one HTML file with tables, plots and pictures of the weights."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from nettrim import __version__
from nettrim.extras import install
from nettrim.units import as_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from nettrim.torch.comparison import Comparison, LayerComparison

__all__ = ["render"]

#: one for each run; the first is the one that the tables are about
COLOURS = ("#0b6fb8", "#d1661d", "#2b8a4b", "#8a4fb0", "#b3263e", "#6b6b6b", "#c49a00", "#00a3a3", "#e377c2", "#4d3b2f")
GREY = "#9aa3ab"
#: sides of a picture of weights at most, in pixels; larger matrices are shown by the largest entries of blocks
SIDE = 320
#: per cent kept that is still drawn on a logarithmic axis; what keeps less, or nothing, is drawn there
LEAST = 0.01
#: layers side by side
ACROSS = 4


def render(model: str, names: Sequence[str], found: Comparison) -> str:
    """The page as text.

    Parameters
    ----------
    model : str
        What the title calls the model.
    names : sequence of str
        Of the runs.
    found : Comparison

    Returns
    -------
    str

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"nettrim report needs matplotlib: {install('demo')}") from error
    # the same page for the same runs
    with matplotlib.rc_context(_STYLE):
        plots = [
            ("Kept, and the error that it costs", _overview(names, found), _OVERVIEW),
            ("Trade-off of each layer", _trade_off(names, found), _trade_off_caption(found)),
        ]
        if len(names) > 1:
            plots.insert(1, ("Trade-off of the network", _network_trade_off(names, found), _NETWORK))
        if any(_allocation(report) for report in found.reports):
            plots.append(("Densities of the layers", _allocations(names, found), _ALLOCATION))
        sections = "".join(
            f"<h2>{title}</h2>\n<p>{caption}</p>\n{_image(_svg(figure), title, 'image/svg+xml')}\n"
            for title, figure, caption in plots
        )
        pictures = "".join(_pictures(layer) for layer in found.layers)
    report = found.reports[0]
    return _PAGE.substitute(
        title=html.escape(model),
        facts=_facts(report),
        runs=_runs(names, found) if len(names) > 1 else "",
        of=f", run {html.escape(names[0])}" if len(names) > 1 else "",
        layers=_layers(report, found),
        sections=sections,
        pictures=pictures,
        version=__version__,
        settings=html.escape(", ".join(f"{k} = {v}" for k, v in _shown(report["settings"]).items())),
    )


def _shown(settings: dict[str, Any]) -> dict[str, Any]:
    """What was set; not the digests."""
    return {k: v for k, v in settings.items() if v is not None and k not in ("calibration", "original", "allocation")}


# tables


def _facts(report: dict[str, Any]) -> str:
    rows = report["layers"]
    weights, kept = (sum(row[name] for row in rows) for name in ("weights", "kept"))
    solved = sum(row["status"] == "solved" for row in rows)
    measured = sum(row["status"] == "measured" for row in rows)
    last = rows[-1]
    facts = [
        (f"{kept / weights:.2%}", f"kept: {kept:,} of {weights:,} weights and biases"),
        (f"{solved} of {len(rows)}", "layers certified within the tolerances" + _others(measured)),
        (_number(max(abs(_or_inf(row["gap"])) for row in rows)), "largest duality gap"),
        (_number(max(_or_inf(row["violation"]) for row in rows)), "largest violation of a constraint"),
        (
            _percent(last["error"] if last["holdout"] is None else last["holdout"]),
            f"error of the last layer, {html.escape(last['name'])}"
            + ("" if last["holdout"] is None else ", on samples held out"),
        ),
        (as_seconds(sum(row["seconds"] for row in rows)), f"of solving, scheme {html.escape(report['scheme'])}"),
    ]
    return "".join(f"<div><b>{value}</b><span>{what}</span></div>" for value, what in facts)


def _others(measured: int) -> str:
    return f"; {measured} measured, by a method without a dual bound" if measured else ""


def _runs(names: Sequence[str], found: Comparison) -> str:
    cells = []
    for name, report in zip(names, found.reports, strict=True):
        rows, last = report["layers"], report["layers"][-1]
        kept = sum(row["kept"] for row in rows) / sum(row["weights"] for row in rows)
        settings = report["settings"]
        what = "epsilon" if settings.get("density") is None else "density"
        number = settings[what]
        asked = (
            f"{number:g}" if isinstance(number, (int, float)) else ", ".join(f"{k}: {v:g}" for k, v in number.items())
        )
        cells.append(
            (
                name,
                report["scheme"],
                f"{what} {asked}",
                settings.get("method", "auto"),
                f"{kept:.2%}",
                _percent(last["error"]),
                _percent(last["holdout"]),
            )
        )
    titles = ("run", "scheme", "asked", "method", "kept", f"error of {last['name']}", "held out")
    return "<h2>Runs</h2>\n" + _table(titles, cells, left=4)


def _layers(report: dict[str, Any], found: Comparison) -> str:
    cells = []
    for row, layer in zip(report["layers"], found.layers, strict=True):
        used = layer.after != 0
        cells.append(
            (
                *(row["name"], row["kind"], row["status"].replace("_", " ")),
                *(f"{row['kept']:,} of {row['weights']:,}", f"{row['kept'] / row['weights']:.2%}", str(row["round"])),
                # of a grouped convolution a row is another input in every group
                "" if layer.groups > 1 else f"{int((~used.any(1)).sum()):,} of {used.shape[0]:,}",
                f"{int((~used.any(0)).sum()):,} of {used.shape[1]:,}",
                *(f"{row['epsilon']:.2%}", _number(_or_inf(row["gap"])), _number(_or_inf(row["violation"]))),
                *(_percent(row["error"]), _percent(row["holdout"]), as_seconds(row["seconds"])),
            )
        )
    titles = (
        *(
            "layer",
            "kind",
            "status",
            "kept",
            "",
            "round",
            "inputs unused",
            "neurons empty",
            "epsilon",
            "gap",
            "violation",
        ),
        *("error", "held out", "time"),
    )
    return _table(titles, cells, left=3)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], left: int) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        marked = (f'<{tag} class="l">' if k < left else f"<{tag}>" for k in range(len(cells)))
        return "<tr>" + "".join(f"{m}{html.escape(c)}</{tag}>" for m, c in zip(marked, cells, strict=True)) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table>\n{line(titles, "th")}\n{body}\n</table></div>'


def _or_inf(value: float | None) -> float:
    """JSON has no infinity: it is None there."""
    return math.inf if value is None else value


def _number(value: float) -> str:
    return f"{value:.1e}" if math.isfinite(value) else "none proved"


def _label(name: str) -> str:
    """For matplotlib, which reads formulas between dollars and hides what begins with an underscore."""
    return "\u200b" + name.replace("$", r"\$")


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"


# plots

_STYLE: dict[Any, Any] = {
    **{"svg.hashsalt": "nettrim", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False},
    **{"axes.grid": True, "grid.color": "#e6e9ec", "axes.axisbelow": True},
}
_OVERVIEW = (
    "Left: what is left of each layer. Right: the error of its outputs in the pruned network, relative to their norm; "
    "a tick is the epsilon that was asked of the layer by itself, hollow bars are samples that were held out."
)
_NETWORK = (
    "Error of the last layer that was pruned, in the pruned network, against what is kept of all of them; hollow: on "
    "samples that were held out."
)


_ALLOCATION = (
    "How the densities were chosen: the error of the model's outputs, on samples that the pruning had not seen, with "
    "one layer alone pruned; a circle is what the layer was given."
)


def _trade_off_caption(found: Comparison) -> str:
    first = " from the first run" if len(found.reports) > 1 else ""
    which = f"that were held out{first}" if found.held_out else "that the layers were pruned on (none were held out)"
    return (
        "Each layer by itself, from the unpruned network's inputs: the error of its outputs against the weights that "
        "are kept. The line is magnitude pruning of the same layer, which keeps its largest weights as they are; the "
        f"points are the runs. Measured on {found.samples} samples {which}."
    )


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _overview(names: Sequence[str], found: Comparison) -> Figure:
    layers = [_label(layer.name) for layer in found.layers]
    count, runs = len(layers), len(names)
    figure = _figure(10, max(1.6, 0.34 * count * (1 + 0.35 * (runs - 1)) + 0.9))
    kept, error = figure.subplots(1, 2, sharey=True)
    height = 0.8 / runs
    for k, (name, report) in enumerate(zip(names, found.reports, strict=True)):
        colour, places = COLOURS[k % len(COLOURS)], np.arange(count) + (k - (runs - 1) / 2) * height
        rows = report["layers"]
        kept.barh(
            places, [100 * r["kept"] / r["weights"] for r in rows], 0.9 * height, color=colour, label=_label(name)
        )
        error.barh(places, [100 * r["error"] for r in rows], 0.9 * height, color=colour)
        held = [math.nan if r["holdout"] is None else 100 * r["holdout"] for r in rows]
        error.barh(places, held, 0.9 * height, color="none", edgecolor="black", linewidth=0.8)
        asked = [100 * r["epsilon"] for r in rows]
        error.vlines(asked, places - height / 2, places + height / 2, color="black", linewidth=1.6)
    kept.set_yticks(range(count), layers)
    kept.invert_yaxis()
    kept.set_xlabel("weights and biases kept, %")
    error.set_xlabel("error, %")
    for axes in (kept, error):
        axes.grid(axis="y", visible=False)
    if runs > 1:
        figure.legend(*kept.get_legend_handles_labels(), loc="outside upper center", ncols=min(runs, 6), frameon=False)
    return figure


def _trade_off(names: Sequence[str], found: Comparison) -> Figure:
    count = len(found.layers)
    across = min(ACROSS, count)
    down = -(-count // across)
    figure = _figure(10, 2.3 * down + 0.4)
    panels = figure.subplots(down, across, squeeze=False, sharey=True).ravel()
    for axes, layer in zip(panels, found.layers, strict=False):
        axes.plot(100 * np.array(layer.fractions), 100 * np.array(layer.magnitude), color=GREY, label="magnitude")
        for k, (density, error) in enumerate(layer.points):
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(
                max(100 * density, LEAST),
                100 * error,
                marker="o",
                color=colour,
                linestyle="none",
                label=_label(names[k]),
            )
        axes.set_title(_label(layer.name), loc="left", fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(max(LEAST, min(0.8, 80 * min(d for d, _ in layer.points))), 110)
        axes.set_ylim(0, 105)
        axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axes.minorticks_off()
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.supxlabel("weights kept, % (logarithmic)", fontsize=9)
    figure.supylabel("error, %", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=7, frameon=False)
    return figure


def _network_trade_off(names: Sequence[str], found: Comparison) -> Figure:
    figure = _figure(6, 3)
    axes = figure.subplots()
    for k, (name, report) in enumerate(zip(names, found.reports, strict=True)):
        rows, last, colour = report["layers"], report["layers"][-1], COLOURS[k % len(COLOURS)]
        kept = 100 * sum(row["kept"] for row in rows) / sum(row["weights"] for row in rows)
        axes.plot(kept, 100 * last["error"], marker="o", color=colour, linestyle="none", label=_label(name))
        if last["holdout"] is not None:
            axes.plot(kept, 100 * last["holdout"], marker="o", markerfacecolor="none", color=colour)
    axes.set_xlabel("weights and biases kept, %")
    axes.set_ylabel("error, %")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return figure


def _allocation(report: dict[str, Any]) -> list[tuple[str, list[tuple[float, float]], float]]:
    """(layer, curve, density) of a report's allocation; a file that was received may hold anything there."""
    given = report["settings"].get("allocation")
    try:
        return [
            (str(name), [(float(d), float(e)) for d, e in curve if d > 0], float(given["densities"][name]))
            for name, curve in given["curves"].items()
        ]
    except (TypeError, ValueError, KeyError, AttributeError):
        return []


def _allocations(names: Sequence[str], found: Comparison) -> Figure:
    shown = [(name, rows) for name, report in zip(names, found.reports, strict=True) if (rows := _allocation(report))]
    figure = _figure(10, 3)
    panels = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
    for axes, (run, rows) in zip(panels, shown, strict=True):
        for k, (name, curve, density) in enumerate(rows):
            d, e = np.array(curve).T
            colour = COLOURS[k % len(COLOURS)]
            axes.plot(100 * d, 100 * e, color=colour, label=_label(name))
            at = np.interp(np.log(max(density, d[0] / 4)), np.log(d), e)
            axes.plot(100 * density, 100 * at, marker="o", color=colour)
        axes.set_xscale("log")
        axes.set_xticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("weights of the layer kept, % (logarithmic)")
        axes.legend(frameon=False)
        if len(shown) > 1:
            axes.set_title(_label(run), loc="left", fontsize=9)
    panels[0].set_ylabel("error of the model's outputs, %")
    return figure


def _svg(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


# pictures of weights


def _pictures(layer: LayerComparison) -> str:
    """A layer's absolute weights before and after, inputs downwards, on one scale."""
    scale = float(np.quantile(np.abs(layer.before), 0.995)) or 1.0
    images = "".join(
        f"<figure>{_image(_png(np.abs(W) / scale), f'{layer.name} {when}', 'image/png', _zoom(W))}"
        f"<figcaption>{when}</figcaption></figure>"
        for when, W in (("before", layer.before), ("after", layer.after))
    )
    rows, columns = layer.before.shape
    name = html.escape(layer.name)
    return f'<div class="layer"><h3>{name} <span>{rows:,} inputs x {columns:,} neurons</span></h3>{images}</div>\n'


def _zoom(W: np.ndarray) -> str:
    """Width of the picture: small matrices are enlarged, and slim ones not too slim."""
    rows, columns = W.shape
    zoom = max(1, SIDE // (2 * max(rows, columns)))
    return f' style="width: {min(max(zoom * columns, 24), SIDE)}px"'


def _png(relative: np.ndarray) -> bytes:
    """White for zero, dark for one and more; blocks of a large matrix by their largest entries."""
    from matplotlib.image import imsave

    for axis in (0, 1):
        edges = np.arange(0, relative.shape[axis], -(-relative.shape[axis] // SIDE))
        relative = np.maximum.reduceat(relative, edges, axis=axis)
    file = io.BytesIO()
    # weights that are not zero are never quite white
    shown = np.where(relative > 0, 0.12 + 0.88 * np.clip(relative, 0, 1), 0)
    imsave(file, shown, cmap="Blues", vmin=0, vmax=1, format="png", metadata={"Software": None})
    return file.getvalue()


def _image(data: bytes, label: str, kind: str, style: str = "") -> str:
    text = base64.b64encode(data).decode()
    return f'<img{style} alt="{html.escape(label)}" src="data:{kind};base64,{text}">'


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title, pruned</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2429; background: #fff; max-width: 1040px; margin: 0 auto;
  padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 36px 0 4px; }
h3 { font-size: 14px; margin: 0 0 6px; } h3 span { font-weight: normal; color: #66727a; }
p { margin: 4px 0 10px; color: #47525a; max-width: 80ch; }
.facts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 10px; margin: 18px 0; }
.facts div { background: #f3f6f8; border-radius: 6px; padding: 10px 14px; }
.facts b { display: block; font-size: 21px; } .facts span { color: #47525a; font-size: 13px; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; white-space: nowrap; }
th, td { text-align: right; padding: 3px 12px 3px 0; border-bottom: 1px solid #e6e9ec; }
th { color: #66727a; font-weight: normal; vertical-align: bottom; } .l { text-align: left; }
td { font-variant-numeric: tabular-nums; }
img { max-width: 100%; } figure { display: inline-block; margin: 0 14px 0 0; vertical-align: top; }
figure img { border: 1px solid #d5dade; image-rendering: pixelated; max-width: 320px; }
figcaption { font-size: 12px; color: #66727a; }
.layers { display: flex; flex-wrap: wrap; gap: 22px 30px; } dt { font-weight: 600; }
dd { margin: 0 0 6px; color: #47525a; }
footer { margin-top: 40px; font-size: 12px; color: #66727a; overflow-wrap: anywhere; }
</style>
</head>
<body>
<h1>$title</h1>
<p>Pruned by convex optimisation, layer by layer, each with a certificate$of.</p>
<div class="facts">$facts</div>
$runs
<h2>Layers$of</h2>
$layers
$sections
<h2>Weights$of</h2>
<p>Absolute values, inputs downwards and neurons to the right, both pictures of a layer on one scale; white is zero. Of
large layers each pixel is the largest of a block.</p>
<div class="layers">
$pictures</div>
<h2>What is certified</h2>
<dl>
<dt>gap</dt><dd>The l1 norm of the pruned weights is, relatively, at most this far above the smallest that any weights
within the same constraints have. Slightly negative if they gain by a violation. From the second round on it is the
weighted norm of that round of reweighted l1. None is proved for layers that were <i>measured</i>: a search, a refit or
another pruner found their weights, and epsilon is the error that they make.</dd>
<dt>violation</dt><dd>How far a constraint is exceeded, relatively: the layer's error over epsilon, or outputs above
their bound where the unpruned layer was silent.</dd>
<dt>error, held out</dt><dd>Distance of the layer's outputs in the pruned network from those in the unpruned one,
relative, on the calibration samples and on others. Measured, not certified.</dd>
<dt>not certified</dt><dd>That no sparser weights exist, or anything about samples other than those for
calibration.</dd>
</dl>
<footer>nettrim $version. Settings: $settings. Check this run with <code>nettrim verify</code>.</footer>
</body>
</html>
""")
