"""Accept config fields under their names from earlier versions."""

import re
from collections.abc import Sequence
from typing import Any

from nanodet_jax.terminal import say

# The new name for each old name. If a section is renamed, so is every field in it.
RENAMED = {
    "assigner.cell_scale": "assigner.anchor_scale",
    "training.rate_batch": "training.lr_base_batch_size",
    "training.rates": "training.lr_multipliers",
    "training.coordinator": "distributed.coordinator",
    "training.processes": "distributed.num_processes",
    "training.process": "distributed.process_index",
}
FLAG = re.compile(r"(--?config\.)([\w.]+)(.*)", re.DOTALL)


def rename_flags(arguments: Sequence[str]) -> list[str]:
    """Return command-line arguments with the old names in `--config.FIELD` replaced.

    Print a line for each replaced name.
    """
    return [_rename_flag(argument) for argument in arguments]


def _rename_flag(argument: str) -> str:
    match = FLAG.fullmatch(argument)
    if match is None:
        return argument
    prefix, name, rest = match.groups()
    for old, new in RENAMED.items():
        if f"{name}.".startswith(f"{old}."):
            _note(old, new)
            return f"{prefix}{new}{name.removeprefix(old)}{rest}"
    return argument


def rename_fields(values: Any, defaults: dict[str, Any]) -> None:
    """Replace the old names in the content of a config file, in place.

    Print a line for each replaced name whose value is not the default. Files written by this
    project contain all fields, so a default value does not show that the user has set it. If a
    field is present under both names, the old one stays and is rejected later as unknown.

    Args:
      values: any json value. It is left unchanged unless it is an object with sections.
      defaults: the defaults of all sections and fields, by their new names.
    """
    if not isinstance(values, dict):
        return
    for old, new in RENAMED.items():
        (section, name), (new_section, new_name) = old.split("."), new.split(".")
        source = values.get(section)
        if not isinstance(source, dict) or name not in source:
            continue
        target = values.setdefault(new_section, {})
        if isinstance(target, dict) and new_name not in target:
            target[new_name] = source.pop(name)
            if target[new_name] != defaults[new_section][new_name]:
                _note(old, new)


def _note(old: str, new: str) -> None:
    say(f"note: config.{old} is now config.{new}")
