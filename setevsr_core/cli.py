"""The command line: `setevsr restore | estimate | degrade | pack | train | evaluate | convert | info`.

Each subcommand lives in a module whose `add_parser(subparsers)` adds it and sets `run`, which takes the options; only
the module of the chosen one is imported, so `setevsr --help` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from .errors import SeTeVSRError

# name -> (module beside this one, one line for --help)
COMMANDS = {
    "restore": (".restore_command", "restore and enlarge a video"),
    "estimate": (".estimate_command", "say how much memory and time a run will take"),
    "degrade": (".training.degrade_command", "make a bad video out of a good one, as for training"),
    "pack": (".training.pack_command", "prepare training data from folders of videos and photographs"),
    "train": (".training.train_command", "train the parts of the model"),
    "evaluate": (".evaluation.evaluate_command", "measure methods on a data set, with tables and pictures"),
    "convert": (".checkpoints.commands", "turn a checkpoint into this project's own format"),
    "info": (".checkpoints.commands", "say what a checkpoint file holds"),
}
FAILED, INTERRUPTED = 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns the exit code: 0, 2 for an error meant for the user (one line on stderr), 130
    after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        args = build_parser(_module(arguments)).parse_args(arguments)
        logging.basicConfig(
            level=logging.DEBUG if args.verbose else logging.WARNING, format="%(levelname)s: %(message)s"
        )
        return args.run(args)
    except SeTeVSRError as error:
        print(f"setevsr: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:  # a file where a folder should be, no permission, a full disk
        logging.getLogger(__name__).debug("the whole error:", exc_info=True)
        where = f"'{error.filename}': " if error.filename else ""
        print(f"setevsr: {where}{error.strerror or error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("setevsr: interrupted", file=sys.stderr)
        return INTERRUPTED


def build_parser(module: ModuleType | None = None) -> argparse.ArgumentParser:
    """The whole parser; the options of a command are there if its `module` is given, of the others only their names."""
    parser = argparse.ArgumentParser(
        prog="setevsr", description="Diffusion video super-resolution with semantic and temporal guidance."
    )
    parser.add_argument("--verbose", action="store_true", help="log what happens in detail")
    subparsers: Any = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    if module is not None:
        module.add_parser(subparsers)
    for name, (_, help_line) in COMMANDS.items():
        if name not in subparsers.choices:
            subparsers.add_parser(name, help=help_line)
    return parser


def _module(arguments: Sequence[str]) -> ModuleType | None:
    """The module of the command: the first argument that is no option (the options before it take no values)."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    return importlib.import_module(COMMANDS[name][0], __package__) if name in COMMANDS else None


if __name__ == "__main__":
    sys.exit(main())
