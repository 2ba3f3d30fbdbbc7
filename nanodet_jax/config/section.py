"""Base class of all sections of a config, and suggestions for misspelled field names."""

import dataclasses
import difflib
import typing
from collections.abc import Iterator
from typing import Any

# Characters. A longer name, which a hostile file may contain, takes too long to compare.
MAX_COMPARED_LENGTH = 100


class Section:
    """Base class of dataclasses with `slots=True`. Errors for unknown fields suggest known ones."""

    __slots__ = ()

    if not typing.TYPE_CHECKING:  # if mypy saw these methods, it would accept any field

        def __new__(cls, *args: Any, **fields: Any) -> "Section":
            known = {field.name for field in dataclasses.fields(cls)}
            for name in fields:
                if name not in known:
                    raise TypeError(_unknown_attribute(cls, name))
            return object.__new__(cls)

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(_unknown_attribute(type(self), name), name=name, obj=self)

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                object.__setattr__(self, name, value)
            except AttributeError:
                raise AttributeError(_unknown_attribute(type(self), name)) from None


def unknown_field(path: str) -> str:
    """Return an error message that suggests similar fields, or lists all fields of the section.

    Args:
      path: full name, such as "config.training.epoch".
    """
    if close := close_fields(path):
        return f"unknown field; did you mean {' or '.join(close)}?"
    names = [field.name for field in dataclasses.fields(_section_at(path.rpartition(".")[0]))]
    return f"unknown field; known fields are {', '.join(names)}"


def close_fields(path: str) -> list[str]:
    """Return the full names of fields that are similar to an unknown one, the closest first.

    Fields of other sections with exactly this name take precedence. If there are none, fields of
    the same section with a similar name are returned, and otherwise similar fields of any section.

    Args:
      path: full name, such as "config.batch_size".
    """
    known = [name for name, _ in fields_of(_root())]
    section, _, name = path.rpartition(".")
    siblings = [other for other in known if other.rpartition(".")[0] == section]
    elsewhere = [other for other in known if _last(other) == name]
    return elsewhere or _close_matches(name, siblings) or _close_matches(name, known)


def fields_of(cls: type, path: str = "config") -> Iterator[tuple[str, Any]]:
    """Yield the full name and type of each field of a section and of all sections in it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        name, hint = f"{path}.{field.name}", hints[field.name]
        yield name, hint
        if dataclasses.is_dataclass(hint):
            yield from fields_of(typing.cast(type, hint), name)


def _close_matches(name: str, known: list[str]) -> list[str]:
    """Return the full names whose last part is similar to `name`."""
    if len(name) > MAX_COMPARED_LENGTH:
        return []
    close = difflib.get_close_matches(name, {_last(other): None for other in known}, n=1)
    return [other for other in known if _last(other) in close]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _root() -> type:
    from nanodet_jax.config.schema import Config  # here, because that module imports this one

    return Config


def _section_at(path: str) -> type:
    """Return the section with this full name or, if there is none, its closest existing parent."""
    sections = {name: hint for name, hint in fields_of(_root()) if dataclasses.is_dataclass(hint)}
    while path and path not in sections:
        path = path.rpartition(".")[0]
    return typing.cast(type, sections.get(path, _root()))


def _unknown_attribute(cls: type, name: str) -> str:
    """Return the error for an unknown attribute of a section, with the full name of the field."""
    sections = {hint: full for full, hint in fields_of(_root())} | {_root(): "config"}
    path = sections.get(cls)
    if path is None or name.startswith("__"):  # copy and pickle look up such names
        return f"{cls.__name__!r} object has no attribute {name!r}"
    return f"{path}.{name}: {unknown_field(f'{path}.{name}')}"
