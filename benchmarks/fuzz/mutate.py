"""Breaking bytes and values: the operators that all kinds share. Each says what it did."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

Operator = Callable[[bytearray, random.Random], str]

_INTEGERS = (0, 1, 2, 7, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_DEEP = "@@deep@@"


# What no schema expects; `dump_json` writes them all.
ODD_VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    1_000_000,
    2**31,
    2**63,
    10**40,
    -(10**300),
    0.5,
    float("nan"),
    float("inf"),
    "",
    "0",
    "\x00",
    " ",
    "a" * 300,
    "=1+1",
    "../../up",
    "ünï©ode \N{GRINNING FACE}",
    "\ud800",
    [],
    {},
    [[]],
    [1, "a", None],
    {"": {}},
    [0] * 1000,
    _DEEP,
)


def break_bytes(data: bytes, rng: random.Random, other: bytes = b"", most: int = 3) -> tuple[bytes, str]:
    """One to ``most`` operators applied.

    Args:
        data: what is to be broken.
        rng: what decides how.
        other: a second file, to splice.
        most: operators, at most.

    Returns:
        The broken bytes, and what was done.
    """
    broken = bytearray(data)
    stories = []
    for _ in range(rng.randint(1, most)):
        if other and rng.random() < 0.08:
            stories.append(_splice(broken, other, rng))
        elif broken:
            stories.append(rng.choice(_OPERATORS)(broken, rng))
    return bytes(broken), "; ".join(stories)


def _flip(data: bytearray, rng: random.Random) -> str:
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 1, 2, 8)))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return f"bits flipped at {places}"


def _set_byte(data: bytearray, rng: random.Random) -> str:
    place, value = rng.randrange(len(data)), rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    data[place] = value
    return f"byte {place} = {value}"


def _set_integer(data: bytearray, rng: random.Random) -> str:
    width = rng.choice((2, 4, 8))
    place, value = rng.randrange(len(data)), rng.choice(_INTEGERS) % (1 << 8 * width)
    order = rng.choice(("little", "big"))
    data[place : place + width] = value.to_bytes(width, "little" if order == "little" else "big")
    return f"{width} bytes at {place} = {value} ({order})"


def _truncate(data: bytearray, rng: random.Random) -> str:
    length = rng.randrange(len(data))
    del data[length:]
    return f"cut off at {length}"


def _delete(data: bytearray, rng: random.Random) -> str:
    start, stop = _range(data, rng)
    del data[start:stop]
    return f"{start}:{stop} deleted"


def _duplicate(data: bytearray, rng: random.Random) -> str:
    start, stop = _range(data, rng)
    times = rng.choice((1, 1, 2, 20))
    data[start:start] = bytes(data[start:stop]) * times
    return f"{start}:{stop} repeated {times} times"


def _insert(data: bytearray, rng: random.Random) -> str:
    place, number = rng.randrange(len(data) + 1), rng.choice((1, 2, 4, 64))
    data[place:place] = rng.randbytes(number)
    return f"{number} bytes inserted at {place}"


def _fill(data: bytearray, rng: random.Random) -> str:
    start, stop = _range(data, rng)
    value = rng.choice((0, 0xFF))
    data[start:stop] = bytes([value]) * (stop - start)
    return f"{start}:{stop} filled with {value}"


def _append(data: bytearray, rng: random.Random) -> str:
    number = rng.choice((1, 16, 4096))
    data += rng.randbytes(number)
    return f"{number} bytes appended"


def _splice(data: bytearray, other: bytes, rng: random.Random) -> str:
    here, there = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    data[here:] = other[there:]
    return f"from {here} on another file from {there} on"


def _range(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 64, 512)))


_OPERATORS: tuple[Operator, ...] = (
    _flip,
    _flip,
    _set_byte,
    _set_integer,
    _truncate,
    _delete,
    _duplicate,
    _insert,
    _fill,
    _append,
)


def break_tree(tree: Any, rng: random.Random) -> tuple[Any, str]:
    """A value of lists and dicts with one place changed: another value, a key gone, doubled or renamed, nested deeply.

    Args:
        tree: is left as it is.
        rng: what decides the place and the change.
    """
    paths = list(_paths(tree))
    path = rng.choice(paths)
    name = ".".join(map(str, path)) or "the whole"
    if not path:
        value = rng.choice(ODD_VALUES)
        return value, f"the whole = {value!r:.60}"
    copy = _copied(tree)
    parent = copy
    for key in path[:-1]:
        parent = parent[key]
    key, change = path[-1], rng.randrange(5)
    if change == 0:
        del parent[key]
        return copy, f"{name} removed"
    if change == 1 and isinstance(parent, dict):
        parent[f"{key}_"] = parent.pop(key)
        return copy, f"{name} renamed"
    if change == 2 and isinstance(parent, list):
        times = rng.choice((1, 2, 50))
        parent[key:key] = [parent[key]] * times
        return copy, f"{name} repeated {times} times"
    parent[key] = rng.choice(ODD_VALUES)
    return copy, f"{name} = {parent[key]!r:.60}"


def _copied(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return [_copied(value) for value in tree] if isinstance(tree, list | tuple) else tree


def _paths(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list | tuple) else ()
    for key, value in items:
        found += _paths(value, (*path, key))
    return found


def dump_json(tree: Any, rng: random.Random) -> str:
    """JSON text of what `break_tree` makes; nested lists of a depth that no parser was made for stand for one value."""
    depth = rng.choice((500, 2_000, 100_000))
    nested = rng.choice(("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth, "[" * depth))
    return json.dumps(tree).replace(json.dumps(_DEEP), nested)
