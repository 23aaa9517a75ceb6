"""The command line: ``nettrim demo | solve | path | bounds | prune | verify | report | study | table | plot | doctor``.

Exit codes: 0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible. With ``--json`` the
standard output holds JSON and nothing else; progress and errors go to the standard error.

What is slow to import (Numba, PyTorch, scikit-learn, matplotlib) is imported by the command that needs it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from nettrim import __version__
from nettrim.cli import bounds, demo, layer, networks, path, study
from nettrim.cli.common import NOT_CONVERGED, USAGE, app, complain
from nettrim.files import Refused

__all__ = ["app", "main"]

#: importing them adds their commands to the application, in this order
COMMANDS = (demo, layer, path, bounds, networks, study)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; default those of the process.

    Returns
    -------
    int
        0 certified, 1 bad usage or input, 2 not converged or not verified, 3 infeasible.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    command = typer.main.get_command(app)
    try:
        code = command.main(args=arguments, prog_name="nettrim", standalone_mode=False) or 0
        if code == 130:  # what typer makes of a KeyboardInterrupt
            raise KeyboardInterrupt
        return code
    except Refused as error:
        return complain(str(error))
    except (KeyboardInterrupt, typer.Abort):
        complain("interrupted")
        return NOT_CONVERGED
    except BrokenPipeError:
        # the reader of the standard output has left; nothing more can be said there, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return USAGE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return complain(f"{where}{error.strerror or error}")
    except MemoryError as error:
        # a memory plan is a table
        print(f"nettrim: not enough memory{f': {error}' if str(error) else ''}", file=sys.stderr)
        return USAGE
    except Exception as error:
        # usage errors of typer, which carries its own copy of click or the package, depending on its version
        if not hasattr(error, "format_message"):
            raise
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "nettrim"
        return complain(f"{error.format_message().replace('Value error, ', '').rstrip('.')}; see {path} --help")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"nettrim {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
