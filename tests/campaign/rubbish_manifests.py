"""Malformed tables of products and queries, each with one thing wrong."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from tests.campaign.malformed import Malformed

PRODUCTS = b"product_id,image,title,category\np0,shop0.jpg,red disc,disc\np1,shop1.jpg,green box,box\np2,shop2.jpg,blue bar,bar\n"
QUERIES = (
    b"split,image,text,product_id\ntrain,street0.jpg,red,p0\ntrain,street1.jpg,green,p1\nval,street2.jpg,blue,p2\n"
)
ROWS = [
    {"product_id": f"p{row}", "image": f"shop{row}.jpg", "title": title, "category": title.split()[1]}
    for row, title in enumerate(("red disc", "green box", "blue bar"))
]
TITLES = {str(row["product_id"]): str(row["title"]) for row in ROWS}
TEXTS = [("train", "red", "p0"), ("train", "green", "p1"), ("val", "blue", "p2")]
VALID = (TITLES, TEXTS)  # the meaning of both tables


def titled(title: str, product_id: str = "p0") -> tuple[Any, Any]:
    return {**TITLES, product_id: title}, TEXTS


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/").replace("_csv", ".csv"), data)
    return out.getvalue()


def encrypted() -> bytes:
    data = bytearray(zipped(products_csv=PRODUCTS))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    return bytes(data)


def parquet(rows: Any = None, **options: Any) -> bytes:
    out = io.BytesIO()
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(ROWS if rows is None else rows)
    pa.parquet.write_table(table, out, **options)
    return out.getvalue()


def columns(**changed: Any) -> pa.Table:
    table = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    return pa.table(table | changed)


def damaged_page() -> bytes:
    data = bytearray(parquet(compression="zstd"))
    data[4:64] = bytes(60)
    return bytes(data)


def jsonl(*rows: Any) -> bytes:
    return b"".join((row if isinstance(row, bytes) else json.dumps(row).encode()) + b"\n" for row in rows)


def edit(old: bytes, new: bytes, table: bytes = PRODUCTS) -> bytes:
    assert old in table
    return table.replace(old, new, 1)


def query(old: bytes, new: bytes) -> bytes:
    return edit(old, new, QUERIES)


def as_bomb(path: Path) -> None:
    path.write_bytes(gzip.compress(b"x" * (1 << 27), 1))


def as_folder(path: Path) -> None:
    path.mkdir()


def as_link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def with_column(name: str, value: str) -> bytes:
    """Return the queries with a column more, which is 1 except in the second row."""
    head, *rows = QUERIES.decode().splitlines()
    cells = "1", value, "1"
    return "\n".join([f"{head},{name}", *(f"{row},{cell}" for row, cell in zip(rows, cells, strict=True)), ""]).encode()


LONG = "x" * 300
# what is wrong, the file, its content (or how it is made), what a refusal names (the file by default), the meaning
_TABLES: list[tuple[str, str, bytes | Callable[[Path], Any], str, Any]] = [
    # encodings
    ("title in cp1252", "products.csv", edit(b"red disc", b"caf\xe9"), "row 2", None),
    ("title in gb18030", "products.csv", edit(b"red disc", "红色圆盘".encode("gb18030")), "row 2", None),
    ("overlong UTF-8", "products.csv", edit(b"red disc", b"red\xc0\xafdisc"), "row 2", None),
    ("surrogate in UTF-8", "products.csv", edit(b"red disc", b"red\xed\xa0\x80"), "row 2", None),
    ("character cut off at the end of the file", "products.csv", PRODUCTS[:-1] + b"\xe2\x82", "row 4", None),
    ("header in cp1252", "products.csv", edit(b"category", b"cat\xe9gorie"), "", None),
    ("UTF-8 with a byte order mark", "products.csv", b"\xef\xbb\xbf" + PRODUCTS, "", VALID),
    ("UTF-16 with a byte order mark", "products.csv", PRODUCTS.decode().encode("utf-16"), "", VALID),
    ("UTF-16 without a byte order mark", "products.csv", PRODUCTS.decode().encode("utf-16-le"), "", VALID),
    ("UTF-32 with a byte order mark", "products.csv", PRODUCTS.decode().encode("utf-32"), "", VALID),
    ("UTF-16 with half a character", "products.csv", PRODUCTS.decode().encode("utf-16")[:-1], "", None),
    ("byte order mark within the file", "products.csv", edit(b"p1,", b"\xef\xbb\xbfp1,"), "", VALID),
    ("NUL in a cell", "products.csv", edit(b"red disc", b"red\0disc"), "row 2", None),
    ("NUL in the header", "products.csv", edit(b"title", b"ti\0tle"), "", None),
    ("file of NULs", "products.csv", bytes(4096), "", None),
    # shape of CSV
    ("empty file", "products.csv", b"", "", None),
    ("header alone", "products.csv", PRODUCTS.split(b"\n")[0] + b"\n", "", None),
    ("blank lines alone", "products.csv", b"\n\n  \n\n", "", None),
    ("header of empty cells", "products.csv", edit(b"product_id,image,title,category", b",,,"), "", None),
    ("no column product_id", "products.csv", edit(b"product_id", b"number"), "product_id", None),
    ("no column image", "products.csv", edit(b"image", b"photo"), "image", None),
    ("no column split", "queries.csv", query(b"split", b"part"), "split", None),
    ("column product_id twice", "products.csv", edit(b"category", b"product_id"), "product_id", None),
    ("columns that differ in case", "products.csv", edit(b"title,category", b"Title,TITLE"), "title", None),
    ("too few cells", "products.csv", edit(b"p1,shop1.jpg,green box,box", b"p1,shop1.jpg"), "row 3", None),
    ("too many cells", "products.csv", edit(b"green box,", b"green, box,"), "row 3", None),
    ("no header", "products.csv", PRODUCTS.split(b"\n", 1)[1], "", None),
    ("unclosed quote in the last row", "products.csv", edit(b"blue bar", b'"blue bar'), "row 4", None),
    ("unclosed quote in the first row", "products.csv", edit(b"red disc", b'"red disc'), "row 2", None),
    ("unclosed quote in the header", "products.csv", edit(b"title", b'"title'), "", None),
    ("text after a closing quote", "products.csv", edit(b"red disc", b'"red" disc'), "", titled("red disc")),
    ("quote within a cell", "products.csv", edit(b"red disc", b'red 5" disc'), "", titled('red 5" disc')),
    ("delimiter ;", "products.csv", PRODUCTS.replace(b",", b";"), "", VALID),
    ("delimiter :", "products.csv", PRODUCTS.replace(b",", b":"), "product_id", None),
    ("line ends of old Macs", "products.csv", PRODUCTS.replace(b"\n", b"\r"), "", VALID),
    ("two kinds of line ends", "products.csv", PRODUCTS.replace(b"\n", b"\r\n", 2), "", VALID),
    ("Ctrl-Z at the end", "products.csv", PRODUCTS + b"\x1a", "", VALID),
    ("no line end at the end", "products.csv", PRODUCTS[:-1], "", VALID),
    ("cell of 17 million characters", "products.csv", edit(b"red disc", b"x" * 17_000_000), "row 2", None),
    ("page of HTML", "products.csv", b"<!DOCTYPE html><html><body>404 not found</body></html>\n", "product_id", None),
    ("JSON in a CSV file", "products.csv", json.dumps(ROWS).encode(), "product_id", None),
    ("half of the header alone", "products.csv", PRODUCTS[:7], "product_id", None),
    ("file cut off within a row", "products.csv", PRODUCTS[:-10], "row 4", None),
    # compression
    ("zip of two tables", "products.csv", zipped(a_csv=PRODUCTS, b_csv=PRODUCTS), "2 files", None),
    ("zip of one table", "products.csv", zipped(products_csv=PRODUCTS), "", VALID),
    ("zip that names a file outside", "products.csv", zipped(**{".._products_csv": PRODUCTS}), "", None),
    ("zip cut off", "products.csv", zipped(products_csv=PRODUCTS)[:-30], "", None),
    ("zip that is encrypted", "products.csv", encrypted(), "", None),
    ("zip of nothing", "products.csv", zipped(), "", None),
    ("workbook", "products.csv", zipped(xl__workbook_csv=b"x"), "Excel", None),
    ("gzip cut off", "products.csv.gz", gzip.compress(PRODUCTS)[:-12], "", None),
    ("gzip with a wrong checksum", "products.csv.gz", gzip.compress(PRODUCTS)[:-8] + bytes(4) + gzip.compress(PRODUCTS)[-4:], "", None),
    ("gzip of nothing", "products.csv.gz", gzip.compress(b""), "", None),
    ("gzip that is none", "products.csv.gz", PRODUCTS, "", VALID),
    ("gzip bomb", "products.csv.gz", as_bomb, "characters", None),
    ("bzip2 cut off", "products.csv.bz2", bz2.compress(PRODUCTS)[:-4], "", None),
    ("xz with a changed byte", "products.csv.xz", lzma.compress(PRODUCTS)[:40] + b"\0\0" + lzma.compress(PRODUCTS)[42:], "", None),
    ("zstd cut off", "products.csv.zst", pa.compress(PRODUCTS, "zstd", asbytes=True)[:-6], "", None),
    # what stands in the place of the file
    ("empty folder", "products.csv", as_folder, "", None),
    ("pipe", "products.csv", os.mkfifo, "", None),
    ("device without an end", "products.csv", as_link("/dev/zero"), "", None),
    ("link to nothing", "products.csv", as_link("nothing"), "", None),
    ("link to itself", "products.csv", as_link("products.csv"), "", None),
    ("suffix of another kind", "products.txt", PRODUCTS, "products.txt", None),
    ("name that is too long", "products.csv", lambda path: None, "", None),
    # JSONL
    ("half a line", "products.jsonl", jsonl(*ROWS)[:-20], "row 3", None),
    ("an array on a line", "products.jsonl", jsonl(ROWS[0], [1, 2], ROWS[1], ROWS[2]), "row 2", None),
    ("a number on a line", "products.jsonl", jsonl(ROWS[0], 7, ROWS[1], ROWS[2]), "row 2", None),
    ("one array of all rows", "products.jsonl", json.dumps(ROWS).encode(), "row 1", None),
    ("two objects on a line", "products.jsonl", jsonl(json.dumps(ROWS[0]).encode() * 2, *ROWS[1:]), "row 1", None),
    ("nested 100,000 deep", "products.jsonl", jsonl(*ROWS, b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "row 4", None),
    ("lone surrogate", "products.jsonl", jsonl({**ROWS[0], "title": "\ud800"}, *ROWS[1:]), "row 1", None),
    ("integer of 5,000 digits", "products.jsonl", jsonl(b'{"product_id": ' + b"9" * 5000 + b"}", *ROWS), "row 1", None),
    ("object without keys", "products.jsonl", jsonl({}, *ROWS), "row 1", None),
    ("id that is null", "products.jsonl", jsonl({**ROWS[0], "product_id": None}, *ROWS), "row 1", None),
    ("id that is NaN", "products.jsonl", jsonl({**ROWS[0], "product_id": float("nan")}, *ROWS), "row 1", None),
    ("id that is an object", "products.jsonl", jsonl({**ROWS[0], "product_id": {"a": 1}}, *ROWS), "row 1", None),
    ("title that is a list", "products.jsonl", jsonl({**ROWS[0], "title": ["red", "disc"]}, *ROWS[1:]), "row 1", None),
    ("image that is an object", "products.jsonl", jsonl({**ROWS[0], "image": {"url": "x"}}, *ROWS[1:]), "row 1", None),
    ("image that is a number", "products.jsonl", jsonl({**ROWS[0], "image": 7}, *ROWS[1:]), "row 1", None),
    ("key twice", "products.jsonl", jsonl(b'{"product_id": "p9", ' + json.dumps(ROWS[0]).encode()[1:], *ROWS[1:]), "", VALID),
    ("comment", "products.jsonl", b"// products\n" + jsonl(*ROWS), "row 1", None),
    # Parquet
    ("Parquet without its footer", "products.parquet", parquet()[:-40], "", None),
    ("Parquet of 8 bytes", "products.parquet", b"PAR1PAR1", "", None),
    ("Parquet of nothing", "products.parquet", b"", "", None),
    ("Parquet with another magic", "products.parquet", b"XXXX" + parquet()[4:-4] + b"XXXX", "", None),
    ("Parquet with a footer of 4 GB", "products.parquet", parquet()[:-8] + struct.pack("<I", 2**32 - 1) + b"PAR1", "", None),
    ("Parquet with a damaged page", "products.parquet", damaged_page(), "", None),
    ("CSV called Parquet", "products.parquet", PRODUCTS, "", None),
    ("Parquet without a column", "products.parquet", parquet(columns().drop(["title"])), "title", None),
    ("Parquet without rows", "products.parquet", parquet(columns().slice(0, 0)), "no rows", None),
    ("ids of structs", "products.parquet", parquet(columns(product_id=[{"a": 1}] * 3)), "row", None),
    ("ids of bytes that are no text", "products.parquet", parquet(columns(product_id=[b"\xff", b"\xfe", b"\xfd"])), "", None),
    ("ids that are missing", "products.parquet", parquet(columns(product_id=[None, "p1", "p2"])), "row 1", None),
    ("ids of floats", "products.parquet", parquet(columns(product_id=[0.5, 1.5, float("nan")])), "row 3", None),
    ("titles of bytes that are no text", "products.parquet", parquet(columns(title=[b"\xff", b"b", b"c"])), "", None),
    ("images of bytes that are no images", "products.parquet", parquet(columns(image=[b"x", b"y", b"z"])), "", None),
    ("images that are missing", "products.parquet", parquet(columns(image=pa.array([None] * 3, pa.binary()))), "", VALID),
    # rows
    ("empty id", "products.csv", edit(b"\np1,", b"\n,"), "row 3", None),
    ("id twice", "products.csv", edit(b"\np1,", b"\np0,"), "row 3", None),
    ("id that is null in words", "products.csv", edit(b"\np1,", b"\nNULL,"), "row 3", None),
    ("neither image nor title", "products.csv", edit(b"shop1.jpg,green box", b","), "row 3", None),
    ("title of control characters", "products.csv", edit(b"red disc", b"red\x1b[31mdisc"), "", titled("red\x1b[31mdisc")),
    ("title that turns the text", "products.csv", edit(b"red disc", "red\u202edisc".encode()), "", titled("red\u202edisc")),
    ("title that is a formula", "products.csv", edit(b"red disc", b"=cmd|x!A1"), "", titled("=cmd|x!A1")),
    ("title of a million characters", "products.csv", edit(b"red disc", b"x" * 1_000_000), "", titled("x" * 1_000_000)),
    ("unknown product", "queries.csv", query(b",p1\n", b",p9\n"), "p9", None),
    ("empty product", "queries.csv", query(b",p1\n", b",\n"), "row 3", None),
    ("empty split", "queries.csv", query(b"\ntrain,street1", b"\n,street1"), "row 3", None),
    ("split that leads out", "queries.csv", query(b"\nval,", b"\n../val,"), "row 4", None),
    ("split of dots", "queries.csv", query(b"\nval,", b"\n..,"), "row 4", None),
    ("split that is absolute", "queries.csv", query(b"\nval,", b"\n/tmp/val,"), "row 4", None),
    ("split of 300 characters", "queries.csv", query(b"\nval,", f"\n{LONG},".encode()), "row 4", None),
    ("split with a line end", "queries.csv", query(b"\nval,", b'\n"v\nal",'), "row 4", None),
    ("neither image nor text", "queries.csv", query(b"street1.jpg,green", b","), "row 3", None),
    ("two images of a query", "queries.csv", query(b"street1.jpg", b"street1.jpg|street2.jpg"), "row 3", None),
    *(
        (f"{column} {value}" if len(value) < 9 else f"{column} of {len(value)} digits", "queries.csv", with_column(column, value), "row 3", None)
        for column, values in (
            ("grade", ("-1", "x", "1|2", "0.5", "²", "9" * 400, "9" * 5000)),
            ("weight", ("inf", "0", "-1", "x", '"1,5"', "1e999", "1e-999")),
        )
        for value in values
    ),
    ("grade and weight in words for nothing", "queries.csv", QUERIES.replace(b"product_id\n", b"product_id,grade,weight\n")
        .replace(b",p0\n", b",p0,1,1\n").replace(b",p1\n", b",p1,NaN,null\n").replace(b",p2\n", b",p2,,\n"), "", VALID),
    ("all grades are 0", "queries.csv", QUERIES.replace(b"product_id\n", b"product_id,grade\n").replace(b",p0\n", b",p0,1\n")
        .replace(b",p1\n", b",p1,0\n").replace(b",p2\n", b",p2,1\n"), "row 3", None),
    ("id of a query twice", "queries.csv", b"query_id,split,image,text,product_id\nq,train,street0.jpg,red,p0\nq,val,street2.jpg,blue,p2\n", "row 3", None),
    # images of rows
    ("image that is missing", "products.csv", edit(b"shop1.jpg", b"nothing.jpg"), "row 3", None),
    ("image that is a folder", "products.csv", edit(b"shop1.jpg", b"."), "row 3", None),
    ("image that is a text", "products.csv", edit(b"shop1.jpg", b"/etc/hostname"), "row 3", None),
    ("image that leads out", "products.csv", edit(b"shop1.jpg", b"../../../../../../etc/passwd"), "row 3", None),
    ("image that is a device", "products.csv", edit(b"shop1.jpg", b"/dev/zero"), "row 3", None),
    ("image that is the terminal", "products.csv", edit(b"shop1.jpg", b"/dev/tty"), "row 3", None),
    ("image without a size", "products.csv", edit(b"shop1.jpg", b"/proc/kmsg"), "row 3", None),
    ("image path of 5,000 characters", "products.csv", edit(b"shop1.jpg", b"x" * 5000), "row 3", None),
    ("image at a private address", "products.csv", edit(b"shop1.jpg", b"http://127.0.0.1:9/x.jpg"), "row 3", None),
    ("image at an address of metadata", "products.csv", edit(b"shop1.jpg", b"http://169.254.169.254/x"), "row 3", None),
    ("image URL without a host", "products.csv", edit(b"shop1.jpg", b"http:///x.jpg"), "row 3", None),
    ("image URL with a port of letters", "products.csv", edit(b"shop1.jpg", b"http://a:b/x.jpg"), "row 3", None),
    ("image URL of an open bracket", "products.csv", edit(b"shop1.jpg", b"http://[::1/x.jpg"), "row 3", None),
    ("image URL of another scheme", "products.csv", edit(b"shop1.jpg", b"gopher://a/x.jpg"), "row 3", None),
    ("image URL of a file", "products.csv", edit(b"shop1.jpg", b"file:///etc/passwd"), "row 3", None),
    ("image URL of data", "products.csv", edit(b"shop1.jpg", b"data:image/png;base64;AAAA"), "row 3", None),
]  # fmt: skip


def _as_case(wrong: str, name: str, content: bytes | Callable[[Path], Any], names: str, means: Any) -> Malformed:
    def damage(folder: Path) -> None:
        (folder / f"{name.split('.')[0]}.csv").unlink()
        content(folder / name) if callable(content) else (folder / name).write_bytes(content)

    return Malformed(wrong, damage, names or name, means)


CASES = [_as_case(*table) for table in _TABLES]
