"""Interpreting the pickle in a file written by torch.save, without executing it.

A pickle is a program that calls functions by name, and a downloaded file can call any function.
`pickle` would execute it, and would allocate as much memory as the file asks for. `interpret`
supports only the few instructions that such files need. They build plain values and instances of
the classes in this module. Names of functions are only compared with a list. No function is
imported.
"""

import pickletools
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from nanodet_jax.errors import UserError

# Stored dtypes. NumPy has no bfloat16, so its 16 bits are read as an integer.
STORAGE_DTYPES = {
    "torch.FloatStorage": "f4",
    "torch.DoubleStorage": "f8",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
}
# State dicts, and the milestones of a learning-rate schedule.
MAPPINGS = ("collections.OrderedDict", "collections.Counter")
# PyTorch before 0.4 uses the second.
REBUILD = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor")
PARAMETER = "torch._utils._rebuild_parameter"
# Named but never called: Lightning before 1.5 uses this class as a key of its state.
LABELS = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
KNOWN = {*STORAGE_DTYPES, *MAPPINGS, *LABELS, *REBUILD, PARAMETER, "torch.Size"}
MAX_DIMENSIONS = 32
# The pickle of NanoDet-Plus has 20 thousand instructions. A Lightning checkpoint, with averages and
# the optimizer's state, has about five times as many. Each instruction takes about 3 microseconds
# and at most 100 bytes of memory.
MAX_INSTRUCTIONS = 400_000
MAX_KEY_LENGTH = 1000  # characters; comparing keys must stay cheap

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# Instructions that push their argument, store a value in the memo, or load it from the memo.
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
PUTS, GETS = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
FIXED_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Global:
    """A class or function that the pickle names: one of `KNOWN`."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A sequence of numbers in the file."""

    kind: str  # one of STORAGE_DTYPES
    key: str  # in an archive, the member is data/key
    length: int  # elements


@dataclass(frozen=True)
class Tensor:
    """A view of a storage. It may extend beyond the storage: this is not checked here."""

    storage: Storage
    offset: int  # offset and strides count elements; none is negative
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def interpret(pickled: bytes | BinaryIO, storages: dict[str, Storage] | None = None) -> Any:
    """Return the value of a pickle, built from plain values, `Global`, `Storage` and `Tensor`.

    Plain values are None, bool, int, float, str, bytes, tuple, list and dict. Mappings of any class
    become dict, and parameters become tensors. No value is copied, so memory is proportional
    to the length of `pickled`. Values may contain themselves. A dict contains only the entries
    whose key is a str.

    Args:
      pickled: the pickle, or a file positioned at its start, which is left at its end.
      storages: receives every storage that the pickle names, by key.

    Raises:
      UserError: if the pickle names a class or function not in `KNOWN`, is too long, or is damaged.
    """
    try:
        with warnings.catch_warnings():
            # pickletools warns about escapes in a damaged name. Such a name is refused later.
            warnings.simplefilter("ignore", DeprecationWarning)
            return _interpret(pickled, {} if storages is None else storages)
    # pickletools raises these for damaged instructions, and _interpret for missing entries.
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"damaged pickle ({ascii(error)[:200]})") from error


def quoted(name: str) -> str:
    """Return a name from a file for an error message: quoted, escaped and truncated."""
    return ascii(name[:100])


