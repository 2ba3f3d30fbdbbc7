"""Configs on the command line: `--config NAME_OR_FILE[:VARIANT]` and `--config.FIELD=VALUE`."""

import argparse
import copy
import dataclasses
import functools
import importlib
import os
import pkgutil
import re
import runpy
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from nanodet_jax import config as configs
from nanodet_jax.cli.flag_values import format_value, parse_value
from nanodet_jax.config.section import close_fields, fields_of, unknown_field
from nanodet_jax.errors import UserError, did_you_mean

SHIPPED = "nanodet_jax.configs"  # package of the configs that can be used by name
OVERRIDE = re.compile(r"--?(no)?config\.([^=]*)(=.*)?", re.DOTALL)
HELP = """CONFIG is NAME[:VARIANT] or FILE[:VARIANT]. The names are {names}. A file is Python code
with a function get_config() that returns a Config; VARIANT is its argument. Override fields with
--config.FIELD=VALUE, for example --config.training.epochs=20 --config.data.classes=cat,dog
--noconfig.data.keep_ratio; if a flag is repeated, the last one counts. `nanodet-jax config`
describes all fields, as does docs/config.md in the repository. --flagfile=FILE reads more flags
from a file, one per line."""


def add_config(
    parser: argparse.ArgumentParser, default: str | None = None, default_help: str = "%(default)s"
) -> None:
    """Add `--config` to a command; without a default, also as a positional argument."""
    group = parser.add_argument_group("config", HELP.format(names=", ".join(shipped_names())))
    positional = default is None
    note = "may also be given without --config" if positional else f"default: {default_help}"
    group.add_argument("--config", default=default, metavar="CONFIG", help=f"name or file ({note})")
    if positional:
        group.add_argument("config", nargs="?", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_field_names(parser: argparse.ArgumentParser) -> None:
    """Add the names of all config fields to the help of a command, one group per section."""
    sections: dict[str, list[str]] = {}
    for path, hint in fields_of(configs.Config):
        section, _, name = path.rpartition(".")
        if not dataclasses.is_dataclass(hint):
            sections.setdefault(section, []).append(name)
    for section, names in sections.items():
        parser.add_argument_group(f"fields of --{section}", ", ".join(names))


def shipped_names() -> list[str]:
    """Return the names of the configs that come with the package."""
    package = importlib.import_module(SHIPPED)
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__))


