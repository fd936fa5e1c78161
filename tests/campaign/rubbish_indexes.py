"""Malformed indexes: the card, the files of rows, products and vectors, and the golden samples."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa

from tests.campaign.malformed import BYTES, REMOVED, Malformed, json_at, of_file, of_json

CARD = "card.json"
PARTS = {"vectors": "main_index", "rows": "main_rows", "products": "main_products"}


def named(folder: Path, role: str) -> str:
    return str(json.loads((folder / CARD).read_text())["files"][role]["name"])


def part(role: str, change: Callable[[bytes], bytes], is_listed: bool = True) -> Callable[[Path], None]:
    """Change a file of the index; `is_listed`: the card has the size and checksum of the changed one."""

    def damage(folder: Path) -> None:
        path = folder / named(folder, role)
        content = change(path.read_bytes())
        path.write_bytes(content)
        if is_listed:
            card = json.loads((folder / CARD).read_text())
            card["files"][role] |= {"num_bytes": len(content), "crc32": crc32(content)}
            (folder / CARD).write_text(json.dumps(card))

    return damage


def instead(role: str, kind: str) -> Callable[[Path], Any]:
    return lambda folder: BYTES[kind](named(folder, role))(folder)


def golden(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = next(folder.glob("canaries-*"))
        path.write_bytes(change(path.read_bytes()))

    return damage


def array(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[bytes], bytes]:
    def edited(content: bytes) -> bytes:
        out = io.BytesIO()
        np.save(out, change(np.load(io.BytesIO(content)).copy()))
        return out.getvalue()

    return edited


def arrow(change: Callable[[pa.Table], pa.Table]) -> Callable[[bytes], bytes]:
    def edited(content: bytes) -> bytes:
        table = pa.ipc.open_file(io.BytesIO(content)).read_all()
        out = io.BytesIO()
        changed = change(table)
        with pa.ipc.new_file(out, changed.schema) as writer:
            writer.write_table(changed)
        return out.getvalue()

    return edited


def column(name: str, make: Callable[[pa.Table], Any]) -> Callable[[bytes], bytes]:
    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, name, make(table))

    return arrow(change)


NAN = float("nan")
CASES = [
    *of_file("the card", CARD),
    *of_json("the card", CARD),
    *(
        Malformed(f"{'.'.join(keys)} of the card is {said}", json_at(CARD, *keys, value=value), names)
        for keys, said, value, names in (
            (("kind",), "unknown", "lsh", ""),
            (("kind",), "of another index", "hnsw", ""),
            (("kind",), "missing", REMOVED, CARD),
            (("backend",), "unknown", "annoy", ""),
            (("backend",), "of a server", "milvus", ""),
            (("backend",), "a number", 7, CARD),
            (("fingerprint",), "of another model", "0" * 16, "model"),
            (("fingerprint",), "null", None, CARD),
            (("gallery",), "a list", [], CARD),
            (("dimension",), "of another index", 7, ""),
            (("dimension",), "negative", -16, ""),
            (("dimension",), "a text", "16", CARD),
            (("metric",), "unknown", "hamming", ""),
            (("num_products",), "a text", "8", CARD),
            (("num_products",), "negative", -8, CARD),
            (("num_rows",), "of another index", 10**9, "8 rows"),
            (("num_rows",), "one too few", 7, "8 rows"),
            (("num_deleted",), "negative", -1, CARD),
            (("num_deleted",), "true", True, CARD),
            (("recall",), "null", None, CARD),
            (("recall", "value"), "NaN", NAN, CARD),
            (("recall", "value"), "above 1", 7.5, CARD),
            (("recall", "k"), "missing", REMOVED, CARD),
            (("settings",), "null", None, CARD),
            (("settings", "more"), "there", 1, CARD),
            (("files",), "a list", [], CARD),
            (("files",), "empty", {}, ""),
            (("files", "main_rows"), "missing", REMOVED, "main_rows"),
            (("files", "main_rows", "name"), "outside", "../card.json", CARD),
            (("files", "main_rows", "name"), "absolute", "/etc/passwd", CARD),
            (("files", "main_rows", "name"), "the card itself", CARD, ""),
            (("files", "main_rows", "num_bytes"), "one too few", 159, "main_rows"),
            (("files", "main_rows", "crc32"), "wrong", 1, "main_rows"),
            (("files", "main_rows", "crc32"), "null", None, CARD),
            (("extra",), "null", None, CARD),
            (("extra", "catalogues"), "a number", 7, CARD),
            (("extra", "facets"), "a list", [], CARD),
            (("extra", "canaries"), "outside", "../x", "canaries"),
            (("extra", "canaries"), "a number", 7, CARD),
            (("created",), "a number", 7, CARD),
            (("more",), "there", 1, CARD),
        )
    ),
    *(
        Malformed(f"the file of {label} is {kind}", instead(role, kind), role)
        for label, role in PARTS.items()
        for kind in BYTES
    ),
    *(
        Malformed(f"{said}, as the card says", part(role, change), names)
        for said, role, change, names in (
            ("vectors of text", "main_index", lambda data: b"x" * len(data), "main_index"),
            ("vectors of another class", "main_index", lambda data: b"IHNf" + data[4:], "main_index"),
            ("vectors of 2**40 rows", "main_index", lambda data: data[:8] + (2**40).to_bytes(8, "little") + data[16:], "main_index"),
            ("vectors without the last", "main_index", lambda data: data[:-64], "main_index"),
            ("rows of text", "main_rows", lambda data: b"x" * len(data), "main_rows"),
            ("rows of floats", "main_rows", array(lambda rows: rows.astype(np.float32)), ""),
            ("rows of 64 bits", "main_rows", array(lambda rows: rows.astype(np.int64)), ""),
            ("rows of products that there are not", "main_rows", array(lambda rows: rows + 100), ""),
            ("rows of negative products", "main_rows", array(lambda rows: rows - 1), ""),
            ("one row less", "main_rows", array(lambda rows: rows[:-1]), ""),
            ("rows in two dimensions", "main_rows", array(lambda rows: rows[:, None]), ""),
            ("products of text", "main_products", lambda data: b"x" * len(data), "main_products"),
            ("products cut off", "main_products", lambda data: data[:-200], "main_products"),
            ("no products", "main_products", arrow(lambda table: table.slice(0, 0)), ""),
            ("products without ids", "main_products", arrow(lambda table: table.drop_columns(["product_id"])), "main_products"),
            ("products with ids of numbers", "main_products", column("product_id", lambda table: pa.array(range(len(table)))), "main_products"),
            ("products with ids that are missing", "main_products", column("product_id", lambda table: pa.array([None] * len(table), pa.large_string())), "main_products"),
            ("products in another order", "main_products", arrow(lambda table: table.take(list(range(len(table)))[::-1])), "main_products"),
            ("a product twice", "main_products", column("product_id", lambda table: pa.array(["a"] * len(table), pa.large_string())), "main_products"),
        )
    ),
    Malformed("golden samples that are empty", golden(lambda data: b""), "canaries"),
    Malformed("golden samples cut off", golden(lambda data: data[:-100]), "canaries"),
    Malformed("golden samples of text", golden(lambda data: b"x" * len(data)), "canaries"),
    Malformed("golden samples with a header of 2**60 bytes", golden(lambda data: b"\xff" * 7 + b"\x0f" + data[8:]), "canaries"),
    Malformed("golden samples of another model", golden(lambda data: data[:-8] + bytes(8)), "golden samples"),
    Malformed("golden samples that are missing", lambda folder: next(folder.glob("canaries-*")).unlink(), "canaries"),
]  # fmt: skip
