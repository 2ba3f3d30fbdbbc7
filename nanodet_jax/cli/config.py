"""`nanodet-jax config`: print the fields of a config."""

import argparse
import dataclasses
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from nanodet_jax import config as configs
from nanodet_jax.cli.config_flags import add_config, apply_overrides, load_config, shipped_names
from nanodet_jax.cli.flag_values import format_value
from nanodet_jax.config.reference import descriptions
from nanodet_jax.config.section import close_fields
from nanodet_jax.config.values import choices, join_choices
from nanodet_jax.errors import UserError
from nanodet_jax.terminal import say, say_lines

INDENT = " " * 6
WIDTHS = (60, 90)  # minimum and maximum width of the text, in characters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `config`."""
    parser.description = (
        "Print every field of a config as a flag, with its value and meaning. Fields that differ "
        "from the default are marked with *. Without a config, the defaults are printed."
    )
    add_config(parser)
    parser.add_argument(
        "--search", metavar="WORD", help="print only fields whose name or meaning contains WORD"
    )
    parser.set_defaults(run=run, config="")


def run(args: argparse.Namespace, overrides: Sequence[str]) -> int:
    """Print the fields."""
    if args.config:
        config = load_config(args.config, overrides)
    else:
        config = apply_overrides(configs.Config(), overrides)
    lines = list(_section("config", config, configs.Config(), (args.search or "").lower()))
    if not lines:
        close = [f"--{field}" for field in close_fields(f"config.{args.search}")]
        fix = f"did you mean {' or '.join(close)}?" if close else "omit it to see all fields"
        raise UserError(f"--search={args.search}: no field matches; {fix}")
    if not args.config and not args.search:
        say("Defaults of all fields. To see a config's values, add its name or file.")
        say(f"The names are {', '.join(shipped_names())}.")
        say("")
    say_lines("\n".join(lines).strip("\n"))
    return 0


def _section(path: str, values: Any, defaults: Any, word: str) -> Iterator[str]:
    """Yield the lines of one section, then the lines of its nested sections."""
    cls = type(values)
    hints, texts = typing.get_type_hints(cls), descriptions(cls)
    lines: list[str] = []
    nested: list[str] = []
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            nested.append(field.name)
            continue
        flag, text = f"--{path}.{field.name}", " ".join(texts[field.name].split())
        if word in flag.lower() or word in text.lower():
            value, default = getattr(values, field.name), getattr(defaults, field.name)
            mark = " " if value == default else "*"
            note = _note(field, hints, value, default)
            lines.append(f"{mark} {flag}={format_value(value)}{note}")
            lines.append(textwrap.indent(textwrap.fill(text, _width()), INDENT))
    if lines:
        yield f"\n{path}: {' '.join((cls.__doc__ or '').split())}"
        yield from lines
    for name in nested:
        yield from _section(f"{path}.{name}", getattr(values, name), getattr(defaults, name), word)


def _note(field: dataclasses.Field[Any], hints: dict[str, Any], value: Any, default: Any) -> str:
    """Return a field's default, if its value differs, and its choices, in parentheses; or ""."""
    notes = []
    if value != default:
        notes.append(f"default: {format_value(default) or 'empty'}")
    if allowed := choices(field, hints[field.name]):
        notes.append(f"choices: {join_choices(allowed)}")
    return f"  ({'; '.join(notes)})" if notes else ""


def _width() -> int:
    narrowest, widest = WIDTHS
    return min(max(shutil.get_terminal_size().columns, narrowest), widest)
