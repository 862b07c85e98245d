"""The command line. It parses and calls the public API."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence

from . import _annotate, _convert, _demo, _embed, _pretrain, _store

__all__ = ["main"]

COMMANDS = (_demo, _embed, _annotate, _store, _pretrain, _convert)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, as the command ``scxtrimo`` does.

    Parameters
    ----------
    argv
        The words after ``scxtrimo``; by default those of this process.

    Returns
    -------
    Exit status: 0; or 2 after a mistake in what was asked for, which is named in one line.

    Notes
    -----
    Errors of the program itself are not caught, and show where they happened; so do all errors
    with ``--debug``.

    Examples
    --------
    >>> from scxtrimo.cli import main
    >>> main(["--version"])
    0.1...
    0
    """
    args = _parser().parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(version("scxtrimo"))
        return 0
    if args.command is None:
        _parser().print_help()
        return 2
    try:
        return args.run(args)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if args.debug or not _is_the_users(error):
            raise
        print(f"scxtrimo: error: {error}", file=sys.stderr)
        return 2


def _is_the_users(error: Exception) -> bool:
    """Return whether an error names a mistake of the user, rather than being one of ours.

    What we check, we raise ourselves; a file or a package that is missing, the system says.
    """
    if isinstance(error, OSError | ImportError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    last = frames[-1]
    return last.filename.startswith(package + os.sep) and (last.line or "").startswith("raise")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scxtrimo", description="xTrimoGene for the scverse.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", title="commands")
    for command in COMMANDS:
        command.add(commands)
    for subparser in commands.choices.values():
        subparser.add_argument("--debug", action="store_true", help="show where an error happened")
    return parser
