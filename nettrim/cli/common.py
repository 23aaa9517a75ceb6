"""What the commands share: the application, exit codes, options, and errors as lines for the user."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from nettrim.files import Refused

__all__ = [
    "CERTIFIED",
    "INFEASIBLE",
    "NOT_CONVERGED",
    "USAGE",
    "FeasTol",
    "GapTol",
    "Json",
    "app",
    "complain",
    "door",
    "quiet_code",
]

CERTIFIED, USAGE, NOT_CONVERGED, INFEASIBLE = 0, 1, 2, 3

app = typer.Typer(
    add_completion=False,
    help="Prune trained neural networks layer by layer by convex optimisation, with a certificate.",
    epilog="Exit codes: 0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible.",
)


Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output and nothing else.")]
GapTol = Annotated[float, typer.Option(help="Relative duality gap at which a layer counts as solved.")]
FeasTol = Annotated[float, typer.Option(help="Relative violation of the constraints that is tolerated.")]


def complain(message: str) -> int:
    """Print a line on the standard error; the exit code of bad usage."""
    print(f"nettrim: {' '.join(message.split())}", file=sys.stderr)
    return USAGE


#: options that are called otherwise in the library
OPTION_NAMES = {"n_threads": "--threads"} | {
    name: "--" + name.replace("_", "-")
    for name in (
        *("epsilon", "epsilon_abs", "gap_tol", "feas_tol", "max_iterations", "time_limit", "method", "backend"),
        *("device_memory", "targets", "ignore", "scheme", "gamma", "samples", "holdout", "memory", "layout", "rounds"),
        *("scratch", "checkpoint", "checkpoint_every"),
    )
}


@contextmanager
def door(about: str = "") -> Iterator[None]:
    """Turn what the library refuses, or warns of, at its door into a line for the user."""
    told: set[str] = set()

    def tell(message: Warning | str, *_: Any) -> None:
        text = str(message).replace('pass omega="linear"', "use --linear")
        if text not in told:
            told.add(text)
            complain(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = tell  # type: ignore[assignment]
        try:
            yield
        except (ValueError, TypeError) as error:
            name, space, rest = str(error).partition(" ")
            rest = rest.replace("add it to `ignore`", "leave it out with --ignore")
            raise Refused(f"{about}{OPTION_NAMES.get(name, name)}{space}{rest}") from error


@contextmanager
def quiet_code() -> Iterator[None]:
    """The standard output is for results: what a user's own code prints goes to the standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
