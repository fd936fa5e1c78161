"""Malformed prepared data: the index of a set, its shards, their byte indexes, columns and settings."""

from __future__ import annotations

import base64
import gzip
import io
import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.campaign.malformed import REMOVED, Malformed, cut, edit, flip, json_at, of_file, of_json, write

VAL = "queries/val"
INDEX, TAR, PLACES = f"{VAL}/index.json", f"{VAL}/000000.tar", f"{VAL}/000000.npy"
KEYS, SETTINGS = f"{VAL}/keys.npy", "settings.json"


class Touch:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("ran"),)


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    """Return an edit of the array in an .npy file."""

    def edited(content: bytes) -> bytes:
        out = io.BytesIO()
        np.save(out, change(np.load(io.BytesIO(content)).copy()), allow_pickle=True)
        return out.getvalue()

    return edited


def put(place: Any, value: int) -> Callable[[bytes], bytes]:
    def change(values: np.ndarray) -> np.ndarray:
        values[place] = value
        return values

    return array(change)


def header(text: bytes) -> Callable[[bytes], bytes]:
    return lambda content: b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content[128:]


def objects(values: np.ndarray) -> np.ndarray:
    found = np.empty(values.shape, dtype=object)
    found[:] = Touch()
    return found


def later(**changed: Any) -> Callable[[bytes], bytes]:
    """Return an edit of an index to one of a later version."""

    def edited(content: bytes) -> bytes:
        index = json.loads(content)
        index |= {"version": 3, "set_version": 2, "first": "", "segments": [[1, sum(index["sizes"])]]}
        return json.dumps({**index, "removed": steps([]), **changed}).encode()

    return edited


def steps(values: list[int]) -> str:
    return base64.b64encode(zlib.compress(np.array(values, "<i8").tobytes())).decode()


def with_bomb(content: bytes) -> bytes:
    """Return an index whose removed rows are zeros that fill 256 MB: packed here, for that takes a second."""
    return later(removed=base64.b64encode(zlib.compress(bytes(1 << 28))).decode())(content)


def other_shard(folder: Path) -> None:
    shutil.copy(folder / "queries/train/000000.tar", folder / TAR)


def shift_member(content: bytes) -> bytes:
    return content[:512] + b" " + content[512:]


