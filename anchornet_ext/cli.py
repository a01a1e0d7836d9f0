"""The command `anchornet`: one subcommand a room, each imported only when it runs."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ._files import in_words
from ._version import __version__

# subcommand -> (module, one-line help). The module has run(args) -> exit status and
# add_arguments(parser), or add_arguments_for(parser, words) where the arguments depend on others.
COMMANDS: dict[str, tuple[str, str]] = {
    "predict": (
        "anchornet_ext.inference.command",
        "classify photos in as few looks as it takes",
    ),
    "train": ("anchornet_ext.training.command", "train a system on an image folder"),
    "evaluate": (
        "anchornet_ext.evaluation.command",
        "measure accuracy and cost at every exit, and write a report",
    ),
    "compare": (
        "anchornet_ext.evaluation.comparison.command",
        "compare several systems on the same images, in one report",
    ),
    "calibrate": (
        "anchornet_ext.policy.command",
        "fit the thresholds of early exit to a budget, an accuracy or a time",
    ),
    "bench": (
        "anchornet_ext.benchmark.command",
        "measure how fast everything is on this machine, and compare with earlier",
    ),
    "doctor": (
        "anchornet_ext.doctor",
        "say what is installed and built, and whether it works",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `anchornet SUBCOMMAND ...` and returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # Names of files and classes need not be text in the terminal's encoding; they are to be shown
    # all the same.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    parser = argparse.ArgumentParser(
        prog="anchornet",
        description="Image classification that looks only as far as it has to: first a glance, "
        "then a few patches at full resolution.",
        epilog="`anchornet COMMAND --help` shows what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"anchornet_ext {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((word for word in argv if not word.startswith("-")), None)
    for name, (module_name, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:  # the others' modules need not be imported to list them
            module = importlib.import_module(module_name)
            if hasattr(module, "add_arguments_for"):
                module.add_arguments_for(subparser, argv)
            else:
                module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args, unknown = parser.parse_known_args(argv)
    if unknown:  # the parser of all commands would say so below a usage that does not help
        subparsers.choices[args.command].error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        status: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        hint = "; the same command with --resume goes on" if "resume" in args else ""
        print(f"anchornet: interrupted{hint}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        print(f"anchornet: error: there is not enough memory. {error}".rstrip(), file=sys.stderr)
        return 2
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"anchornet: error: {in_words(error)}", file=sys.stderr)
        return 2
    return status


def _is_lack_of_memory(error: Exception) -> bool:
    """Python's error, CUDA's, or what torch says on a CPU."""
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or "can't allocate memory" in str(error)


if __name__ == "__main__":
    sys.exit(main())