def split_overrides(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate `--config.FIELD` flags, with their values, from all other arguments.

    Raises:
      UserError: if a `--flagfile` cannot be read.
    """
    remaining = deque(_with_flag_files(argv))
    others: list[str] = []
    overrides: list[str] = []
    while remaining:
        argument = remaining.popleft()
        match = OVERRIDE.fullmatch(argument)
        if not match:
            others.append(argument)
            continue
        overrides.append(argument)
        _, field, value = match.groups()
        separate = value is None and not _is_boolean(field)
        if separate and (following := _take_value(remaining)) is not None:
            overrides.append(following)
    return others, overrides


def _with_flag_files(argv: Sequence[str]) -> list[str]:
    try:
        return flags.FlagValues().read_flags_from_files(list(argv), force_gnu=True)
    except flags.CantOpenFlagFileError as error:
        reason = getattr(error.__context__, "strerror", None) or "cannot be opened"
        file = getattr(error.__context__, "filename", None)
        raise UserError(f"--flagfile={file}: cannot be read: {reason}") from error
    except flags.Error as error:
        raise UserError("--flagfile: expects a file, as in --flagfile=FILE") from error
    except ValueError as error:  # not UTF-8
        raise UserError("--flagfile: not UTF-8 text; use a file with one flag per line") from error


def suggest_flag(argument: str) -> str:
    """Return " did you mean FLAG?" with a config flag that resembles the argument, or ""."""
    name = re.sub(r"^-*(config\b)?[.-]?", "", argument).partition("=")[0]
    if not argument.startswith("-") and (name in shipped_names() or Path(argument).is_file()):
        return f" did you mean --config {argument}?"
    known = dict(fields_of(configs.Config))
    close = [f"config.{name}"] if f"config.{name}" in known else close_fields(f"config.{name}")
    return f" did you mean {' or '.join(f'--{field}' for field in close)}?" if close else ""


def _is_boolean(field: str) -> bool:
    return dict(fields_of(configs.Config)).get(f"config.{field}") is bool


def load_config(name: str, overrides: Sequence[str] = ()) -> configs.Config:
    """Return the checked config that `--config` names.

    Args:
      name: NAME_OR_FILE[:VARIANT].
      overrides: `--config.FIELD=VALUE` flags, as `split_overrides` returns them.

    Raises:
      UserError: naming the config, if it does not exist, has no `get_config`, does not have the
        variant, fails in any other way, or has invalid values; or as in `apply_overrides`.
    """
    file, colon, variant = name.partition(":")
    if not file:
        known = ", ".join(shipped_names())
        raise UserError(f"--config={name}: names no config; use a file, or one of {known}")
    try:
        config = _get_config(file, *([variant] if colon else []))
        if not isinstance(config, configs.Config):
            raise UserError(f"get_config must return a Config, not {type(config).__name__}")
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    except Exception as error:  # a config is code: it may raise anything
        raise UserError(f"{name}: {type(error).__name__}: {error}") from error
    config = apply_overrides(config, overrides)
    try:
        configs.check(config)
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    return config


def _get_config(file: str, *variant: str) -> Any:
    """Call `get_config` of a shipped config or of a file."""
    names = shipped_names()
    if file in names:
        return importlib.import_module(f"{SHIPPED}.{file}").get_config(*variant)
    path = Path(file).expanduser()
    if not path.is_file():
        meant = did_you_mean(file, names)
        raise UserError(f"no such config;{meant} use a file, or one of {', '.join(names)}")
    if path.suffix == ".json":
        raise UserError(
            "is json, but a config file is Python code; the command that trained a run is in the "
            "history.jsonl of its workdir"
        )
    with _importable_configs(path):
        get_config = runpy.run_path(str(path)).get("get_config")
        if get_config is None:
            raise UserError("has no function get_config")
        return get_config(*variant)


@contextmanager
def _importable_configs(path: Path) -> Iterator[None]:
    """Let a config file import its neighbors, as in `from configs import coco`.

    The parent of the config's folder is searched first, the working directory last.
    """
    before = sys.path.copy()
    sys.path[:] = [str(path.resolve().parent.parent), *before, os.getcwd()]
    try:
        yield
    finally:
        sys.path[:] = before


def apply_overrides(config: configs.Config, overrides: Sequence[str]) -> configs.Config:
    """Return a copy of a config with `--config.FIELD=VALUE` flags applied; the last one counts.

    Raises:
      UserError: naming the flag and a fix, for an unknown field, a value of the wrong type, or a
        path that would not be read.
    """
    before, config = config.data, copy.deepcopy(config)
    remaining = deque(configs.rename_flags(overrides))
    while remaining:
        match = OVERRIDE.fullmatch(remaining.popleft())
        assert match is not None  # guaranteed by `split_overrides`
        negated, field, value = match.groups()
        hint = _type_of(field)
        section, _, name = field.rpartition(".")
        holder = _section_of(config, section)
        now = format_value(getattr(holder, name))
        example = f"--config.{field}={now or 'VALUE'}"
        if negated:
            text = _negated_value(field, value, hint, example)
        elif value is not None:
            text = value.removeprefix("=")
        elif hint is bool:
            text = "true"
        elif (following := _take_value(remaining)) is not None:
            text = following
        else:
            raise UserError(f"--config.{field}: expects a value, such as {example}")
        try:
            setattr(holder, name, parse_value(text, hint))
        except ValueError as error:
            such_as = f", such as {example}" if now else ""
            raise UserError(f"--config.{field}={text!r}: {error}{such_as}") from None
    _check_paths_are_read(before, config.data)
    return config


def _check_paths_are_read(before: configs.Data, data: configs.Data) -> None:
    """Raise a UserError if flags changed a path that another field replaces."""
    for name in configs.FILE_FIELDS:
        if getattr(data, name) in ("", getattr(before, name)):
            continue
        if data.sources:
            raise UserError(
                f"--config.data.{name}: is not read, because config.data.sources is set; use "
                "--config.data.sources=FORMAT:FOLDER, or add --config.data.sources="
            )
        if data.format == "coco" and data.root and name != "root":
            raise UserError(
                f"--config.data.{name}: is not read, because config.data.root is set; add "
                "--config.data.root="
            )


def _take_value(remaining: deque[str]) -> str | None:
    """Remove and return the value that follows a flag without "="; None if it is missing."""
    missing = not remaining or remaining[0].startswith("--")
    return None if missing else remaining.popleft()


def _negated_value(field: str, value: str | None, hint: Any, example: str) -> str:
    """Return "false" for `--noconfig.FIELD`, after checking that it is used correctly."""
    flag = f"--noconfig.{field}"
    if hint is not bool:
        raise UserError(f"{flag}: works only for fields that are true or false; use {example}")
    if value is not None:
        raise UserError(f"{flag}: takes no value; use {flag} or --config.{field}=false")
    return "false"


def _type_of(field: str) -> Any:
    """Return the type of a field.

    Raises:
      UserError: if the field does not exist, naming the closest fields; or if it is a section.
    """
    hint = dict(fields_of(configs.Config)).get(f"config.{field}")
    if hint is None:
        text = unknown_field(f"config.{field}").replace(" config.", " --config.")
        raise UserError(f"--config.{field}: {text}")
    if dataclasses.is_dataclass(hint):
        names = ", ".join(part.name for part in dataclasses.fields(hint))
        raise UserError(f"--config.{field}: is a section; use one of its fields: {names}")
    return hint


def _section_of(config: configs.Config, name: str) -> Any:
    """Return the section with a dotted name, or the whole config for an empty name."""
    return functools.reduce(getattr, filter(None, name.split(".")), config)
