"""Values of config fields as text on the command line: `16`, `true`, `0.5,1.5`, `cat,dog`."""

import csv
import io
import re
import shlex
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

BOOLEANS = "true or false"
# absl's parsers also accept 0x10 for an integer, and t, 1, F or 0 for a boolean.
PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (flags.IntegerParser().parse, "int"),
    float: (flags.FloatParser().parse, "float"),
    bool: (flags.BooleanParser().parse, BOOLEANS),
}


def parse_value(text: str, hint: Any) -> Any:
    """Parse the value of a field; bounds and choices are not checked.

    Items of a tuple are separated by commas, and the list may be enclosed in brackets. An item that
    contains a comma is enclosed in double quotes.

    Args:
      text: what follows `--config.FIELD=`.
      hint: type of the field.

    Raises:
      ValueError: stating what was expected.
    """
    if typing.get_origin(hint) is not tuple:
        return _parse_item(text, hint)
    kinds = typing.get_args(hint)
    items = _split(text)
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(items) != len(kinds):
        raise ValueError(f"expected {len(kinds)} values, separated by commas")
    return tuple(_parse_item(item, kind) for item, kind in zip(items, kinds))


def format_value(value: Any) -> str:
    """Return a value as text that `parse_value` reads, quoted for a shell where necessary."""
    return shlex.quote(text) if (text := _format(value)) else ""


def _format(value: Any) -> str:
    if isinstance(value, tuple):
        row = io.StringIO()
        csv.writer(row, lineterminator="").writerow(map(_format, value))
        return row.getvalue()
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_item(text: str, hint: Any) -> Any:
    if hint not in PARSERS:
        return text  # the field is a str or a Literal
    parse, expected = PARSERS[hint]
    try:
        return parse(text.strip())
    except ValueError:
        raise ValueError(f"expected {expected}") from None


def _split(text: str) -> list[str]:
    """Split the text of a tuple into items without their quotes. Leave out empty items."""
    text = text.strip()
    if text[:1] + text[-1:] in ("()", "[]"):
        text = text[1:-1]
    [row] = csv.reader([text], skipinitialspace=True) if text else [[]]
    items = [item.strip() for item in row]
    return [re.sub(r"^'(.*)'$", r"\1", item) for item in items if item]
