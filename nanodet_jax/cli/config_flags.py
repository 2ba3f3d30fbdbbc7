"""Configs on the command line: `--config NAME_OR_FILE[:VARIANT]` and `--config.FIELD=VALUE`."""

import argparse
import dataclasses
import importlib
import itertools
import os
import pkgutil
import re
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from absl import flags
from ml_collections import config_flags
from ml_collections.config_flags import config_path

from nanodet_jax import config as configs
from nanodet_jax.errors import UserError

SHIPPED = "nanodet_jax.configs"  # package of the configs that have a name
OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=.*)?", re.DOTALL)
# Fields that are lists of names.
NAME_LISTS = ("data.classes", "data.merge", "data.ignore", "data.sources")
HELP = """CONFIG is NAME[:VARIANT] or FILE[:VARIANT]. The names are {names}. A file is Python code
with a function get_config() that returns a Config; VARIANT is its argument. Override fields with
--config.FIELD=VALUE, for example --config.training.epochs=20 --config.data.classes=cat,dog
--noconfig.data.keep_ratio; docs/config.md in the repository lists all fields. --flagfile=FILE reads
more flags from a file, one per line."""


def add_config(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    """Add `--config` to a command; without a default, also as a positional argument."""
    group = parser.add_argument_group("config", HELP.format(names=", ".join(shipped_names())))
    note = "(default: %(default)s)" if default else "(may also be given without --config)"
    group.add_argument("--config", default=default, metavar="CONFIG", help=f"name or file {note}")
    if not default:
        group.add_argument("config", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def shipped_names() -> list[str]:
    """Return the names of the configs that come with the package."""
    package = importlib.import_module(SHIPPED)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--config.FIELD` flags, with their values, from all other arguments.

    Raises:
      UserError: if a `--flagfile` cannot be read.
    """
    try:
        argv = flags.FlagValues().read_flags_from_files(list(argv), force_gnu=True)
    except flags.Error as error:
        raise UserError(f"--flagfile: {error}") from error
    others: list[str] = []
    overrides: list[str] = []
    remaining = iter(argv)
    for argument in remaining:
        match = OVERRIDE.fullmatch(argument)
        if not match:
            others.append(argument)
            continue
        overrides.append(argument)
        _, field, value = match.groups()
        if value is None and not _is_boolean(field):
            overrides += itertools.islice(remaining, 1)
    return others, overrides


def _is_boolean(field: str) -> bool:
    try:
        return config_path.get_type(field, configs.Config()) is bool
    except (KeyError, IndexError, ValueError, TypeError):  # no such field, reported later
        return False


def load_config(name: str, overrides: Sequence[str] = ()) -> configs.Config:
    """Return the checked config that `--config` names.

    Args:
      name: NAME_OR_FILE[:VARIANT].
      overrides: `--config.FIELD=VALUE` flags, as `split_overrides` returns them.

    Raises:
      UserError: naming the config, if it does not exist, has no `get_config`, does not know the
        variant, fails in any other way, or has invalid values.
    """
    file, colon, variant = name.partition(":")
    try:
        config = _get_config(file, *([variant] if colon else []))
        if not isinstance(config, configs.Config):
            raise UserError(f"get_config must return a Config, not {type(config).__name__}")
        if overrides:
            config = _override(config, overrides)
        configs.check(config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # a config is code: it may raise anything
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error
    return config


def _get_config(file: str, *variant: str) -> Any:
    """Call `get_config` of a shipped config or of a file."""
    if file in shipped_names():
        return importlib.import_module(f"{SHIPPED}.{file}").get_config(*variant)
    path = Path(file).expanduser()
    if not path.is_file():
        raise UserError(f"no such config; give a file, or one of {', '.join(shipped_names())}")
    with _importable_configs(path):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError("has no function get_config")
        return get_config(*variant)


@contextmanager
def _importable_configs(path: Path) -> Iterator[None]:
    """Let a config file import its neighbors, as `from configs import coco`.

    The folder that holds the config's own folder comes first, the working directory last.
    """
    before = sys.path.copy()
    sys.path[:] = [str(path.resolve().parent.parent), *before, os.getcwd()]
    try:
        yield
    finally:
        sys.path[:] = before


def _override(config: configs.Config, overrides: Sequence[str]) -> configs.Config:
    """Return a config with `--config.FIELD=VALUE` flags applied."""
    overrides = configs.rename_flags(overrides)
    for flag in overrides:
        if match := OVERRIDE.fullmatch(flag):
            _check_field(match[2])
    argv = ["config", *_quote_names(overrides)]
    values = flags.FlagValues()
    # ml_collections has no parser for Literal; `config.check` refuses a string outside the set.
    config_flags.register_flag_parser_for_type(Literal, flags.ArgumentParser())
    try:
        config_flags.DEFINE_config_dataclass("config", config, flag_values=values, sys_argv=argv)
        rest = values(argv)
    except (flags.Error, ValueError, TypeError) as error:
        raise UserError(str(error.args[0])) from error
    if rest[1:]:
        raise UserError(f"unexpected {rest[1]!r}: flags are --config.FIELD=VALUE")
    overridden: configs.Config = values.config
    return overridden


def _check_field(path: str) -> None:
    holder: Any = configs.Config()
    for name in path.split("."):
        known = dataclasses.fields(holder) if dataclasses.is_dataclass(holder) else ()
        names = [field.name for field in known]
        if name not in names:
            raise UserError(f"--config.{path}: unknown field; known fields are {', '.join(names)}")
        holder = getattr(holder, name)


def _quote_names(overrides: Sequence[str]) -> list[str]:
    """Quote the names in `--config.data.classes=cat,dog`: flags are parsed as Python literals."""
    quoted: list[str] = []
    awaits_value = False
    for flag in overrides:
        match = OVERRIDE.fullmatch(flag)
        is_names = match is not None and match[2] in NAME_LISTS
        if match and is_names and match[3]:
            flag = f"--config.{match[2]}={_literal(match[3][1:])}"
        elif awaits_value:
            flag = _literal(flag)
        awaits_value = is_names and match is not None and not match[3]
        quoted.append(flag)
    return quoted


def _literal(text: str) -> str:
    """Return names separated by commas as a Python tuple; a text with brackets or quotes is one."""
    if text[:1] in ("(", "[", "'", '"'):
        return text
    return repr(tuple(name.strip() for name in text.split(",") if name.strip()))
