"""One call of `Solver.solve`: chooses the method, judges its checks, and ends with a certified solution."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from nettrim import backends, coarse, vertex
from nettrim.admm import Check
from nettrim.checkpoint import Keeper
from nettrim.convolution import Convolution
from nettrim.equalities import Equalities, determined, stand_in
from nettrim.infeasible import Proof, compact_proof, prove
from nettrim.interrupt import Interrupt
from nettrim.polish import ROUNDS, cost, polish
from nettrim.solution import Certificate, Solution, Status, certify
from nettrim.threads import blas_threads
from nettrim.working_set import WorkingSet

if TYPE_CHECKING:
    from nettrim.solver import Solver

__all__ = ["Run"]

#: polish is first tried at this gap, or five times the tolerance if that is larger, then at each third of the last one
POLISH_FROM, POLISH_TIMES = 2e-3, 5
#: rounds (and products) a polish is charged with when weighed against the iterations it may save
POLISH_ROUNDS = 12
#: checks in a row with a lower bound of twice the iterate's objective before infeasibility is looked into
SUSPICIONS = 3
#: violation left at the iteration limit from which infeasibility is looked into
INFEASIBLE_FROM = 1e-2
#: working sets start from ADMM on all samples when they are expected to take as long as this many of its iterations,
#: once its gap is at most this or after this many iterations
FINE_START, FINE_GAP, FINE_ITERATIONS = 400, 0.2, 150
#: flops (some tenths of a second) below which there is nothing to choose
NOTHING = 2e10
#: working sets are left when they are expected to take this many times as long as what ADMM has still to do
DENSE = 1.0
#: and after paths that took this many times as long as all that ADMM would have to do
SPENT = 1.0
#: radii below this fraction of ||Y_Omega|| are left to ADMM: the working sets' multipliers are residuals over mu
SMALLEST_RADIUS = 1e-4
#: a polish is also tried at this iteration, and at each doubling, whatever the gap: small radii may never reach it
POLISH_AT = 200

#: at a limit an earlier check's weights are looked at when its gap was this fraction of the last one's
BETTER = 0.5

#: what a method's checks are counted in
UNITS = {"admm": "iteration", "working_set": "round"}
#: reasons with which a solve ends, whatever the method
FINAL = ("accepted", "max_iterations", "time_limit", "interrupted", "infeasible")
#: and those with which it could go on
LIMITS = ("max_iterations", "time_limit", "interrupted")
#: why working sets could not go on
HANDED_OVER = {
    "memory": "their matrices exceed memory_limit",
    "budget": "they have taken as long as ADMM is expected to",
    "out of reach": "the ball is out of their reach",
    "precision": "nothing is left to add, but the tolerances are not met",
}

log = logging.getLogger("nettrim")


class Run:
    """One call of `Solver.solve`: judges the loop's checks and ends with a certified solution."""

    def __init__(self, solver: Solver, began: float, interrupt: Interrupt):
        self.solver, self.problem, self.settings = solver, solver.problem, solver.settings
        self.began, self.interrupt = began, interrupt
        self.seconds = {"setup": 0.0, "iterate": 0.0, "polish": 0.0, "certify": 0.0}
        self.history: list[dict[str, Any]] = []
        self.method, self.iterated = "working_set", 0
        self.found: tuple[np.ndarray, np.ndarray | None, Certificate] | None = None
        # of the best check so far, by its gap: a limit may come just after the penalties have changed
        self.best: tuple[float, np.ndarray] | None = None
        # a polish works on X as an array, on the host
        unfolded = isinstance(self.problem.X, Convolution) and not self.problem.compact
        there = not unfolded and not self.problem.on_disk
        self.polishes = self.settings.polish and solver.backend.on_host and there and self.problem.plain
        self.polish_at = POLISH_AT
        self.tried_vertex = False
        self.callback_stops = False
        self.polish_below = max(POLISH_TIMES * self.settings.gap_tol, POLISH_FROM)
        # tightened when the certificate refuses what the loop's estimates had passed
        self.margin = 1.0
        self.suspicious = 0
        self.patience = SUSPICIONS
        self.proof: Proof | None = None
        self.keeper: Keeper | None = None

    def solution(self) -> Solution:
        """Run the method, and the other one if it hands over, and certify what comes of it."""
        p = self.problem
        if p.zero_is_feasible:
            self._certified(np.zeros((p.N, p.M), p.dtype), self._no_multipliers())
            return self._finish(Status.SOLVED, 0, "W = 0 meets every constraint.")
        self.loop = self.solver._loop()
        plan = self.solver._disk_plan if p.on_disk else self.solver._plan
        if plan is not None:
            log.info("%s", plan.table())
            if self.settings.verbose:
                print(plan.table())
        if p.compact:
            self.proof = compact_proof(p, self.solver._reduced)
            if self.proof is not None:
                return self._infeasible(0)
        reason, iterations = "admm", 0
        self._resume()
        if self.settings.method != "admm" and p.plain and not self.iterated:
            reason, iterations = self._working_sets()
        if reason not in FINAL:
            exact, rounds = self.found, iterations
            self.method, self.found, self.tried_vertex = "admm", None, False
            reason, iterations = self._admm(self._accept)
            last = self.found
            if exact and last and reason != "accepted" and self._score(exact[2]) < self._score(last[2]):
                self.method, self.found, iterations = "working_set", exact, rounds
        doubtful = self.proof is None and self.found[2].violation > INFEASIBLE_FROM
        if reason == "max_iterations" and self.method == "admm" and doubtful:
            self._try_proof()
        if self.proof is not None:
            return self._infeasible(iterations)
        return self._finish(*self._verdict(reason, iterations))

    def _admm(self, accept: Callable[[Check], bool]) -> tuple[str, int]:
        """Iterate until `accept`, on from what this solve has done before; the iterations of both are returned."""
        solver = self.solver
        if solver._state is None:
            solver._state = self.loop.start()
        state = solver._state
        first = state.iteration - self.iterated
        self.seconds["setup"] += self._elapsed() - sum(self.seconds.values())
        keep = None if self.keeper is None else partial(self.keeper.keep, samples=self.loop.samples)
        reason = self.loop.run(state, self.settings, accept, self._stopped, self._observe, self.iterated, keep)
        self.seconds["iterate"] += self._elapsed() - sum(self.seconds.values())
        self.iterated = state.iteration - first
        if self.keeper is not None and reason in LIMITS:
            self.keeper.write(state, self.loop.samples, self.iterated)
        if reason == "diverged":
            self._start_again()
            reason = "max_iterations"
        return reason, self.iterated

    def _resume(self) -> None:
        """Go on where a checkpoint left an earlier solve, if there is one and this solver has no state of its own."""
        solver = self.solver
        self.keeper = Keeper.of(self.problem, self.settings, solver.backend.name)
        found = self.keeper.resume(self.loop.samples) if self.keeper and solver._state is None else None
        if found is not None:
            solver._start, (solver._state, self.iterated) = None, found

    def _start_again(self) -> None:
        """After iterates that overflowed: the best check's weights, or none, are what is left of them."""
        p = self.problem
        self.solver._state = self.loop.start()
        W = np.zeros((p.N, p.M), p.dtype) if self.best is None else self.best[1]
        self._certified(W, self._no_multipliers())

    def _no_multipliers(self) -> np.ndarray:
        p = self.problem
        if p.on_disk:
            return p.shards.multiplier(0.0) if p.shards is not None else np.broadcast_to(p.dtype.type(0), (p.M, p.P))
        return np.zeros((p.N + 1, p.M) if p.compact else (p.M, p.P), p.dtype)

    def _working_sets(self) -> tuple[str, int]:
        """Run the rounds; a reason that is not in FINAL says why ADMM has to go on."""
        solver, loop = self.solver, self.loop
        if not loop.backend.on_host:
            return self._hand_over(f"backend {loop.backend.name} has ADMM only")
        if self.problem.on_disk:
            return self._hand_over("they need any samples at any time, and these are on disk")
        if solver._costly and self.settings.method == "auto":
            return self._hand_over("in an earlier solve they took as long as ADMM is expected to")
        equalities = not loop.radii.any()
        if not equalities and loop.radii.min() < SMALLEST_RADIUS * np.linalg.norm(loop.sizes) / np.sqrt(
            loop.radii.size
        ):
            return self._hand_over("epsilon is too small for them")
        if equalities and self.settings.method == "auto" and determined(loop):
            return self._hand_over("the outputs determine the weights")
        start, first = solver._start, stand_in(loop) if equalities else loop
        fresh = start is None or start.far_from(float(np.linalg.norm(first.radii)))
        if fresh and not equalities and loop.samples.mask.all() and self.problem.N <= coarse.WHOLE:
            start = coarse.whole_start(loop)
        elif fresh:
            start = coarse.coarse_start(first, self._stopped)
            worthwhile = max(NOTHING, FINE_START * coarse.iteration_work(loop))
            if not equalities and coarse.exact_work(start, loop, coarse.COARSE) > worthwhile:
                fine, reason, iterations = self._fine_start()
                if fine is None:
                    self.method = "admm"
                    return reason, iterations
                start = fine
                if self.settings.method == "auto":
                    exact = coarse.exact_work(start, loop, coarse.FINE)
                    remaining = max(
                        coarse.iterations(coarse.relative_radius(loop), self.settings.gap_tol) - iterations, iterations
                    )
                    if exact > DENSE * remaining * coarse.iteration_work(loop):
                        return self._hand_over("the supports are dense")
        threads = self.settings.n_threads or blas_threads()
        kind = Equalities if equalities else WorkingSet
        budget = np.inf
        if self.settings.method == "auto" and not equalities:
            # of several threads, each follows a path of its own
            count = coarse.iterations(coarse.relative_radius(loop), self.settings.gap_tol)
            budget = max(SPENT * count * coarse.iteration_work(loop), NOTHING) * min(threads, loop.samples.shape[1])
        method = kind(loop, self.settings, threads, self._stopped, solver._working, budget)
        solver._working = None
        self.seconds["setup"] += self._elapsed() - sum(self.seconds.values())
        reason, rounds = method.run(start, self._accept_round, self._observe)
        self.seconds["iterate"] += self._elapsed() - sum(self.seconds.values())
        if reason == "precision" and self.found is not None:
            # float32 weights cannot be better: nothing else would help
            single = self.problem.dtype == np.float32
            near = self.found[2].holds(10 * self.settings.gap_tol, 10 * self.settings.feas_tol)
            # but at a radius of zero ADMM may end at a vertex
            reason = "max_iterations" if (near or single) and not (equalities and single) else reason
        if reason in FINAL:
            solver._start, solver._working, solver._state = method.state(), method.release(), None
            return reason, rounds
        solver._costly = reason == "budget"
        return self._hand_over(HANDED_OVER[reason], rounds)

    def _fine_start(self) -> tuple[coarse.Start | None, str, int]:
        """ADMM on all samples until working sets can start from it: a better start pays where many inputs are kept.

        Returns no start if the solve ended meanwhile, and the reason and iterations of ADMM.
        """
        found: list[coarse.Start] = []

        def accept(check: Check) -> bool:
            if check.last or abs(check.gap) <= self.settings.gap_tol:
                return self._accept(check)
            self._report(check)
            enough = abs(check.gap) <= FINE_GAP or check.iteration >= FINE_ITERATIONS
            if enough and not self.callback_stops:
                found.append(coarse.read_start(self.loop, check))
            return bool(found)

        reason, iterations = self._admm(accept)
        return found[0] if found else None, reason, iterations

    def _hand_over(self, why: str, rounds: int = 0) -> tuple[str, int]:
        log.info("working sets hand over to ADMM: %s", why)
        return why, rounds

    def _score(self, c: Certificate) -> float:
        """How far a certificate is from the tolerances."""
        return max(abs(c.gap) / self.settings.gap_tol, c.violation / self.settings.feas_tol)

    def _accept_round(self, check: Check) -> bool:
        """Whether the round's weights are certified within the tolerances."""
        self._report(check)
        s = self.settings
        # a certificate costs as much as a round's check
        near = abs(check.gap) <= max(10 * s.gap_tol, 1e-4) and check.violation <= max(10 * s.feas_tol, 1e-4)
        return (check.last or near) and self._certified(check.weights, check.multiplier(), polished=True)

    # what the loop asks

    def _stopped(self) -> str | None:
        if self.interrupt.requested:
            return "interrupted"
        return "time_limit" if self._elapsed() > self.settings.time_limit else None

    def _accept(self, check: Check) -> bool:
        """Whether the check's iterate, or what polishing makes of it, is certified within the tolerances."""
        self._report(check)
        s = self.settings
        if check.last:
            return self._certified_last(check) or self._polish(check)
        if np.isfinite(check.gap) and (self.best is None or abs(check.gap) < self.best[0]):
            self.best = abs(check.gap), check.weights
        if abs(check.gap) <= self.margin * s.gap_tol:
            if self._violation(check.weights) <= self.margin * s.feas_tol:
                self._forget()
                if self._certified(check.weights, check.multiplier()):
                    return True
                self.margin = max(0.5 * self.margin, 0.1)
            # nearly there: polishing repairs what is violated, if iterating is not cheaper
            affordable = self.polishes and POLISH_ROUNDS * cost(self.loop, check.weights) < check.iteration
            return affordable and abs(check.gap) <= self.polish_below and self._polish(check)
        return self._worth_polishing(check) and self._polish(check)

    def _report(self, check: Check) -> None:
        """Record the check, print it, and tell the callback."""
        s = self.settings
        row: dict[str, Any] = {
            # only working sets know the violation at every check
            "method": "admm" if check.violation is None else "working_set",
            "iteration": check.iteration,
            "objective": check.objective,
            "dual_bound": check.dual_bound,
            "gap": check.gap,
            "seconds": self._elapsed(),
        }
        if check.violation is not None:
            row["violation"] = check.violation
        row |= check.details
        self.history.append(row)
        if s.verbose:
            if len(self.history) == 1 or row["method"] != self.history[-2]["method"]:
                print(f"{UNITS[row['method']]:>9} {'objective':>13} {'dual bound':>13} {'gap':>9} {'seconds':>8}")
            print("{iteration:9d} {objective:13.6g} {dual_bound:13.6g} {gap:9.1e} {seconds:8.2f}".format(**row))
        self.callback_stops = s.callback is not None and bool(s.callback(dict(row)))

    def _observe(self, check: Check) -> str | None:
        """The callback's wish, and suspicion of infeasibility: a lower bound far above the iterate's objective."""
        if self.callback_stops:
            self._certified_last(check)
            return "interrupted"
        self.suspicious = self.suspicious + 1 if check.gap < -0.5 else 0
        if self.suspicious >= self.patience:
            self.suspicious = 0
            self._try_proof()
            if self.proof is not None:
                return "infeasible"
        return None

    # steps

    def _worth_polishing(self, check: Check) -> bool:
        """Whether a polish costs less than the iterations it may save, judged on iteration counts only."""
        s = self.settings
        rows = [row for row in self.history if row["method"] == "admm"]
        if not self.polishes or len(rows) < 4:
            return False
        if len(rows) * s.check_every >= self.polish_at:
            self.polish_at *= 2
            return abs(check.gap) < 0.5 and POLISH_ROUNDS * cost(self.loop, check.weights) < self.polish_at / 4
        if not 0 < check.gap <= self.polish_below:
            return False
        earlier = rows[-4]
        rate = np.log(max(abs(earlier["gap"]), 1e-300) / check.gap) / (check.iteration - earlier["iteration"])
        remaining = np.log(check.gap / s.gap_tol) / rate if rate > 0 else np.inf
        return POLISH_ROUNDS * (1 + cost(self.loop, check.weights)) < remaining

    def _polish(self, check: Check) -> bool:
        s = self.settings
        if not self.polishes or not np.isfinite(check.gap):
            return False
        self.polish_below = min(self.polish_below, abs(check.gap) / 3)
        began = time.perf_counter()
        weights, multiplier, rounds = check.weights, None, ROUNDS
        if not self.tried_vertex and vertex.worthwhile(self.loop):
            self.tried_vertex = True
            found = vertex.solve(self.loop)
            if found is not None:
                if self._certified(*found, polished=True):
                    return True
                weights, multiplier = found
                rounds = 10 * ROUNDS
        if multiplier is None:
            multiplier = check.multiplier()
        result = polish(self.loop, weights, multiplier, s.gap_tol, s.feas_tol, rounds, self._stopped)
        self.seconds["polish"] += time.perf_counter() - began
        if result is None or result.gap > s.gap_tol or result.violation > s.feas_tol:
            return False
        return self._certified(result.W, result.multiplier, polished=True)

    def _violation(self, W: np.ndarray) -> float:
        return self.loop.relative_violation(*self.loop.violations(W)[:2])

    def _certified(self, W: np.ndarray, multiplier: np.ndarray, polished: bool = False) -> bool:
        """Certify, remember, and say whether the tolerances are met."""
        began = time.perf_counter()
        p = self.problem
        W = np.ascontiguousarray(W if isinstance(W, np.ndarray) else self.solver.backend.to_host(W))
        if p.compact and multiplier.shape != (p.N + 1, p.M):
            multiplier = self.solver._reduced.lift(multiplier, self.loop.radii)
        certificate = certify(p, W, multiplier)
        holds = certificate.holds(self.settings.gap_tol, self.settings.feas_tol)
        # a refused proposal must not replace the last iterate, unless it is better
        if holds or self.found is None or not polished or self._score(certificate) < self._score(self.found[2]):
            # on disk they are part of the state, and change with it
            self.found = W, None if p.on_disk else multiplier, certificate
        self.seconds["certify"] += time.perf_counter() - began
        return holds

    def _forget(self) -> None:
        """Drop a refused pair before the next one is made: two multipliers would exceed the memory promise."""
        self.found = None

    def _certified_last(self, check: Check) -> bool:
        """Certify the check's weights, and those of the best check if its gap was much smaller; the better stay."""
        self._forget()
        multiplier = check.multiplier()
        if self._certified(check.weights, multiplier):
            return True
        if self.best is not None and self.best[0] < BETTER * abs(check.gap):
            last = self.found
            if self._certified(self.best[1], multiplier):
                return True
            # by the best bound of any check: the last multipliers may be as bad as the last weights
            dual = max(row["dual_bound"] for row in self.history)
            if self._distance(last[2], dual) < self._distance(self.found[2], dual):
                self.found = last
        return False

    def _distance(self, c: Certificate, dual: float) -> float:
        """How far weights are from the tolerances, given a lower bound of the objective."""
        gap = abs(c.objective - dual) / max(c.objective, abs(dual), 1e-300)
        return max(gap / self.settings.gap_tol, c.violation / self.settings.feas_tol)

    def _try_proof(self) -> None:
        if not self.problem.compact and not self.problem.on_disk:
            be = self.solver.backend
            host = be if be.on_host else backends.get("numba", self.settings.n_threads)
            self.proof = prove(self.problem, host, self._stopped)
            # a transient looks the same: after a failed attempt wait four times as long
            self.patience *= 4

    # endings

    def _verdict(self, reason: str, iterations: int) -> tuple[Status, int, str]:
        s, c = self.settings, self.found[2]
        if reason == "accepted" or c.holds(s.gap_tol, s.feas_tol):
            return Status.SOLVED, iterations, f"gap {c.gap:.1e}, violation {c.violation:.1e}"
        state = f"gap {c.gap:.1e} (asked {s.gap_tol:g}), violation {c.violation:.1e} (asked {s.feas_tol:g})"
        if reason == "max_iterations" and c.holds(10 * s.gap_tol, 10 * s.feas_tol):
            hint = (
                " float32 data rarely reach gaps below 1e-5: use float64." if self.problem.dtype == np.float32 else ""
            )
            return Status.SOLVED_INACCURATE, iterations, f"{state}: within ten times the tolerances.{hint}"
        advice = {
            "max_iterations": "raise max_iterations, or loosen gap_tol or feas_tol.",
            "time_limit": "raise time_limit; a further solve() of the same Solver goes on from here.",
            "interrupted": "a further solve() of the same Solver goes on from here.",
        }[reason]
        if reason == "max_iterations" and iterations < s.max_iterations:
            advice = "rounding allows no more; use float64 data, or loosen gap_tol or feas_tol."
        return Status(reason), iterations, f"{state}: {advice}"

    def _infeasible(self, iterations: int) -> Solution:
        proof = self.proof
        self._certified(proof.W, np.zeros_like(proof.ray))
        if proof.smallest_epsilon is None:
            message = "The bounds V contradict each other: no epsilon works. The ray proves it."
        else:
            relative = proof.smallest_epsilon / self.problem.y_norm if self.problem.y_norm > 0 else np.inf
            message = (
                f"No W reaches epsilon = {self.problem.epsilon:.6g}; the smallest that works is "
                f"{proof.smallest_epsilon:.6g} ({relative:.4g} ||Y_Omega||_F), which the returned W attains. If the "
                "layer has a bias, X needs a row of ones."
            )
        solution = self._finish(Status.INFEASIBLE, iterations, message)
        return replace(solution, dual=None, ray=self.problem._place(proof.ray), smallest_epsilon=proof.smallest_epsilon)

    def _finish(self, status: Status, iterations: int, message: str) -> Solution:
        W, dual, certificate = self.found
        self.seconds["total"] = self._elapsed()
        if self.keeper is not None and status in (Status.SOLVED, Status.INFEASIBLE):
            self.keeper.discard()
        if self.settings.verbose:
            print(f"{status}: {message} ({self.seconds['total']:.2f} s)")
        return Solution(
            W=self.problem._place(W),
            status=status,
            certificate=certificate,
            dual=None if dual is None else self.problem._place(dual),
            iterations=iterations,
            seconds={name: round(value, 6) for name, value in self.seconds.items()},
            message=message,
            history=self.history,
            settings=self.settings.to_dict()
            | {"method": self.method, "backend": self.solver.backend.name, "dtype": str(self.problem.dtype)},
        )

    def _elapsed(self) -> float:
        return time.perf_counter() - self.began