CASES = [
    *of_file("the index", INDEX),
    *of_json("the index", INDEX),
    *(
        Malformed(f"{key} in the index: {said}", json_at(INDEX, key, value=value), names)
        for key, said, value, names in (
            ("version", "from the future", 99, INDEX),
            ("version", "a text", "2", INDEX),
            ("version", "missing", REMOVED, INDEX),
            ("sizes", "missing", REMOVED, INDEX),
            ("sizes", "a text", "8", INDEX),
            ("sizes", "negative", [-8], INDEX),
            ("sizes", "of 30 digits", [10**30], INDEX),
            ("sizes", "one too many", [9], VAL),
            ("sizes", "one too few", [7], VAL),
            ("sizes", "of two shards", [4, 4], INDEX),
            ("sizes", "of no shard", [], INDEX),
            ("sizes", "not a number", [float("nan")], INDEX),
            ("sizes", "nested", [[8]], INDEX),
            ("max_relevant", "missing", REMOVED, INDEX),
            ("max_relevant", "negative", -1, INDEX),
            ("max_relevant", "of 18 digits", 10**18, INDEX),
            ("bytes", "of another file", [1024], TAR),
            ("bytes", "missing", REMOVED, INDEX),
            ("crc32", "wrong", [1], TAR),
            ("crc32", "a fraction", [0.5], INDEX),
            ("crc32", "a text", ["x"], INDEX),
        )
    ),
    Malformed("removed rows that are no base64", edit(INDEX, later(removed="***")), VAL),
    Malformed("removed rows that are not compressed", edit(INDEX, later(removed="AAAA")), VAL),
    Malformed("removed rows beyond the set", edit(INDEX, later(removed=steps([10**6]))), VAL),
    Malformed("removed rows that descend", edit(INDEX, later(removed=steps([3, -1]))), VAL),
    Malformed(
        "removed rows that are a bomb",
        edit(INDEX, with_bomb),
        VAL,
    ),
    Malformed(
        "a pointer out of the data", write(INDEX, json.dumps({"version": 3, "changed": "../../../etc"}).encode()), VAL
    ),
    *of_file("a shard", TAR),
    Malformed("a shard without its end", cut(TAR, -20_000), TAR),
    Malformed("a shard with a byte more", edit(TAR, lambda content: content + b"\0"), TAR),
    Malformed("a shard with a changed header", flip(TAR, 0.0005), TAR),
    Malformed("a shard with a changed text", flip(TAR, 550 / 30720), TAR),
    Malformed("a shard with a changed image", flip(TAR, 1600 / 30720), TAR),
    Malformed("a shard that is compressed", edit(TAR, gzip.compress), TAR),
    Malformed("the shard of another set", other_shard, TAR),
    Malformed("a shard shifted by a byte", edit(TAR, shift_member), TAR),
    *of_file("a byte index", PLACES),
    Malformed("a byte index with another magic", edit(PLACES, lambda content: b"\x93NUMPX" + content[6:]), PLACES),
    Malformed(
        "a byte index from the future", edit(PLACES, lambda content: content[:6] + b"\x09\0" + content[8:]), PLACES
    ),
    Malformed("a byte index that is pickled", edit(PLACES, array(objects)), PLACES),
    Malformed(
        "a byte index of code", edit(PLACES, header(b"__import__('os').system('touch ran')".ljust(117) + b"\n")), PLACES
    ),
    Malformed(
        "a byte index of 2**40 samples",
        edit(
            PLACES,
            header(str({"descr": "<i8", "fortran_order": False, "shape": (2**40, 3, 2)}).encode().ljust(117) + b"\n"),
        ),
        PLACES,
    ),
    Malformed(
        "a byte index of a negative shape",
        edit(
            PLACES,
            header(str({"descr": "<i8", "fortran_order": False, "shape": (-8, 3, 2)}).encode().ljust(117) + b"\n"),
        ),
        PLACES,
    ),
    Malformed("a byte index of floats", edit(PLACES, array(lambda places: places.astype(float))), PLACES),
    Malformed("a byte index of 32 bits", edit(PLACES, array(lambda places: places.astype(np.int32))), PLACES),
    Malformed("a byte index in another order", edit(PLACES, array(np.asfortranarray)), PLACES),
    Malformed("a byte index of one sample less", edit(PLACES, array(lambda places: places[:-1])), PLACES),
    Malformed("offsets one too high", edit(PLACES, array(lambda places: places + np.array([1, 0]))), VAL),
    Malformed("offsets one block too low", edit(PLACES, array(lambda places: places - [512, 0])), VAL),
    Malformed("an offset that is negative", edit(PLACES, put((0, 0, 0), -512)), VAL),
    Malformed("an offset beyond the shard", edit(PLACES, put((7, 0, 0), 10**12)), VAL),
    Malformed("an offset of 2**63 - 1", edit(PLACES, put((0, 0, 0), 2**63 - 1)), VAL),
    Malformed("a size of a terabyte", edit(PLACES, put((3, 0, 1), 2**40)), VAL),
    Malformed("a size that is negative", edit(PLACES, put((3, 0, 1), -1)), VAL),
    Malformed("a size one too small", edit(PLACES, array(lambda places: places - [0, 1])), VAL),
    Malformed(
        "ranges that overlap", edit(PLACES, array(lambda places: np.broadcast_to(places[:1], places.shape))), VAL
    ),
    Malformed("ranges in another order", edit(PLACES, array(lambda places: places[::-1])), VAL),
    Malformed("no sample anywhere", edit(PLACES, array(np.zeros_like)), VAL),
    *of_file("a column", KEYS, left_out=("a link to itself",)),
    Malformed("a column that is pickled", edit(KEYS, array(objects)), KEYS),
    Malformed("a column of floats", edit(KEYS, array(lambda keys: keys.astype(float))), KEYS),
    Malformed("a column of one value more", edit(KEYS, array(lambda keys: np.append(keys, 1))), KEYS),
    Malformed("a column of two dimensions", edit(KEYS, array(lambda keys: keys[:, None])), KEYS),
    Malformed("a column of other keys", edit(KEYS, array(lambda keys: keys[::-1])), VAL),
    *of_file("the settings", SETTINGS, left_out=("missing", "a link to itself")),
    Malformed("the settings are missing", lambda folder: (folder / SETTINGS).unlink(), "no prepared data"),
    *of_json("the settings", SETTINGS, left_out=("an empty object",)),
    *(
        Malformed(f"{said} of the settings", json_at(SETTINGS, *keys, value=value), SETTINGS)
        for said, keys, value in (
            ("versions that are a text", ("versions",), "x"),
            ("versions without entries", ("versions",), []),
            ("versions of nothing", ("versions",), [{}]),
            ("versions of numbers", ("versions",), [1, 2]),
            ("a version that is a text", ("versions",), [{"version": "two", "sets": {}, "content": {}}]),
            ("a version without its catalog", ("versions",), [{"version": 2, "sets": {}, "content": {}}]),
        )
    ),
]