def _interpret(pickled: bytes | BinaryIO, storages: dict[str, Storage]) -> Any:
    stack: list[Any] = []
    marks: list[int] = []
    memo: list[Any] = []  # numbered without gaps from 0, or from 1 by Python 2

    def put(index: int) -> None:
        if index == 1 and not memo:
            memo.append(None)
        if index > len(memo):
            raise ValueError(f"memo index {index} after {len(memo)} entries")
        memo[index : index + 1] = [stack[-1]]

    def since_mark() -> list[Any]:
        start = marks.pop()
        items = stack[start:]
        del stack[start:]
        return items

    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count == MAX_INSTRUCTIONS:
            raise UserError(
                f"its pickle has over {MAX_INSTRUCTIONS} instructions, too many for weights"
            )
        match opcode.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "MARK":
                marks.append(len(stack))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in LITERALS:
                stack.append(argument)
            case name if name in PUTS:
                put(argument)
            case "MEMOIZE":
                put(len(memo))
            case name if name in GETS:
                stack.append(memo[argument])
            case "EMPTY_TUPLE":
                stack.append(())
            case name if name in FIXED_TUPLES:
                size = FIXED_TUPLES[name]
                stack[-size:] = [(*stack[-size:],)]
            case "TUPLE":
                stack.append((*since_mark(),))
            case "EMPTY_LIST":
                stack.append([])
            case "APPEND":
                item = stack.pop()
                _expect(stack[-1], list).append(item)
            case "APPENDS":
                items = since_mark()
                _expect(stack[-1], list).extend(items)
            case "EMPTY_DICT":
                stack.append({})
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = since_mark()
                _set_items(stack[-1], items)
            case "GLOBAL":
                stack.append(_global(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name, module = _expect(stack.pop(), str), _expect(stack.pop(), str)
                stack.append(_global(f"{module}.{name}"))
            case "INST":  # names a class and calls it
                raise ValueError(f"instance of {_global(argument.replace(' ', '.', 1)).name}")
            case "BINPERSID":
                storage = _storage(stack.pop())
                if storages.setdefault(storage.key, storage) != storage:
                    raise UserError(
                        f"damaged archive: storage {quoted(storage.key)} has two types or lengths"
                    )
                stack.append(storage)
            case "REDUCE":
                arguments, called = _expect(stack.pop(), tuple), _expect(stack.pop(), Global)
                stack.append(_call(called.name, arguments))
            case "BUILD":  # attributes of a mapping, such as versions of layers: not needed
                stack.pop()
                _expect(stack[-1], dict)
            case name:
                raise ValueError(f"instruction {name}, which torch.save does not use")
    return stack.pop()


def _expect(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


def _set_items(target: Any, items: list[Any]) -> None:
    """Set entries of a dict. Skip keys that are numbers, globals or None: no weights use them.

    A file can contain many numbers with the same hash, so each insertion would compare its key with
    all others. Strings are safe, because their hashes have a random seed in each process. Tuples as
    keys are refused, because hashing deeply nested ones may never end.
    """
    mapping: dict[str, Any] = _expect(target, dict)
    for key, value in zip(items[::2], items[1::2], strict=True):
        if isinstance(key, str):
            if len(key) > MAX_KEY_LENGTH:
                raise ValueError(f"a key of {len(key)} characters")
            mapping[key] = value
        elif not isinstance(key, int | float | Global | None):
            raise ValueError(f"{type(key).__name__} as a key")


def _global(name: str) -> Global:
    if name not in KNOWN:
        raise UserError(
            f"{quoted(name)} is not allowed in a weights file; nothing was executed. If you trust "
            "the file, load it with PyTorch and save only its state_dict"
        )
    return Global(name)


def _storage(identity: Any) -> Storage:
    match identity:
        case ("storage", Global(name=kind), str(key), str(), int(length), *views) if (
            kind in STORAGE_DTYPES and views in ([], [None])  # PyTorch before 1.6 adds None
        ):
            return Storage(kind, key, _counts([length])[0])
    raise ValueError("a persistent id is not a storage")


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    match arguments:
        case () if name in MAPPINGS:
            return {}
        case (dict(mapping),) if name in MAPPINGS:
            return mapping
        case (list(pairs),) if name in MAPPINGS:  # a mapping that Python 2 wrote
            mapping = {}
            for pair in pairs:
                key, value = _expect(pair, list)
                _set_items(mapping, [key, value])
            pairs.clear()  # so that a file cannot copy one long list many times
            return mapping
        case (tuple(sizes),) if name == "torch.Size":
            return sizes
        case (Tensor() as tensor, *_) if name == PARAMETER:
            return tensor
        case (Storage() as storage, offset, tuple(shape), tuple(strides), *_) if (
            name in REBUILD and len(shape) == len(strides) <= MAX_DIMENSIONS
        ):
            return Tensor(storage, _counts([offset])[0], _counts(shape), _counts(strides))
    raise ValueError(f"{name} called with unexpected arguments")


def _counts(numbers: Iterable[Any]) -> tuple[int, ...]:
    counts = (*numbers,)
    # Reject bool, which is an int in Python but not in NumPy.
    if not all(type(number) is int and 0 <= number < 2**63 for number in counts):
        raise ValueError("an impossible offset, shape or stride")
    return counts
