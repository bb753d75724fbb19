"""Damage for the fuzzer: bytes by bits and blocks, trees by structure, and odd files made from them."""

from __future__ import annotations

import csv
import io
import json
import random
import struct
from typing import Any

from regraft.plan.write import toml_value

TEXTS = [
    "",
    " ",
    "x",
    "-1",
    "NaN",
    "1e999",
    "../../etc/passwd",
    "/dev/zero",
    "a\0b",
    "\ud800",
    "é" * 300,
    "x" * 5000,
    "=1+1",
    "null",
    "true",
    "auto",
    "{",
    "[[",
    '"',
    "'",
    "\\",
    "\n",
    "\r\n",
    "\ufeff",
    "own",
    "timm:resnet18",
    "os:system",
    "classification",
    "regression",
    "everything",
]
VALUES = [
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    2**64,
    -(2**70),
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    [None],
    [1, 2],
    {"a": 1},
    [1.5, "x"],
    ["a"] * 300,
]


def hostile(rng: random.Random) -> Any:
    return rng.choice(TEXTS) if rng.random() < 0.5 else rng.choice(VALUES)


def flipped(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Return a file's bytes with bits, bytes or blocks changed, cut, doubled, or taken from another file."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(out)
        at, length = rng.randrange(size + 1), rng.choice((1, 2, 4, 8, 64, 512))
        how = rng.randrange(8)
        if how == 0 and at < size:
            out[at] ^= 1 << rng.randrange(8)
        elif how == 1 and at < size:
            out[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif how == 2:
            out = out[:at]
        elif how == 3:
            del out[at : at + length]
        elif how == 4:
            out[at:at] = out[at : at + length]
        elif how == 5:
            out[at:at] = rng.randbytes(length)
        elif how == 6:
            number = rng.choice((0, 1, 2**15, 2**16, 2**31 - 1, 2**31, 2**32 - 1))
            out[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            out[at : at + length] = other[start : start + length]
    return bytes(out)


def altered(tree: Any, rng: random.Random) -> Any:
    """Return a tree of values with a few nodes replaced, left out, doubled or renamed."""
    tree = json.loads(json.dumps(tree))
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        inner: list[Any] = [node for node in nodes(tree) if node]
        if not inner:
            return hostile(rng)
        node = rng.choice(inner)
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        how = rng.randrange(8)
        if how == 0:
            del node[key]
        elif how == 1 and isinstance(node, dict):
            node[rng.choice(TEXTS)] = node.pop(key)
        elif how == 1:
            node.append(node[key])
        elif how == 2:
            node[key] = rng.choice([n for n in nodes(tree) if n is not node] or [None])
            tree = json.loads(json.dumps(tree, check_circular=False)) if not looped(tree) else None
        elif how == 3 and isinstance(node[key], str):
            node[key] = flipped(node[key].encode(), rng, [b"auto"]).decode(errors="replace")
        elif how == 4 and isinstance(node[key], int | float):
            node[key] = node[key] * rng.choice((-1, 0, 2, 1000, 0.5))
        else:
            node[key] = hostile(rng)
    return tree


def nodes(tree: Any) -> list[Any]:
    found, stack = [], [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, dict | list):
            found.append(node)
            stack += node.values() if isinstance(node, dict) else node
            if len(found) > 10_000:
                break
    return found


def looped(tree: Any) -> bool:
    return len(nodes(tree)) > 10_000


def as_json(tree: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.01:  # nest deeper than any stack
        return rng.choice((b"[", b'{"a":')) * 100_000
    return json.dumps(tree, ensure_ascii=rng.random() < 0.7).encode(errors="surrogatepass")


def as_toml(tree: Any, rng: random.Random) -> bytes:
    if rng.random() < 0.01:
        return b"a = " + b"[" * 100_000
    lines = []
    for key, value in tree.items() if isinstance(tree, dict) else [("x", tree)]:
        if isinstance(value, dict) and rng.random() < 0.9:
            lines += [f"[{json.dumps(key)}]"]
            lines += [f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()]
        else:
            lines.insert(0, f"{json.dumps(key)} = {toml(value)}")
    if rng.random() < 0.3:
        rng.shuffle(lines)
    return "\n".join(lines).encode(errors="surrogatepass")


def toml(value: Any) -> str:
    return '""' if value is None else str(toml_value(value))


def as_lines(rows: list[Any], rng: random.Random) -> bytes:
    rows = list(rows)
    for _ in range(rng.choice((1, 1, 3))):
        i = rng.randrange(len(rows))
        rows[i] = altered(rows[i], rng)
    return b"\n".join(as_json(row, rng) for row in rows)


def as_csv(rows: list[list[str]], rng: random.Random) -> bytes:
    rows = [list(row) for row in rows]
    for _ in range(rng.choice((1, 1, 3, 8))):
        row = rng.choice(rows)
        how, at = rng.randrange(4), rng.randrange(len(row) or 1)
        if how == 0:
            row[at:at] = [rng.choice(TEXTS)]
        elif how == 1:
            row[at : at + 1] = []
        elif how == 2:
            rows.append(list(row))
        elif row:
            row[at % len(row)] = rng.choice(TEXTS)
    text = io.StringIO()
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL))
    end = rng.choice(("\n", "\r\n", "\r"))
    csv.writer(text, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue().encode(rng.choice(("utf-8", "utf-8-sig", "utf-8")), "surrogatepass")
