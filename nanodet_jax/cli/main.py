"""The `nanodet-jax` command."""

import argparse
import faulthandler
import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from absl import flags, logging

from nanodet_jax.cli import config, convert, doctor, info, predict, prepare, train
from nanodet_jax.cli import eval as evaluate
from nanodet_jax.cli.config_flags import split_overrides, suggest_flag
from nanodet_jax.errors import UserError, did_you_mean
from nanodet_jax.terminal import say, tolerate_closed_output
from nanodet_jax.version import __version__

COMMANDS = {
    "train": (train, "train a detector, or resume a run"),
    "eval": (evaluate, "evaluate weights or a run on the validation images of a config"),
    "predict": (predict, "draw and list the objects in images"),
    "doctor": (doctor, "find problems in the data of a config"),
    "config": (config, "print the fields of a config with their values and meaning"),
    "info": (info, "print the parameters and multiply-adds of a config's network"),
    "convert": (convert, "convert weights of the original NanoDet, or of a run, to .npz"),
    "prepare": (prepare, "write a COCO dataset as a TFDS dataset"),
}


# Names in the namespace that are not options.
INTERNAL = {"command", "run", "terminate_on_sigint", "old_evaluator"}


class _Parser(argparse.ArgumentParser):
    """A parser that reports each error in one line."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    Errors that the user can fix are printed on one line of stderr, with exit code 2. After Ctrl-C,
    the code is 130. Otherwise it is 0, except that `doctor` returns 1 if it found a serious
    problem, and `predict` if some images could not be read.

    This is the main function of a process: it changes how the process writes to stdout and stderr,
    how it logs, and how it collects garbage. These changes are not undone at the end.

    Args:
      argv: arguments without the name of the program; default: `sys.argv[1:]`.
    """
    tolerate_closed_output()
    try:
        arguments, overrides = split_overrides(sys.argv[1:] if argv is None else argv)
        _check_command(arguments)
        args, unknown = _parser().parse_known_args(arguments)
        if unknown:
            raise UserError(_unknown_argument(unknown[0], args))
        if overrides and "config" not in args:
            raise UserError(f"{overrides[0]}: nanodet-jax {args.command} takes no config")
        if getattr(args, "config", "") is None:
            raise UserError("use --config NAME_OR_FILE[:VARIANT]")
        _set_up_logging(args.verbosity)
        gc.freeze()  # imported objects stay alive, so later collections need not scan them
        with _sigint(terminates=args.terminate_on_sigint):
            code: int = args.run(args, overrides)
            return code
    except UserError as error:
        return fail(error)
    except OSError as error:  # for example a full disk
        return fail(f"{error.filename}: {error.strerror}" if error.filename else error)
    except MemoryError:
        return fail(
            "out of memory on this machine; close other programs, or process less data at once"
        )
    except KeyboardInterrupt:
        return 130


def fail(message: object) -> int:
    """Print `error: ...` on one line of stderr, and return exit code 2."""
    say(f"error: {' '.join(str(message).split())}", sys.stderr)
    return 2


def _check_command(arguments: Sequence[str]) -> None:
    """Refuse an unknown command, and suggest a similar one, which argparse would not do."""
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in COMMANDS:
        meant = did_you_mean(command, COMMANDS)
        raise UserError(
            f"{command}: no such command;{meant} the commands are {', '.join(COMMANDS)}"
        )


def _unknown_argument(argument: str, args: argparse.Namespace) -> str:
    command = f"nanodet-jax {args.command}"
    options = [f"--{name.replace('_', '-')}" for name in vars(args) if name not in INTERNAL]
    meant = did_you_mean(argument.partition("=")[0], options)
    if not meant and "config" in args:
        meant = suggest_flag(argument)
    return f"{argument}: {command} takes no such argument;{meant} see {command} --help"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nanodet-jax", description="NanoDet and NanoDet-Plus in JAX.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (command, summary) in COMMANDS.items():
        subparser = commands.add_parser(name, help=summary)
        subparser.set_defaults(terminate_on_sigint=False)
        command.add_arguments(subparser)
        subparser.add_argument(
            "--verbosity",
            "-v",
            type=int,
            default=-1,
            metavar="LEVEL",
            help="log messages of libraries: -1 warnings (default), 0 info, 1 debug",
        )
    return parser


def _set_up_logging(verbosity: int) -> None:
    flags.FLAGS.mark_as_parsed()  # absl's log handler reads its options from them
    logging.use_absl_handler()
    logging.set_verbosity(verbosity)
    with suppress(OSError, ValueError, RuntimeError):  # stderr is closed or is not a file
        faulthandler.enable()
    if not isinstance(sys.unraisablehook, _WithoutClosedLoops):
        sys.unraisablehook = _WithoutClosedLoops(sys.unraisablehook)


class _WithoutClosedLoops:
    """An unraisable hook that ignores errors about closed event loops.

    When a checkpoint cannot be written, TensorStore's threads raise hundreds of these errors,
    because Orbax no longer waits for them. The cause is reported in one line elsewhere.
    """

    def __init__(self, previous: Any):
        self._previous = previous

    def __call__(self, unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            self._previous(unraisable)


@contextmanager
def _sigint(terminates: bool) -> Iterator[None]:
    """Let Ctrl-C terminate the process immediately if `terminates` is set.

    Python's own handler runs only when XLA returns, and a compilation may take a minute. Training
    replaces either handler with one that saves first.
    """
    if not terminates:
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main())
