"""The command line: it parses arguments and calls Python functions."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from . import _annotate, _demo, _embed, _pretrain, _protein

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, like the command ``scxtrimo``.

    Parameters
    ----------
    argv
        The arguments after ``scxtrimo``; by default those of this process.

    Returns
    -------
    Exit status: 0, or 2 after an error in the arguments or files, which is printed in one line;
    with ``--debug``, it is raised.

    Examples
    --------
    >>> scxtrimo.cli.main(["--version"])
    0.1...
    0
    """
    parser = _parser()
    args = parser.parse_args(argv)
    if args.version:
        from importlib.metadata import version

        print(version("scxtrimo"))
        return 0
    if args.command is None:
        parser.print_help()
        return 2
    try:
        return args.run(args)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:
        if args.debug or not _is_the_users(error):
            raise
        print(f"scxtrimo: error: {error}", file=sys.stderr)
        return 2


def _is_the_users(error: Exception) -> bool:
    """Return whether an error is due to arguments or files: raised by our checks or the system."""
    if isinstance(error, OSError | ImportError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = Path(__file__).absolute().parents[1] in Path(last.filename).parents
    return is_ours and (last.line or "").startswith("raise")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scxtrimo", description="xTrimo models for the scverse.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", title="commands")
    for command in (_demo, _embed, _annotate, _pretrain, _protein):
        command.add(commands)
    for subparser in (c for name, c in commands.choices.items() if name != "protein"):
        subparser.add_argument("--debug", action="store_true", help="show where an error happened")
    return parser
