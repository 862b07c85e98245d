"""The command line. It parses and calls the public API."""

from __future__ import annotations

import argparse
import sys
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
    Exit status: 0, or 2 after an error, which is printed in one line.

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
        print(f"scxtrimo: error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scxtrimo", description="xTrimoGene for the scverse.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    commands = parser.add_subparsers(dest="command", title="commands")
    for command in COMMANDS:
        command.add(commands)
    return parser
