"""What the command line shows: progress on the standard error, results on the standard output."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nettrim.extras import install
from nettrim.problem import Problem
from nettrim.report import table
from nettrim.solution import Certificate, Solution, Status
from nettrim.units import align, as_bytes

__all__ = [
    "Display",
    "open_console",
    "print_findings",
    "print_lines",
    "print_pruned",
    "print_solution",
    "print_verdict",
    "print_verified",
]

#: a ray that forces the objective above this many times a dense solution's proves infeasibility (as the solver's)
RAY_PROVES = 1e4
#: seconds between two lines of progress where there is no terminal
LINE_EVERY = 5.0
#: columns of tables where there is no terminal to ask
PLAIN_WIDTH = 100


class Display:
    """Progress on the standard error: a bar on a terminal, else a line every few seconds; nothing for short work.

    Called with the name of a stage and None, or the row of a solver's check.
    """

    def __init__(self, gap_tol: float, quiet: bool = False):
        self.gap_tol, self.quiet = gap_tol, quiet
        self.bar: Any = None
        self.task: Any = None
        self.stage = ""
        self.first_gap = 1.0
        self.line_at = time.monotonic() + LINE_EVERY

    def __enter__(self) -> Display:
        if self.quiet or not sys.stderr.isatty():
            return self
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self.task = self.bar.add_task(self.stage, total=1.0, state="")
        self.bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def __call__(self, stage: str, check: dict[str, Any] | None) -> None:
        state, done = "", 0.0
        if check is None or stage != self.stage:
            self.first_gap = 1.0
        self.stage = stage
        if check is not None:
            gap = abs(check["gap"])
            self.first_gap = max(self.first_gap, gap)
            state = f"gap {gap:.1e} so far ({self.gap_tol:.0e} asked)"
            if gap > 0 and self.first_gap > self.gap_tol:
                done = math.log(self.first_gap / gap) / math.log(self.first_gap / self.gap_tol)
                # a full bar would stop the clock, while the violation may still have to fall
                done = min(max(done, 0.0), 0.99)
        if self.bar is not None:
            self.bar.update(self.task, description=stage, completed=done, state=state)
        elif not self.quiet and time.monotonic() >= self.line_at:
            self.line_at = time.monotonic() + LINE_EVERY
            print(f"nettrim: {stage}{': ' + state if state else ''}", file=sys.stderr, flush=True)

    def note(self, line: str) -> None:
        """Print a line that stays, above the bar."""
        if self.bar is not None:
            self.bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif not self.quiet:
            print(f"nettrim: {line}", file=sys.stderr, flush=True)


def print_pruned(pruned: Any, run: Path, weights: str, sizes: dict[str, int]) -> None:
    """What `nettrim prune` says of its result."""
    kept, all_weights = (sum(getattr(r, name) for r in pruned.reports) for name in ("kept", "weights"))
    lines = [
        pruned.table(),
        "",
        f"kept        {kept:,} of {all_weights:,} weights and biases of these layers ({kept / all_weights:.2%})",
        "error       of each layer's outputs in the pruned network, relative, on the calibration samples",
        *(["held out    the same, on samples that were held out"] if pruned.reports[0].holdout is not None else []),
        *_note_on_gaps(pruned.reports),
        f"size        {as_bytes(sizes['dense'])} dense, {as_bytes(sizes['csr'])} CSR, {as_bytes(sizes['bitmask'])}"
        " as a bit mask with values",
        f"written to  {run / weights}, and the report beside it as .json",
        f"next        nettrim verify {run}, nettrim report {run}",
    ]
    others = _others(pruned)
    if others:
        lines.insert(3, f"left        {others}, as they were")
    if pruned.folded:
        lines.insert(3, f"folded      {len(pruned.folded)} batch norms into the layers before them")
    print_lines(open_console(), lines)


def _others(pruned: Any) -> str:
    """How many parameters are in modules that were not pruned, and in which kinds."""
    layers = {r.name for r in pruned.reports}
    counts: dict[str, int] = {}
    for name, module in pruned.model.named_modules():
        size = sum(p.numel() for p in module.parameters(recurse=False))
        if size and name not in layers:
            kind = type(module).__name__
            counts[kind] = counts.get(kind, 0) + size
    kinds = ", ".join(sorted(counts, key=lambda kind: -counts[kind]))
    return f"{sum(counts.values()):,} parameters of other modules ({kinds})" if counts else ""


def _note_on_gaps(reports: Sequence[Any]) -> list[str]:
    """A line if there are layers without a gap."""
    measured = sum(r.status == "measured" for r in reports)
    return [f"measured    {measured} layers: errors are verified, but no gap is proved"] if measured else []


def print_verified(rows: Sequence[Any], settings: dict[str, Any], bound: bool) -> None:
    """What `nettrim verify` found of a network."""
    gaps = any(row.gap is not None for row in rows)
    measured = any(row.status == "measured" for row in rows)
    short = any(row.status not in ("solved", "measured") for row in rows)
    cells = [("layer", "kept", "error", "violation", "claimed", "gap", "status", "holds")] + [
        (
            *(row.name, f"{row.kept:,} of {row.weights:,}", f"{row.discrepancy:.3%}"),
            *(f"{row.violation:.1e}", f"{row.claimed:.1e}", "" if row.gap is None else f"{row.gap:.1e}"),
            row.status.replace("_", " ") if short or measured else "",
            "yes" if row.holds else "NO",
        )
        for row in rows
    ]
    feas_tol, gap_tol = settings.get("feas_tol", 1e-4), settings.get("gap_tol", 1e-3)
    asked = f"violation {feas_tol:g}" + (f", gap {gap_tol:g}" if gaps else "")
    lines = [
        f"tolerances   {asked}",
        "error        of a layer's active outputs by itself, relative, which epsilon limits",
    ]
    if not bound:
        lines.append("gaps         --bound solves every layer again, to prove how far its l1 norm is from the smallest")
    elif any(row.gap is None for row in rows):
        lines.append("gaps         of plain l1 within a given error only: other norms and searches are not in the file")
    if measured:
        lines.append("measured     without a bound: holds if error and violation are as the run reported")
    if short:
        lines.append("status       as the run left it: a layer that was not solved has the weights that it had before")
    lines.append("All layers hold." if all(row.holds for row in rows) else "Not all layers hold.")
    print_lines(open_console(), [align(cells, left=1), "", *lines])


def open_console() -> Any:
    """A console for the standard output, of a fixed width where there is no terminal."""
    from rich.console import Console

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PLAIN_WIDTH)


def print_lines(console: Any, lines: Sequence[str]) -> None:
    """Print lines as they are."""
    for line in lines:
        # as it is: no markup, and paths are not broken
        console.print(line, markup=False, soft_wrap=True)


def print_solution(problem: Problem, solution: Solution, output: Path) -> None:
    """What `nettrim solve` says of its result."""
    c, s = solution.certificate, solution.settings
    relative = f" = {problem.epsilon / problem.y_norm:.4g} ||Y||" if problem.y_norm > 0 else ""
    kind = "linear" if problem.linear else "ReLU"
    each = ", an equal share per neuron" if problem.neuronwise else ""
    lines = [
        f"layer       {problem.N} inputs, {problem.M} neurons, {problem.P} samples, {kind}, {problem.dtype}",
        f"status      {solution.status}",
        f"kept        {c.nnz} of {solution.W.size} weights ({c.density:.2%})",
        f"error       {c.discrepancy:.4%} of ||Y|| on Omega; allowed epsilon = {problem.epsilon:.6g}{relative}{each}",
        f"objective   {c.objective:.8g}, " + _bound(c.objective, c.dual_bound),
        f"gap         {c.gap:.2e} (tolerance {s['gap_tol']:g})",
        f"violation   {c.violation:.2e} (tolerance {s['feas_tol']:g})",
        f"time        {solution.seconds['total']:.2f} s, {solution.effort} ({s['method'].replace('_', ' ')})",
        f"written to  {output}",
    ]
    if problem.epsilon >= problem.y_norm > 0 and c.nnz == 0:
        lines.insert(3, "            W = 0 is within the error: ask for a smaller one (--epsilon 0.1 is 10 % of ||Y||)")
    if solution.status is Status.INFEASIBLE:
        if solution.smallest_epsilon is not None:
            least = solution.smallest_epsilon
            share = f" = {least / problem.y_norm:.4g} ||Y||" if problem.y_norm > 0 else ""
            lines[4:7] = [f"needs       epsilon >= {least:.6g}{share}"]
        else:
            lines[4:7] = ["needs       other bounds V: no epsilon works"]
    print_lines(open_console(), lines)


def _bound(objective: float, dual_bound: float) -> str:
    """The dual bound in words; an objective below it is what the violation gains."""
    if objective < dual_bound and f"{objective:.8g}" != f"{dual_bound:.8g}":
        return f"less than the {dual_bound:.8g} that it takes without the violation below"
    return f"proved to be at least {dual_bound:.8g}"


def print_verdict(
    problem: Problem,
    certificate: Certificate,
    claimed: dict[str, Any],
    gap_tol: float,
    feas_tol: float,
    infeasible: bool,
    forced: float | None,
) -> None:
    """What `nettrim verify` found, beside what the file claims."""
    relative = f" ({problem.epsilon / problem.y_norm:.4g} ||Y_Omega||_F)" if problem.y_norm > 0 else ""
    console = open_console()
    rows = []
    shown: dict[str, float | None] = {"objective": None, "discrepancy": None, "nnz": None}
    if not infeasible:
        within_feas: dict[str, float | None] = {"ball_violation": feas_tol, "inequality_violation": feas_tol}
        shown = {"objective": None, "dual_bound": None, "gap": gap_tol} | within_feas | shown
    for name, tolerance in shown.items():
        value, old = getattr(certificate, name), claimed.get(name)
        within = "" if tolerance is None else ("yes" if abs(value) <= tolerance else "NO")
        rows.append(
            {
                "": name.replace("_", " "),
                "recomputed": f"{value:.8g}",
                "stored": f"{old:.8g}" if isinstance(old, (int, float)) else "-",
                "tolerance": f"{tolerance:g}" if within else "",
                "within": within,
            }
        )
    console.print(table(rows))
    lines = [f"epsilon = {problem.epsilon:.6g}{relative}"]
    if infeasible:
        least = (
            "is missing" if forced is None else f"forces any W to a norm of {forced:.1e} times a dense layer's or more"
        )
        lines.append(f"Claimed to be infeasible; the ray {least}.")
        holds = forced is not None and forced >= RAY_PROVES
    else:
        holds = certificate.holds(gap_tol, feas_tol)
    proof = "proof of infeasibility" if infeasible else "certificate"
    lines.append(f"The {proof} holds." if holds else f"The {proof} does NOT hold.")
    print_lines(console, lines)


def print_findings(found: dict[str, Any]) -> None:
    """What `nettrim doctor` found."""
    console = open_console()
    facts = list(found["versions"].items())
    facts.append(("cores", f"{found['cores']} usable; Numba uses {found['numba_threads']} threads"))
    facts += [
        ("BLAS", f"{blas['library']} {blas['version']}, {blas['threads']} threads, {blas['used_by']}")
        for blas in found["blas"]
    ]
    facts += [("GPU", gpu) for gpu in found["gpus"] or ["none found"]]
    facts.append(("data", found["data"]["message"]))
    check = found["self_check"]
    facts.append(
        (
            "self-check",
            f"{check['status']}: gap {check['gap']:.1e}, violation {check['violation']:.1e};"
            f" {check['seconds']:.2f} s, {check['first_seconds']:.1f} s the first time (with compilation)",
        )
    )
    lines = [f"{name:<15}{fact}" for name, fact in facts]
    print_lines(console, lines)
    rows = [
        {
            "optional package": package["name"],
            "version": package["version"] or "-",
            "extra": package["extra"],
            "for": package["for"],
        }
        for package in found["optional"]
    ]
    console.print(table(rows, left=list(rows[0])))
    print_lines(console, [f"If missing: {install('NAME')}"])
