"""Types, choices and bounds of config values, and the errors for invalid values.

Most errors read `config.SECTION.FIELD=VALUE: FIX`.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from nanodet_jax.config.section import unknown_field
from nanodet_jax.errors import UserError


def one_of(*values: float | str) -> dict[str, Any]:
    """Return field metadata with these choices, for floats and for names from a table."""
    return {"choices": values}


def choices(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, ...]:
    """Return the values that a field may have, or () if they are not a closed set."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)
    return field.metadata.get("choices", ())


def join_choices(values: tuple[Any, ...], form: str = "{}") -> str:
    """Return the values of a field as text for the user. `form` is applied to each of them."""
    return ", ".join(form.format(str(value) or '""') for value in values)


class Fields:
    """The fields of one section, with checks of their values.

    Args:
      section: a dataclass instance.
      path: full name of the section, such as "config.data".
    """

    def __init__(self, section: Any, path: str) -> None:
        self._section, self._path = section, path

    def require(self, name: str, condition: bool, fix: str) -> None:
        """Raise a UserError that names the field and its value unless `condition` holds."""
        if not condition:
            raise UserError(f"{self._path}.{name}={getattr(self._section, name)!r}: {fix}")

    def positive(self, *names: str) -> None:
        """Require that fields are greater than 0."""
        for name in names:
            self.require(name, getattr(self._section, name) > 0, "must be positive")

    def not_negative(self, *names: str) -> None:
        """Require that fields are 0 or more."""
        for name in names:
            self.require(name, getattr(self._section, name) >= 0, "must not be negative")

    def at_most(self, limits: Mapping[str, float]) -> None:
        """Require that no field exceeds its limit."""
        for name, limit in limits.items():
            self.require(name, getattr(self._section, name) <= limit, f"must be at most {limit}")

    def in_range(self, *names: str) -> None:
        """Require that fields are pairs LOW,HIGH with 0 < LOW <= HIGH."""
        for name in names:
            low, high = getattr(self._section, name)
            self.require(name, 0 < low <= high, "use LOW,HIGH with 0 < LOW <= HIGH")


def from_dict(cls: type, values: Any, path: str) -> Any:
    """Build an instance of a dataclass. Nested objects become nested dataclasses.

    Args:
      cls: the dataclass.
      values: its fields by name, as parsed from json or returned by `dataclasses.asdict`.
      path: full name for error messages, such as "config".

    Raises:
      UserError: for an unknown field, a value of the wrong type, or a value that is not a choice.
    """
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected an object with fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        name = f"{path}.{unknown[0]}"
        raise UserError(f"{name}: {unknown_field(name)}")
    parsed = {}
    for field in dataclasses.fields(cls):
        if field.name in values:
            value, where = values[field.name], f"{path}.{field.name}"
            if allowed := choices(field, hints[field.name]):
                value = _one_of(allowed, value, where)
            parsed[field.name] = _from_value(hints[field.name], value, where)
    return cls(**parsed)


def _one_of(allowed: tuple[Any, ...], value: Any, path: str) -> Any:
    if isinstance(value, bool) or value not in allowed:
        raise UserError(f"{path}={value!r}: must be one of {join_choices(allowed)}")
    return value


def _from_value(hint: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, path)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{path}={value!r}: expected a list")
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = (kinds[0],) * len(value)
        if len(kinds) != len(value):
            raise UserError(f"{path}={value!r}: expected {len(kinds)} values")
        return tuple(_from_value(kind, item, path) for kind, item in zip(kinds, value))
    # This also protects float() below, which fails for integers of 2**1024 or more.
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise UserError(f"{path}: expected a number of at most 64 bits")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{path}={value!r}: expected a finite number")
    kind = hint if isinstance(hint, type | types.UnionType) else object
    if not isinstance(value, kind) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{path}={value!r}: expected {getattr(hint, '__name__', hint)}")
    return value
