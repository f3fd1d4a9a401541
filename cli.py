"""The `forebay` command: finds the module of the command, the settings in effect, and ends with the right exit code.

Each command is a module of `commands/` with two functions:

    configure(parser)          adds arguments, and through `frame.add_settings` the flags of the settings it heeds
    run(args, settings) -> int does it; the exit code

Modules are imported only when their command is asked for, so that `forebay --help` answers at once. Errors meant for
people are ForebayErrors; each class has its exit code (docs/exit-codes.md). With `--json` the failure is also a JSON
object on stdout, so that a script has one thing to read.
"""

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from . import __version__, config
from .commands import frame
from .errors import ForebayError
from .lean_process import leave_out_pandas

# Order is that of `forebay --help`. Each name is a module of commands/.
COMMANDS = {
    "mount": "mount a bucket or a dataset version as a plain folder",
    "umount": "unmount, also when the process behind the mount is dead",
    "prefetch": "warm the cache, and say with a receipt what is there",
    "status": "show mounts, tiers, hit rates and throughput",
    "info": "tell which version a file is and how much of it is cached",
    "flush": "wait until what was written is in the bucket",
    "writeback": "list what is not in the bucket yet, or try it again",
    "recover": "bring what a dead mount left behind into the bucket",
    "free": "let go of cached data",
    "pins": "list the leases that hold cached data",
    "unpin": "end leases before their time",
    "serve": "hold the cache of a source without mounting it",
    "dataset": "make datasets and change what is in them",
    "snapshot": "make, look at, compare, check and keep versions of datasets",
    "config": "show every setting, its value and where it comes from",
    "doctor": "check this machine and a source, and say what to do",
}

DESCRIPTION = """\
A distributed dataset cache and storage gateway for AI training: object storage holds everything,
training jobs see a plain folder, read at the speed of local RAM and SSD.
"""

EXAMPLES = """\
examples:
  forebay mount s3://bucket/images /mnt/images        a bucket becomes a folder
  forebay prefetch s3://bucket/images                 warm the cache before the job starts
  forebay status --watch                              what is cached, and how fast
  forebay umount /mnt/images

Every setting can also be a FOREBAY_... variable or a line of the configuration file: see `forebay config`.
"""

INTERRUPTED = 130
BROKEN_PIPE = 141


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of the whole command line, with the arguments of `command` only (of all others just their names)."""
    parser = argparse.ArgumentParser(
        "forebay", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"forebay {__version__}")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file (TOML)")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        sub = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )
        if name == command:
            module = importlib.import_module(f".commands.{name}", __package__)
            sub.description = (module.__doc__ or "").strip()
            module.configure(sub)
    return parser


def _command(arguments: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the file of `--config`; None if it is no command."""
    words = iter(arguments)
    for word in words:
        if word == "--config":
            next(words, None)
        elif not word.startswith("-"):
            return word if word in COMMANDS else None
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Without `argv` this is the program itself and the process is ours."""
    if argv is None:
        leave_out_pandas()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # names that are no UTF-8 come out as the bytes they are
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = _command(arguments)
    frame.begin()
    try:
        args = build_parser(command).parse_args(arguments)
        try:
            settings = config.resolve(frame.given_settings(args), environ=os.environ, file=args.config)
            module = importlib.import_module(f".commands.{args.command}", __package__)
            code: int = module.run(args, settings)
            sys.stdout.flush()
        except ForebayError as error:
            frame.report(error, as_json=getattr(args, "json", False))
            code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has left (`forebay ... | head`): nothing is wrong, and nobody is there to be told.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = BROKEN_PIPE
    return code


if __name__ == "__main__":
    sys.exit(main())
