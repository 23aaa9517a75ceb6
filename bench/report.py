"""Write the measured figures of bench/results into README.md and docs/_generated, and nothing else.

python bench/report.py
"""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import study_tables
from common import read

from nettrim.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"admm": "ADMM", "working_set": "working sets"}


def environment(env: dict, threads: bool = True) -> str:
    count = f"{study_tables.counted(env['threads'], 'thread')}, " if threads else ""
    return f"{env['cpu']}, {count}NumPy {env['numpy']}, SciPy {env['scipy']}, Numba {env['numba']}, {env['date'][:10]}"


def published(record: dict) -> list[str]:
    rows = sorted(record.get("published", []), key=lambda r: (r["layer"], r["epsilon"]))
    if not rows:
        return []
    env = record["environment"]["published"]
    out = [
        "**Time to a certificate (gap 1e-3, violation 1e-3), against Algorithm 5.1 as published.** "
        "MNIST network 784-300-1000-100-10, all neurons, P = 5000, float32 against float64 (as published), the better "
        "of rho = 1 and 100. `>=`: the published algorithm had not reached the certificate when it was stopped. "
        'nettrim is `method="auto"`; the two methods alone are beside it.',
        "",
        "| layer | N x P -> M | epsilon | kept | nettrim | its gap | ADMM alone | working sets alone "
        "| published | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        mine = r["nettrim"]
        best = next(p for p in r["published"] if p["rho"] == r["baseline_rho"])
        mark = ">= " if r["lower_bound"] else ""
        out.append(
            f"| {r['layer']} | {r['N']} x {r['P']} -> {r['M']} | {r['epsilon']} | {mine['kept']:.1%} "
            f"| {mine['seconds']:.3g} s ({NAMES[mine['method']]}) | {abs(mine['gap']):.0e} "
            f"| {r['methods']['admm']['seconds']:.3g} s | {r['methods']['working_set']['seconds']:.3g} s "
            f"| {mark}{best['seconds']:.3g} s, {best['iterations']} iterations (rho {best['rho']:g}) "
            f"| {mark}{r['ratio']:.1f} |"
        )
    s = record["published_summary"]
    caps = " or ".join(f"{cap:g}" for cap in sorted({r["cap"] for r in rows}))
    measured = f"{len(rows)} of 12 cells measured" if len(rows) < 12 else "12 cells"
    out += [
        "",
        f"Median ratio {s['median_ratio']:.1f}, smallest {s['min_ratio']:.1f} ({measured}, {s['lower_bounds']} of them "
        f"lower bounds: runs are stopped at {caps} times nettrim's time). {environment(env)}. "
        "ADMM's constants were chosen on layers of another training of this architecture, those of the working sets "
        "and of the choice between the two on these very layers: not untouched data; "
        "which rho is the better one is decided at 10 times nettrim's time.",
        "",
    ]
    return out


def cvxpy(record: dict) -> list[str]:
    rows = record.get("cvxpy", [])
    if not rows:
        return []
    env = record["environment"]["cvxpy"]
    limits = " or ".join(f"{limit:g}" for limit in sorted({r["limit"] for r in rows}))
    out = [
        "**Against cvxpy at gap 1e-6 (float64).** First neurons of layer 2, epsilon 0.1; a solver that does not reach "
        f"the certificate within {limits} s is charged that time.",
        "",
        "| solver | N x P -> M | nettrim | cvxpy | ratio |",
        "|---|---|---|---|---|",
    ]
    for r in rows:
        theirs = f"{r['seconds']:.3g} s" if r["solved"] else f"not solved in {r['limit']:g} s ({r['message']})"
        out.append(
            f"| {r['solver']} | {r['N']} x {r['P']} -> {r['M']} | {r['nettrim']['seconds']:.3g} s (gap "
            f"{r['nettrim']['gap']:.0e}) | {theirs} | {'' if r['solved'] else '>= '}{r['ratio']:.0f} |"
        )
    return [*out, "", environment(env) + ".", ""]


def _shared(rows: list[dict]) -> str:
    """Setup, mostly second moments, of the linear layer at the most samples."""
    most = max((r["P"] for r in rows), default=0)
    cells = [r["working_set"] for r in rows if (r["layer"], r["dtype"], r["P"]) == (4, "float64", most)]
    if not cells:
        return ""
    setup, whole = (1e3 * statistics.median(c["phases"][k] for c in cells) for k in ("setup", "total"))
    return f" ({setup:.0f} of the {whole:.0f} ms of working sets at P = {most} in float64)"


def methods(record: dict) -> list[str]:
    rows = sorted(record.get("methods", []), key=lambda r: (r["dtype"], r["P"], r["layer"], r["epsilon"]))
    if not rows:
        return []
    env = record["environment"]["methods"]
    caps = " or ".join(f"{c:g}" for c in sorted({r["cap"] for r in rows}, reverse=True))
    medians = []
    for key in sorted({(r["dtype"], r["P"]) for r in rows}):
        ratios = [r["ratio"] for r in rows if (r["dtype"], r["P"]) == key]
        medians.append(f"{key[0]}, P = {key[1]}: {statistics.median(ratios):.1f} ({len(ratios)} cells)")
    out = [
        f"**Working sets against ADMM** (all neurons; `>=`: ADMM is stopped at {caps} times the working sets' time). "
        f"Medians of the ratios, stopped ones as bounds: {'; '.join(medians)}. Layer 4 has no ReLU: both methods sum "
        f"the same second moments first{_shared(rows)}. Of the 12 cells of each, those of layer 2 that are missing "
        "were not run.",
        "",
        "| layer | N x P -> M | epsilon | gap asked | threads | working sets | their gap | ADMM | ratio | auto |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        exact, mark = r["working_set"], ">= " if r["lower_bound"] else ""
        over = ", handed over to ADMM" if exact["method"] == "admm" else ""
        if (limit := r.get("memory_limit", Settings().memory_limit)) != Settings().memory_limit:
            over += f", memory_limit {limit / 1e9:.0f} GB"
        beside = f" ({r['auto']['beside']})" if "beside" in r["auto"] else ""
        out.append(
            f"| {r['layer']} | {r['N']} x {r['P']} -> {r['M']} | {r['epsilon']} | {r['gap_tol']:g}, {r['dtype']} "
            f"| {r['threads']} | {exact['seconds']:.3g} s{over} | {abs(exact['gap']):.0e} "
            f"| {mark}{r['admm']['seconds']:.3g} s | {mark}{r['ratio']:.1f} "
            f"| {r['auto']['seconds']:.3g} s{beside} |"
        )
    return [*out, "", environment(env) + ".", ""]


def iteration(record: dict | None) -> list[str]:
    if not record:
        return []
    out = [
        "**One ADMM iteration against its three matrix products alone** (P = 5000; median of paired runs).",
        "",
        "| layer | dtype | iteration | products | ratio | GFLOP/s | of the measured GEMM peak |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        out.append(
            f"| {r['layer']} ({r['N']} x {r['P']} -> {r['M']}) | {r['dtype']} | {r['iteration_ms']:.1f} ms "
            f"| {r['products_ms']:.1f} ms | {r['ratio_median']:.2f} | {r['gflops_per_second']:.0f} "
            f"| {r['percent_of_peak']:.0f} % |"
        )
    return [*out, "", environment(record["environment"]) + ".", ""]


def scaling(record: dict | None) -> list[str]:
    if not record:
        return []
    out = [
        "**Scaling** (epsilon 0.1, default tolerances, float32; peak memory above the loaded inputs, against the "
        "promise of 3 M x P + 4 N x N float64 + 50 MB, which ADMM makes and working sets do not).",
        "",
        "| method | N x P -> M | iterations or rounds | seconds | ms each | peak MB | promised MB |",
        "|---|---|---|---|---|---|---|",
    ]
    slopes = []
    for method, all_series in record["series"].items():
        for name, series in all_series.items():
            for r in series["rows"]:
                mark = " (exceeded)" if method == "admm" and not r["within_promise"] else ""
                out.append(
                    f"| {NAMES[method]} | {r['N']} x {r['P']} -> {r['M']} | {r['iterations']} | {r['seconds']:.2f} "
                    f"| {r['ms_per_iteration']:.1f} | {r['peak_megabytes']:.0f} "
                    f"| {r['promised_megabytes']:.0f}{mark} |"
                )
            s = series["slopes"]
            slopes.append(f"{NAMES[method]}, {name}: {s['seconds']:.2f} ({s['ms_per_iteration']:.2f} for one)")
    env = environment(next(iter(record["environment"].values())))
    return [*out, "", f"Log-log slopes of the seconds: {'; '.join(slopes)}. {env}.", ""]


def rounds(record: dict | None) -> list[str]:
    if not record:
        return []
    out = [
        f"Layer {record['layer']} of the MNIST network ({record['N']} x {record['P']} -> {record['M']}, all neurons), "
        f"epsilon {record['epsilon']:g}, float64, gap asked 1e-9, from a coarse start. Inputs and bounds are those in "
        "all neurons' sets together, kinks those of all paths so far, and the ball is the residual over its radius.",
        "",
        "| round | inputs | bounds | kinks | ball | gap | violation | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        out.append(
            f"| {r['iteration']} | {r['inputs']} | {r['bounds']} | {r['kinks']} | {r['ball']:.4f} | {r['gap']:.0e} "
            f"| {r['violation']:.0e} | {r['seconds']:.2f} |"
        )
    passes = 2 * len(record["rows"])
    return [
        *out,
        "",
        f"{record['status'].capitalize()}: certified gap {abs(record['gap']):.0e}, violation "
        f"{record['violation']:.0e}, {record['kept']:.1%} of the weights kept. The checks are {passes} products with "
        "all samples; the right-hand sides and the certificate are four more, and the neurons read their own samples. "
        f"{environment(record['environment'])}.",
        "",
    ]


def targets(record: dict | None) -> list[str]:
    """A line for each layer and density: the search for its epsilon against one solve."""
    if not record:
        return []
    out = [
        "| layer | density asked | kept | epsilon found | search | one solve there | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        out.append(
            f"| {r['layer']} | {r['density']:.0%} | {r['kept']:.2%} | {r['epsilon']:.4f} | {r['search']:.1f} s "
            f"| {r['solve']['seconds']:.1f} s | {r['ratio']:.1f} |"
        )
    return [*out, "", f"P = {record['samples']}, all neurons. {environment(record['environment'])}.", ""]


def equalities(record: dict | None) -> list[str]:
    """A line for each layer and number of samples at a radius of zero."""
    if not record:
        return []
    out = [
        "| layer | N x P -> M | working sets | gap | violation | ADMM | gap | violation | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        both = r["working_set"], r["admm"]
        cells = [f"{m['seconds']:.1f} s | {m['gap']:.0e} | {m['violation']:.0e}" for m in both]
        bound = "≥ " if r["lower_bound"] else ""
        shape = f"{r['N']} x {r['P']} -> {r['M']}"
        out.append(f"| {r['layer']} | {shape} | {cells[0]} | {cells[1]} | {bound}{r['ratio']:.1f} |")
    note = f"Asked: gap 1e-3, violation 1e-4; ADMM was stopped at {record['cap']:g} times the other's seconds."
    return [*out, "", f"{note} {environment(record['environment'])}.", ""]


def outofcore(record: dict | None) -> list[str]:
    if not record:
        return []
    out = [
        "| samples | N x P -> M | threads | cache | memory, peak | state | iteration | of processors | predicted "
        "| disk, products alone | read, written | disk alone |",
        f"|{'---|' * 12}",
    ]
    for r in record["rows"]:
        state = "on disk" if r["scratch"] else "in memory"
        out.append(
            f"| in {r['samples']} | {r['N']} x {r['P']} -> {r['M']} | {r['threads']} "
            f"| {'dropped before a pass' if r['cold'] else 'kept'} "
            f"| {r['memory'] / 1e6:.0f} MB, {r['peak'] / 1e6:.0f} MB | {state} | {r['iteration_seconds']:.2f} s "
            f"| {r['processor_seconds']:.2f} s | {r['predicted_seconds']:.2f} s "
            f"| {r['disk_seconds']:.2f} s, {r['product_seconds']:.2f} s "
            f"| {r['read'] / 1e9:.2f} GB, {r['written'] / 1e9:.2f} GB: {r['bytes_per_second'] / 1e6:.0f} MB/s "
            f"| {r['disk_read_per_second'] / 1e6:.0f} MB/s, {r['disk_write_per_second'] / 1e6:.0f} MB/s |"
        )
    return [
        *out,
        "",
        "float32. `threads` are of the products; one more reads. `cache`: whether the kernel had the samples in its "
        "cache; the state, written a moment before, may be there in either case. Where other programs ran beside the "
        "benchmark, the seconds of processors say less of them than the clock. "
        f"{environment(record['environment'], threads=False)}.",
        "",
    ]


def distributed(record: dict | None) -> list[str]:
    """A line for each number of workers."""
    if not record:
        return []
    out = [
        "| workers | iteration | fastest | predicted | sent by all, an iteration | model | messages in a row | latency "
        "| bandwidth | difference of weights |",
        f"|{'---|' * 10}",
    ]
    for r in record["rows"]:
        out.append(
            f"| {r['workers']} | {r['iteration_seconds']:.2f} s | {r['fastest_seconds']:.2f} s "
            f"| {r['predicted_seconds']:.2f} s | {r['sent'] / 1e6:.2f} MB | {r['sent_model'] / 1e6:.2f} MB "
            f"| 2 x {r['depth']} | {1e3 * r['latency_seconds']:.1f} ms | {r['bytes_per_second'] / 1e6:.0f} MB/s "
            f"| {r['difference']:.0e} |"
        )
    return [
        *out,
        "",
        f"{record['N']} x {record['P']} -> {record['M']}, float32, workers of one thread on "
        f"{record['environment']['cores']} cores. Sent: what the transport of every process counts, messages of the "
        "cluster about itself included. Latency: an empty question to an actor and its answer; bandwidth: an N x M "
        f"matrix with it. Difference: of the weights after {record['rows'][0]['iterations']} iterations to those of "
        f"one worker, relative to the largest. Load of the machine at the end: {record['load']:.1f}; where it exceeds "
        "the cores other programs ran beside the benchmark, and its seconds say little. "
        f"{environment(record['environment'])}.",
        "",
    ]


#: assumed of a machine of a cluster: flops a second in float32 (half in float64), seconds of a message and its answer,
#: bytes a second between two machines and from a disk
ASSUMED = {"flops": 5e11, "latency": 1e-3, "bandwidth": 1.25e9, "disk": 2e9}


def plans() -> list[str]:
    """Layers that no machine here could hold, by the model of `nettrim.distributed.cost`."""
    from nettrim.distributed.cost import Cost

    out = [
        "| layer | N x P -> M | workers | samples and state of each | arithmetic of a worker | of the client | network "
        "| an iteration | if samples are on disk | 300 iterations |",
        f"|{'---|' * 10}",
    ]
    cases = [
        ("a layer of the MNIST network, 10^9 samples", 785, 300, 10**9, (16, 64, 256)),
        ("ReLU layer of a transformer, 10^6 tokens", 4097, 16384, 10**6, (16, 64)),
    ]
    for name, N, M, P, counts in cases:
        for workers in counts:
            cost = Cost(N, M, P, workers)
            flops, latency, band = (ASSUMED[key] for key in ("flops", "latency", "bandwidth"))
            whole = cost.seconds(flops, latency, band, client_flops=flops / 2)
            worker, client = cost.worker_flops / flops, cost.client_flops / (flops / 2)
            held = 4 * P * (N + 2 * M) / workers
            disk = max(whole - worker, 0) + max(worker, 2 * 4 * P * (N + 3 * M) / workers / ASSUMED["disk"])
            out.append(
                f"| {name} | {N} x {P:.0e} -> {M} | {workers} | {held / 1e9:.0f} GB | {worker:.2f} s | {client:.2f} s "
                f"| {whole - worker - client:.2f} s | {whole:.1f} s | {disk:.0f} s | {300 * whole / 3600:.1f} h |"
            )
    hidden, blocks, tokens = 4096, 50, 10**6
    shapes = [("attention", hidden, hidden, 4), ("up", hidden, 4 * hidden, 1), ("down", 4 * hidden, hidden, 1)]
    speed = ASSUMED["flops"] / 2
    lines, hours, weights = [], 0.0, 0
    for name, N, M, count in shapes:
        moments, inverse, solve = float(N) ** 2 * tokens, 2.0 * N**3, 300 * 2.0 * N**2 * M
        seconds = (moments + inverse + solve) / speed
        hours += blocks * count * seconds / 3600
        weights += blocks * count * N * M
        lines.append(
            f"| {name}, {blocks * count} of them | {N} -> {M} | {moments / speed / 60:.0f} min "
            f"| {inverse / speed / 60:.1f} min | {solve / speed / 60:.0f} min | {4 * 8 * N**2 / 1e9:.1f} GB |"
        )
    return [
        *out,
        "",
        f"A transformer of {weights / 1e10:.1f} x 10^10 weights ({blocks} blocks of width {hidden}), all its "
        f"matrices as linear layers, each a task, on {tokens:.0e} tokens:",
        "",
        "| matrix | inputs -> outputs | moments | an inverse | 300 iterations | systems in memory |",
        "|---|---|---|---|---|---|",
        *lines,
        "",
        f"That is {hours:.0f} hours of one worker, or {hours / 64:.1f} of 64, plus the forward passes of the model "
        "that give the samples. Assumed of a worker: "
        f"{ASSUMED['flops'] / 1e9:.0f} GFLOP/s in float32 and half in float64, "
        f"{1e3 * ASSUMED['latency']:g} ms a message and its answer, "
        f"{ASSUMED['bandwidth'] / 1e9:g} GB/s between machines, {ASSUMED['disk'] / 1e9:g} GB/s from disk; "
        "300 iterations are a guess, and may be three times as many.",
        "",
    ]


def convolution(record: dict | None) -> list[str]:
    if not record:
        return []
    out = [
        f"**Convolutions (gap 1e-3, violation 1e-3).** A LeNet-5 ({record['accuracy']:.2%} on the test images), "
        f"epsilon 0.1, {record['images']} training images, float32. Published: ten steps of conjugate gradients an "
        "iteration, on the same operator, in float64, the better of rho = 1 and 100. Memory is the peak over that with "
        "X unfolded in full: of the products alone (X counted), also on "
        f"{record['rows'][0]['many_products']['images']} images, and of whole solves, with outputs and state besides.",
        "",
        "| layer | N x P -> M | nettrim | X unfolded | published | ratio | memory: products | on many images | ADMM "
        "| working sets |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["rows"]:
        ours, bound = r["auto"]["convolution"], ">= " if r["lower_bound"] else ""
        peaks = r["peak_megabytes"]
        many = {"products": peaks["products"], "many": r["many_products"], **peaks}
        memory = (f"{m['convolution'] / m['unfolded']:.2f}" for m in many.values())
        out.append(
            f"| {r['layer']} | {r['N']} x {r['P']} -> {r['M']} | {ours['seconds']:.2f} s "
            f"({ours['method'].replace('_', ' ')}) | {r['auto']['unfolded']['seconds']:.2f} s "
            f"| {bound}{r['published']['seconds']:.1f} s | {bound}{r['ratio']:.0f} | {' | '.join(memory)} |"
        )
    return [*out, "", f"{environment(record['environment'])}.", ""]


def network(record: dict | None) -> list[str]:
    """Each run as a line, its layers' kept weights and errors in one."""
    if not record:
        return []
    out = [
        "| network | scheme | epsilon | rounds | refit | kept | accuracy | kept by layer | error of the outputs "
        "| held out | seconds |",
        f"|{'---|' * 11}",
    ]
    for r in record["runs"]:
        last = r["layers"][-1]
        by_layer = ", ".join(f"{layer['density']:.0%}" for layer in r["layers"])
        out.append(
            f"| {r.get('network', 'own')} | {r['scheme']} | {r['epsilon']:g} | {r.get('rounds', 1)} "
            f"| {r.get('refit') or ''} | {r['kept']:.1%} | {r['accuracy']:.2%} "
            f"| {by_layer} | {last['error']:.1%} | {last['holdout']:.1%} | {r['seconds']:.0f} |"
        )
    dense = f"own {record['accuracy']:.2%}"
    if "accuracy_shared" in record:
        dense += f", shared {record['accuracy_shared']:.2%}"
    return [*out, "", f"Unpruned: {dense}. {environment(record['environment'])}.", ""]


def reweighting(record: dict | None) -> list[str]:
    """A line for each layer and round."""
    if not record:
        return []
    out = ["| layer | N x P -> M | round | kept | error | held out | seconds |", "|---|---|---|---|---|---|---|"]
    for layer in record["layers"]:
        for r in layer["rounds"]:
            shape = f"{layer['N']} x {record['samples']} -> {layer['M']}"
            out.append(
                f"| {layer['layer']} | {shape} | {r['round']} | {r['kept']:.2%} | {r['discrepancy']:.4f} "
                f"| {r['heldout']:.4f} | {r['seconds']:.2f} |"
            )
    return [*out, "", f"epsilon {record['epsilon']:g}. {environment(record['environment'])}.", ""]


def structured(record: dict | None) -> list[str]:
    """A line for each way of dropping whole inputs or outputs, with the rivals at the same counts."""
    if not record:
        return []
    out = [
        "| penalty | rounds | refit | epsilon | inputs used | parameters | accuracy | norms | norms, refit | forward |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["runs"]:
        found = [r["accuracy"], *(r.get("rivals", {}).get(name) for name in ("norms", "norms, refit"))]
        best = max(a for a in found if a is not None)
        cells = ["" if a is None else f"**{a:.2%}**" if a == best and "rivals" in r else f"{a:.2%}" for a in found]
        before, after = r["parameters"]
        used = " / ".join(map(str, r["inputs"]))
        out.append(
            f"| {r['penalty']} | {r['rounds']} | {r['refit'] or ''} | {r['epsilon']:g} | {used} | {after / before:.1%} "
            f"| {' | '.join(cells)} | {r['forward_ratio']:.2f} |"
        )
    note = f"Unpruned {record['accuracy']:.2%}; forward: seconds over the unpruned network's, within about a third."
    return [*out, "", f"{note} {environment(record['environment'])}.", ""]


def shrunk(record: dict) -> list[str]:
    """The README's lines on whole inputs: the rows of reweighted group norms beside the better rival."""
    out = []
    for r in record["runs"]:
        if r["penalty"] == "inputs" and r["rounds"] > 1 and not r["refit"]:
            before, after = r["parameters"]
            rival = max(r["rivals"].values())
            out.append(
                f"epsilon {r['epsilon']:g}: {after / before:.0%} of the parameters, {r['accuracy']:.2%} (the "
                f"largest inputs by norm, as many, with a least-squares refit: {rival:.2%}), {r['forward_ratio']:.2f} "
                "of the time"
            )
    return [
        f"MNIST network, no fine-tuning, test accuracy {record['accuracy']:.2%} unpruned: {'; '.join(out)} "
        "(`bench/structured.py`)."
    ]


def pruners(record: dict | None) -> list[str]:
    """The search beside the best rival of each cell, chosen by validation; networks; the Gaussian layer."""
    if not record:
        return []
    out: list[str] = []
    cells: dict[tuple, dict[str, dict]] = {}
    for r in record.get("layers", []):
        cells.setdefault((r["network"], r["layer"], -r["kept"]), {})[r["method"]] = r
    if cells:
        efforts = ("fast", "default", "thorough")
        out += [
            "In each cell of the search: its error, **over the best rival's**, and seconds.",
            "",
            f"| layer | kept | best rival | its error | ALPS alone | {' | '.join(f'l0, {e}' for e in efforts)} |",
            f"|{'---|' * (5 + len(efforts))}",
        ]
        for (name, layer, kept), cell in sorted(cells.items()):
            rival = best_rival(cell)
            line = [f"{layer}{'' if name == 'shared' else f' ({name})'}", f"{-kept:.0%}", rival["method"]]
            line += [f"{rival['test']:.4f}", f"{cell['alps']['seconds']:.2g} s"]
            for effort in efforts:
                r = cell.get(f"l0, {effort}")
                line.append(
                    f"{r['test']:.4f}, **{r['test'] / rival['test']:.2f}**, {r['seconds']:.2g} s"
                    if r is not None
                    else ""
                )
            out.append(f"| {' | '.join(line)} |")
        out.append("")
    found = {(r["network"], r["kept"], r["method"], r["scheme"]): r for r in record.get("networks", [])}
    if found:
        kepts = sorted({k for _, k, _, _ in found}, reverse=True)
        out += [
            "Test accuracy of whole networks without fine-tuning: the same density in every layer, or (allocated)",
            "densities of `nt.allocate` for the same count of the network:",
            "",
            f"| method | scheme | {' | '.join(f'{k:.0%} kept' for k in kepts)} |",
            f"|{'---|' * (2 + len(kepts))}",
        ]
        best = {k: max(r["test"] for (_, other, _, _), r in found.items() if other == k) for k in kepts}
        for name, method, scheme in dict.fromkeys((n, m, s) for n, _, m, s in found):
            shown = []
            for k in kepts:
                r = found.get((name, k, method, scheme))
                mark = "**" if r and r["test"] == best[k] else ""
                shown.append(f"{mark}{r['test']:.2%}{mark}" if r else "")
            place = "" if name == "shared" else f" ({name})"
            out.append(f"| {method}{place} | {scheme} | {' | '.join(shown)} |")
        dense = ", ".join(f"{name} {a['test']:.2%}" for name, a in record["dense"].items())
        out += ["", f"Unpruned: {dense}.", ""]
    if rows := record.get("gaussian"):
        methods = list(rows[0]["validation"])
        out += [
            f"An untrained layer, independent Gaussian weights and inputs ({rows[0]['N']} x {rows[0]['M']}), held-out "
            "error; magnitude and ALPS with a least-squares refit:",
            "",
            f"| kept | {' | '.join(methods)} |",
            f"|{'---|' * (1 + len(methods))}",
        ]
        for r in rows:
            errors = [f"{r['validation'][m]:.3f}" for m in methods]
            out.append(f"| {r['kept']:.0%} | {' | '.join(errors)} |")
        out.append("")
    return [*out, f"{environment(next(iter(record['environment'].values())))}.", ""]


def best_rival(cell: dict[str, dict]) -> dict:
    return min((r for m, r in cell.items() if not m.startswith("l0")), key=lambda r: r["validation"])


def study(path: Path) -> list[str]:
    """The table of `nettrim study networks`, from its committed records."""
    if not path.exists():
        return []
    from nettrim.studies import networks
    from nettrim.studies.records import Records

    records = Records(path, networks.KEY)
    (rows,) = networks.tables(records).values()
    out = [f"| {' | '.join(rows[0])} |", f"|{'---|' * len(rows[0])}"]
    out += [f"| {' | '.join(row.values())} |" for row in rows]
    env = records.rows[-1]["environment"]
    cores = study_tables.counted(env["cores"], "core")
    return [*out, "", f"{cores}, torch {env['torch']}, NumPy {env['numpy']}, {env['date'][:10]}.", ""]


def compared(path: Path) -> list[str]:
    """Methods by kept fractions: test accuracy after pruning, and after fine-tuning, of each network in a study."""
    if not path.exists():
        return []
    rows, out = [json.loads(line) for line in path.read_text().splitlines()], []
    for case in dict.fromkeys(r["case"] for r in rows):
        own = [r for r in rows if r["case"] == case]
        kept = sorted({r["kept"] for r in own}, reverse=True)
        cells = {(r["method"], r["kept"]): r for r in own}
        best = {
            (k, when): max((r for r in own if r["kept"] == k), key=lambda r: r[when]["test"])[when]["test"]
            for k in kept
            for when in ("pruned", "tuned")
        }
        out += [f"| {case} | " + " | ".join(f"{k:.0%} kept" for k in kept) + " |", "|---" * (len(kept) + 1) + "|"]
        for method in dict.fromkeys(r["method"] for r in own):
            line = []
            for k in kept:
                r = cells.get((method, k))
                texts = []
                for when in ("pruned", "tuned") if r else ():
                    text = f"{100 * r[when]['test']:.2f}"
                    texts.append(f"**{text}**" if r[when]["test"] == best[k, when] else text)
                line.append(" / ".join(texts))
            out.append(f"| {method} | " + " | ".join(line) + " |")
        dense, epochs = own[0]["dense"]["test"], study_tables.counted(own[0]["epochs"], "epoch")
        # of 10000 test images
        deviation = 100 * math.sqrt(dense * (1 - dense) / 10000)
        out += [
            "",
            f"Unpruned {100 * dense:.2f} %. Before / after {epochs} on what is left, one seed, bold the best of a "
            f"column; a test accuracy like the unpruned one's has a standard error of {deviation:.1f} points.",
            "",
        ]
    return out


def lenet(path: Path) -> list[str]:
    """The README's line on LeNet-5: the search beside the best rival, chosen by validation, at small counts."""
    if not path.exists():
        return []
    rows = [r for r in (json.loads(line) for line in path.read_text().splitlines()) if r["case"] == "lenet5"]
    parts = []
    for kept in (0.1, 0.05, 0.02, 0.01):
        own = next(r for r in rows if r["kept"] == kept and r["method"] == "l0, cascade, allocated")
        rivals = [r for r in rows if r["kept"] == kept and not r["method"].startswith(("l0", "l1"))]
        texts = []
        for when in ("pruned", "tuned"):
            best = max(rivals, key=lambda r, when=when: r[when]["validation"])
            texts.append(f"{own[when]['test']:.2%} ({best[when]['test']:.2%})")
        parts.append(f"{kept:.0%} kept {texts[0]}, after two epochs on what is left {texts[1]}")
    return [
        "LeNet-5 on MNIST, in brackets the best rival's with the same densities or one for all layers: "
        f"{'; '.join(parts)}; unpruned {rows[0]['dense']['test']:.2%} (`nettrim study pruners --preset cpu`, one seed)."
    ]


def searched(record: dict) -> list[str]:
    """The README's short table: test error of the search over that of the best rival."""
    cells: dict[tuple, dict[str, dict]] = {}
    for r in record["layers"]:
        cells.setdefault((r["layer"], r["kept"]), {})[r["method"]] = r
    kept = (0.2, 0.1, 0.05, 0.02)
    out = [
        "| error over that of the best rival, its refit included | " + " | ".join(f"{k:.0%} kept" for k in kept) + " |",
        f"|{'---|' * (1 + len(kept))}",
    ]
    for layer in (1, 2, 3):
        row = []
        for k in kept:
            cell = cells[layer, k]
            row.append(f"{cell['l0, default']['test'] / best_rival(cell)['test']:.2f}")
        out.append(f"| MNIST network, layer {layer} | {' | '.join(row)} |")
    whole = {}
    for r in record["networks"]:
        whole.setdefault(r["kept"], []).append(r)
    found = []
    for k in kept:
        mine, rival = (
            max((r for r in whole[k] if r["method"].startswith("l0") == ours), key=lambda r: r["validation"])
            for ours in (True, False)
        )
        found.append(f"{k:.0%} kept {mine['test']:.2%} ({rival['test']:.2%})")
    return [
        *out,
        "",
        "Accuracy of the whole network without fine-tuning, densities by `nt.allocate`, in brackets the best rival's "
        f"with the same help: {', '.join(found)}; unpruned {record['dense']['shared']['test']:.2%}.",
        "",
        'On the test images, 20000 calibration samples, `effort="default"`; the rivals are magnitude, Wanda, SparseGPT '
        "and ALPS ([more](docs/algorithm/counts.md#measured), `bench/pruners.py`).",
    ]


def replace(path: Path, name: str, lines: list[str]) -> None:
    """Put lines between the markers of a name."""
    body = "\n".join(lines)
    text, found = re.subn(
        rf"<!-- {name}:begin -->.*?<!-- {name}:end -->",
        lambda _: f"<!-- {name}:begin -->\n{body}\n<!-- {name}:end -->",
        path.read_text(),
        flags=re.S,
    )
    if found != 1:
        raise SystemExit(f"{path} has no {name}:begin / {name}:end markers")
    path.write_text(text)


def main() -> None:
    solvers = read("solvers") or {}
    sections = [
        published(solvers),
        cvxpy(solvers),
        methods(solvers),
        iteration(read("iteration")),
        scaling(read("scaling")),
        convolution(read("convolution")),
    ]
    generated = ROOT / "docs" / "_generated" / "bench.md"
    generated.parent.mkdir(exist_ok=True)
    generated.write_text("\n".join(line for section in sections for line in section))
    if rows := rounds(read("rounds")):
        (generated.parent / "rounds.md").write_text("\n".join(rows))
    if rows := targets(read("targets")):
        (generated.parent / "targets.md").write_text("\n".join(rows))
    if rows := equalities(read("equalities")):
        (generated.parent / "equalities.md").write_text("\n".join(rows))
    if rows := outofcore(read("outofcore")):
        (generated.parent / "outofcore.md").write_text("\n".join(rows))
    if rows := distributed(read("distributed")):
        (generated.parent / "distributed.md").write_text("\n".join(rows))
    (generated.parent / "plans.md").write_text("\n".join(plans()))
    if rows := network(read("network")):
        (generated.parent / "network.md").write_text("\n".join(rows))
    if rows := reweighting(read("reweighting")):
        (generated.parent / "reweighting.md").write_text("\n".join(rows))
    if rows := structured(read("structured")):
        (generated.parent / "structured.md").write_text("\n".join(rows))
    if rows := pruners(read("pruners")):
        (generated.parent / "pruners.md").write_text("\n".join(rows))
    if rows := study(ROOT / "bench" / "results" / "networks.cpu.jsonl"):
        (generated.parent / "networks_study.md").write_text("\n".join(rows))
    networks = (ROOT / "bench" / "results" / f"pruners.{preset}.jsonl" for preset in ("cpu", "cifar"))
    if rows := [line for path in networks for line in compared(path)]:
        (generated.parent / "pruners_study.md").write_text("\n".join(rows))
    for name, lines in study_tables.pages(ROOT / "bench" / "results").items():
        (generated.parent / f"{name}.md").write_text("\n".join(lines))
    readme = ROOT / "README.md"
    if readme.exists() and (lines := lenet(ROOT / "bench" / "results" / "pruners.cpu.jsonl")):
        replace(readme, "lenet", lines)
    coresets = ROOT / "bench" / "results" / "coreset-report.cpu.jsonl"
    if readme.exists() and coresets.exists():
        replace(readme, "coresets", study_tables.guaranteed(coresets))
    if readme.exists() and (record := read("structured")):
        replace(readme, "structured", shrunk(record))
    if readme.exists() and (record := read("pruners")):
        replace(readme, "pruners", searched(record))
    if readme.exists():
        replace(readme, "bench", [line for section in sections[:2] for line in section])
    print(generated)


if __name__ == "__main__":
    main()
