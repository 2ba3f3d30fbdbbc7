"""What `train.py` and `eval.py` share: flags in, one clear line and exit code 2 out.

And how a config is read where there are no flags, for the commands of `nanodet-jax`.
"""

import gc
import os
import runpy
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

from nanodet_jax import config as configs
from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say, tolerate_closed_output

# Flags of `Literal` fields are strings; `config.check` names the choices where it is another one.
config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())


def define_config(default: str) -> Any:
    """The `--config FILE[:VARIANT]` flag, with `--config.FIELD=VALUE` for every field."""
    sys.argv[:] = configs.rename_flags(sys.argv)
    with _told_in_a_line():  # where the command line names no other, the default is read here
        return config_flags.DEFINE_config_file("config", default, "path, or path:variant")


def load_config(text: str, overrides: Sequence[str] = ()) -> configs.Config:
    """The checked config that FILE[:VARIANT] names, as `--config` takes it.

    `overrides` are `--config.FIELD=VALUE`, as on the command line of train.py.

    Raises:
      UserError: naming the file, whatever is wrong: it is not there, has no get_config, does not
        know the variant, fails in any other way, or gives values with which no run is possible.
    """
    file, colon, variant = text.partition(":")
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"{file}: no such config; give FILE or FILE:VARIANT")
    try:
        with _configs_importable(path):
            get_config = runpy.run_path(str(path)).get("get_config")
            if get_config is None:
                raise UserError("has no function get_config")
            config = get_config(variant) if colon else get_config()
        if not isinstance(config, configs.Config):
            raise UserError(f"get_config must return a Config, not {type(config).__name__}")
        if overrides:
            config = _overridden(config, overrides)
        configs.check(config)
    except UserError as error:
        raise UserError(f"{text}: {error}") from error
    except Exception as error:  # a config is code
        raise UserError(f"{text}: {type(error).__name__}: {error}") from error
    return config


def _overridden(config: configs.Config, overrides: Sequence[str]) -> configs.Config:
    argv = ["config", *configs.rename_flags(overrides)]
    values = flags.FlagValues()
    config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=argv)
    try:
        rest = values(argv)
    except (flags.Error, KeyError, ValueError, TypeError) as error:  # KeyError: an unknown field
        raise UserError(str(error.args[0])) from error
    if rest[1:]:
        raise UserError(f"{rest[1]!r} is no flag; flags are --config.FIELD=VALUE")
    _split_classes(values.config.data)
    return values.config


def _split_classes(data: configs.Data) -> None:
    # Flags hold Python literals: cat,dog without quotes arrives as one string.
    names = ",".join(map(str, data.classes)).split(",")
    data.classes = tuple(name for name in names if name)


@contextmanager
def _configs_importable(path: Path) -> Iterator[None]:
    """Let a config say `from configs import coco`, of its neighbours or, as in train.py, of here.

    A script's own folder is where Python looks first, and that of `nanodet-jax` has no configs.
    """
    before = sys.path.copy()
    sys.path[:] = [str(path.resolve().parent.parent), *before, os.getcwd()]
    try:
        yield
    finally:
        sys.path[:] = before


def run(main: Callable[[], None]) -> None:
    """Parse the flags, call `main`, and turn what the user can mend into a line."""

    def parse(argv: list[str]) -> list[str]:
        with _told_in_a_line():
            rest = flags.FLAGS(argv)
            # A file that is missing is told only when its config is used.
            _split_classes(flags.FLAGS.config.data)
        if rest[1:]:
            fail(f"{rest[1]!r} is no flag; flags are --NAME=VALUE, see --help")
        return rest

    def guarded(_: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # the libraries' chatter; --verbosity=0 shows it
        sys.unraisablehook = _told_unless_known
        tolerate_closed_output()
        gc.freeze()  # what was imported stays: while tracing, each collection would look through it
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # at once, also where XLA compiles
        try:
            main()
        except UserError as error:
            fail(error)
        except OSError as error:  # a disk that is full, or may not be written to
            fail(f"{error.filename}: {error.strerror}" if error.filename else error)
        except KeyboardInterrupt:
            sys.exit(130)
        finally:
            signal.signal(signal.SIGINT, before)

    app.run(guarded, flags_parser=parse)


def _told_unless_known(unraisable: Any) -> None:
    """Print what was raised where nobody could catch it, as Python does.

    Where a checkpoint cannot be written, TensorStore's threads come here hundreds of times, as
    Orbax no longer waits for them; why it cannot be written is told in a line of ours.
    """
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Fail with the reason why flags or config cannot be read. A config is code: any error."""
    try:
        yield
    except flags.Error as error:
        reason, _, trace = str(error).partition("Traceback (most recent call last):")
        fail(reason + "".join(trace.strip().splitlines()[-1:]))
    except Exception as error:
        fail(f"--config: {error}")


def fail(message: object) -> NoReturn:
    """Print `error: ...` on one line and leave with exit code 2."""
    line = " ".join(str(message).split())
    say(f"error: {line}", sys.stderr)
    sys.exit(2)
