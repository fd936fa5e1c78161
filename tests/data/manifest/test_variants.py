"""A table in every way that people write it reads like the plain one, or says in one line which key reads it."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import logging
import lzma
import re
import shlex
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from mim_lightning.config import build, compose
from mim_lightning.data.manifest import decoding, formats
from mim_lightning.data.manifest.manifest import Manifest, ManifestSource
from mim_lightning.data.manifest.rows import RowIssue
from mim_lightning.data.manifest.table import open_table

PRODUCTS = [
    {"product_id": "0012", "image": "a.jpg|b.jpg", "title": "Café “au lait”; 3 €", "price": "5", "brand": 'a "b", c'},
    {"product_id": "7", "image": "c.jpg", "title": "Two\nlines, and\ta tab", "price": "", "brand": "Ünlü"},
    {"product_id": "x-9", "image": "", "title": "Gift card | voucher", "price": "7", "brand": ""},
]
QUERIES = [
    {"split": "train", "image": "q.jpg", "product_id": "7|0012", "text": "größer"},
    {"split": "val", "image": "", "product_id": "x-9", "text": "plain"},
]
COLUMNS = {"queries": {"text": "text"}}


def pack_zip(data: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("export/products.csv", data)
        archive.writestr("__MACOSX/export/._products.csv", b"\0\5\x16\7")
    return out.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".BZ2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
    ".zip": pack_zip,
}
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252")
DELIMITERS = (",", ";", "\t", "|")
HEADERS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "upper": str.upper,
    "padded": lambda name: f" {name}  ",
    "words": lambda name: name.replace("_", " ").title(),
}


def delimited(
    rows: list[dict[str, str]], delimiter: str = ",", header: Callable[[str], str] = str, end: str = "\n"
) -> str:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator=end)
    writer.writerow({name: header(name) for name in rows[0]})
    writer.writerows(rows)
    return out.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, content: str | bytes, encoding: str = "utf-8") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
        return path

    return write


Write = Callable[..., Path]


def read(products: Path, queries: Path | None = None, **options: Any) -> Manifest:
    return ManifestSource(str(products), str(queries) if queries else None, **options).read(products.parent)


def facts(manifest: Manifest) -> list[tuple[Any, ...]]:
    """Return what the tables say, with the names of further columns as a person takes them to be the same."""
    products = [
        (p.product_id, p.images, p.title, {name.strip().lower(): value for name, value in p.metadata.items()})
        for p in manifest.products.values()
    ]
    return [*products, *((q.split, q.image, q.text, q.target_ids) for q in manifest.queries)]


@pytest.fixture
def plain(write: Write) -> list[tuple[Any, ...]]:
    return facts(read(write("plain.csv", delimited(PRODUCTS)), write("plain_queries.csv", delimited(QUERIES))))


def test_the_plain_table_is_what_was_written(plain: list[tuple[Any, ...]], tmp_path: Path) -> None:
    brand = {"price": "5", "brand": 'a "b", c'}
    assert plain[0] == ("0012", (tmp_path / "a.jpg", tmp_path / "b.jpg"), "Café “au lait”; 3 €", brand)
    assert plain[1][2:] == ("Two\nlines, and\ta tab", {"brand": "Ünlü"})
    assert plain[3] == ("train", tmp_path / "q.jpg", "größer", ("7", "0012"))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_way_to_write_a_table(write: Write, plain: list[tuple[Any, ...]], encoding: str, packed: str) -> None:
    """Any three of encoding, compression, header and delimiter meet."""
    shift = ENCODINGS.index(encoding) + list(PACKED).index(packed)
    for idx, (style, header) in enumerate(HEADERS.items()):
        delimiter, tables = DELIMITERS[(idx + shift) % len(DELIMITERS)], []
        for rows in (PRODUCTS, QUERIES):
            data = PACKED[packed](
                delimited(rows, delimiter, header, "\r\n").replace("Two\r\n", "Two\n").encode(encoding)
            )
            tables.append(write(f"{style}-{len(rows)}.{'TSV' if delimiter == chr(9) else 'csv'}{packed}", data))
        if encoding == "cp1252":
            with pytest.raises(
                ValueError, match=r"row 2, column '.*': not UTF-8; data.source.encoding.products=cp1252 r"
            ):
                read(*tables)
            found = read(*tables, encoding="cp1252")
        else:
            found = read(*tables)
        assert facts(found) == plain, (style, delimiter)


def test_every_way_to_write_json_lines(write: Write, plain: list[tuple[Any, ...]]) -> None:
    for (ending, pack), encoding in itertools.product(PACKED.items(), ("utf-8-sig", "utf-16", "utf-16-be")):
        if ending == ".zip":
            continue
        tables = []
        for rows in (PRODUCTS, QUERIES):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
            tables.append(write(f"{encoding}-{len(rows)}.JSONL{ending}", pack(lines.encode(encoding))))
        assert facts(read(*tables)) == plain, (ending, encoding)


def test_the_suffix_need_not_match_the_compression(write: Write, plain: list[tuple[Any, ...]]) -> None:
    """A browser unpacks on the way, or a file is renamed."""
    queries = write("queries.csv", gzip.compress(delimited(QUERIES).encode()))
    assert facts(read(write("products.csv.gz", delimited(PRODUCTS)), queries)) == plain


def test_a_folder_of_packed_files_in_any_case(write: Write, tmp_path: Path, plain: list[tuple[Any, ...]]) -> None:
    (tmp_path / "products").mkdir()
    write("products/A.CSV", delimited(PRODUCTS[:1]))
    write("products/b.csv.gz", gzip.compress(delimited(PRODUCTS[1:2], "\t").encode()))
    table = pyarrow.Table.from_pylist(PRODUCTS[2:]).rename_columns(["Product_ID", " Image", "TITLE", "price", "brand"])
    pyarrow.parquet.write_table(table, tmp_path / "products" / "c.Parquet")
    root = str(tmp_path)
    assert facts(read(tmp_path / "products", tmp_path / "plain_queries.csv", image_root=root)) == plain


def test_excels_separator_line_and_empty_cells(write: Write, plain: list[tuple[Any, ...]]) -> None:
    """`sep=`, blank lines, a column without a name, rows of nothing but delimiters, and some behind a row."""
    lines = delimited(PRODUCTS, ";", lambda name: name.upper()).splitlines(keepends=True)
    body = "".join(line if "Two" in line else line.replace("\n", ";\n") for line in lines)
    queries = write("queries.csv", delimited(QUERIES, ";") + ";;;\n" * 3 + " ; ;\n\n\x1a")
    products = write("products.csv", "sep=;\n\n" + body + ";;;;;\n;;;;;\n")
    assert facts(read(products, queries)) == plain
    with pytest.raises(ValueError, match=r"products.csv, row 8, column 'product_id': empty"):
        read(write("products.csv", "sep=;\n\n" + body + ";;x;;;\n"))


def test_blanks_after_delimiters(write: Write) -> None:
    products = write("products.csv", 'product_id, image, title\n1, a.jpg, "Red, round"\n')
    assert read(products).products["1"].title == "Red, round"
    products = write("products.csv", 'product_id,image,title\n1,a.jpg, "Red" one\n')
    assert read(products).products["1"].title == '"Red" one'


def test_a_cell_may_be_long(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "word " * 60_000
    assert (
        read(write("products.csv", delimited([PRODUCTS[0] | {"title": long}]))).products["0012"].title == long.strip()
    )
    monkeypatch.setattr(formats, "MAX_CELL", 1000)
    with pytest.raises(
        ValueError, match=r"products.csv, row 2: a cell of more than 1,000 characters; is a closing quote"
    ):
        read(write("products.csv", delimited([PRODUCTS[0] | {"title": long}])))
    monkeypatch.setattr(decoding, "MAX_LINE", 5000)
    with pytest.raises(ValueError, match=r"products.jsonl.gz, row 2: a line of more than 5,000 characters"):
        read(write("products.jsonl.gz", gzip.compress(b'{"product_id": 1, "image": 2, "title": 3}\n' + b"x" * 10**6)))


def test_an_unclosed_quote_is_reported_where_it_starts(write: Write) -> None:
    body = 'product_id,image,title\n1,a,ok\n2,b,"open\n3,c,lost\n4,d,lost\n'
    faults: list[RowIssue] = []
    ManifestSource(str(write("products.csv", body)), None).read(Path(), faults.append)
    assert [str(fault).split("csv, ")[1] for fault in faults] == [
        "row 3: an unclosed quote begins here: one cell has the rest of the file"
    ]
    # an inch mark in a cell without quotes, beside one over two lines, ends
    body = 'product_id,image,title\n1,6" monitor,"two\nlines"\n2,b,last\n'
    assert [p.title for p in read(write("products.csv", body)).products.values()] == ["two\nlines", "last"]


def advised(message: str) -> str:
    """Return the key=value that an error names."""
    found = re.search(r"data\.source\.\S+=\S+", message)
    assert found is not None, message
    return found[0].rstrip(";,")


@pytest.mark.parametrize(
    ("encoding", "title", "expected"),
    [
        ("latin-1", "Crème brûlée", "data.source.encoding.products=cp1252 reads it as 'Crème brûlée'"),
        ("cp1252", "Mug 5 €", "data.source.encoding.products=cp1252 reads it as 'Mug 5 €'"),
        ("cp1251", "Кружка", "cp1251 as 'Кружка'"),
        ("gb18030", "红色杯子", "'红色杯子'"),
    ],
)
def test_the_encoding_that_was_found_is_named_and_reads(write: Write, encoding: str, title: str, expected: str) -> None:
    products = write("products.csv", f"product_id,image,title\n1,a.jpg,plain\n2,a.jpg,{title}\n", encoding)
    with pytest.raises(ValueError) as caught:
        read(products)
    message = str(caught.value)
    assert "products.csv, row 3, column 'title': not UTF-8; " in message and expected in message
    config = compose("prepare", ["data=manifest", f"data.source.products={products}", "data.source.queries=null"])
    assert build(config["data"]["source"]).describe().keys() & {"texts"} == set()
    words = advised(message).rsplit("=")[0] + f"={encoding}"
    config = compose(
        "prepare", ["data=manifest", f"data.source.products={products}", "data.source.queries=null", words]
    )
    source = build(config["data"]["source"])
    assert source.read(Path()).products["2"].title == title
    assert source.describe()["texts"] == {"products": {"encoding": encoding}}


def test_an_unreadable_table_reports_the_reason(write: Write) -> None:
    products = write("products.csv", "product_id,image,title\n1,a.jpg,Café\n", "cp1252")
    faults: list[RowIssue] = []
    with pytest.raises(ValueError, match=r"no product is valid; .*row 2, column 'title': not UTF-8; data.source.enc"):
        ManifestSource(str(products), None).read(Path(), faults.append)
    assert len(faults) == 1


def test_each_table_has_its_own_encoding_and_a_mark_goes_first(write: Write, plain: list[tuple[Any, ...]]) -> None:
    products = write("products.csv", delimited(PRODUCTS))
    queries = write("queries.csv", delimited(QUERIES), "latin-1")
    with pytest.raises(ValueError, match=r"data.source.encoding.queries=cp1252 reads it as 'größer'"):
        read(products, queries)
    assert facts(read(products, queries, encoding={"queries": "latin-1"})) == plain
    products = write("products.csv", delimited(PRODUCTS), "utf-8-sig")
    assert facts(read(products, queries, encoding="latin-1")) == plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoding": "utf-99"}, "data.source.encoding.products=utf-99: unknown"),
        ({"encoding": "base64"}, "data.source.encoding.products=base64: unknown"),
        ({"encoding": {"query": "utf-8"}}, "data.source.encoding: no table 'query'; did you mean queries?"),
        ({"delimiter": "::"}, "data.source.delimiter.products=::: give one character, or tab, comma, semicolon, pipe"),
        ({"delimiter": ""}, "data.source.delimiter.products=: give one character"),
        ({"delimiter": {"queries": '"'}}, 'data.source.delimiter.queries=": give one character'),
    ],
)
def test_invalid_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ManifestSource("products.csv", None, **options)


def test_the_delimiter_may_be_given(write: Write) -> None:
    products = write("products.csv", "product_id~image~title\n1~a.jpg~Mug\n")
    with pytest.raises(
        ValueError, match=r"missing column 'product_id', it has \['product_id~image~title'\].*data.source"
    ):
        read(products)
    assert read(products, delimiter="~").products["1"].title == "Mug"
    products = write("products.csv", "a;product_id|image|title\nb;1|a.jpg|Mug\n")
    assert read(products, delimiter="pipe", columns={"products": {"product_id": "a;product_id"}}).products.keys() == {
        "b;1"
    }


def test_ambiguous_column_names_are_not_guessed(write: Write) -> None:
    products = write("products.csv", "Product ID,PRODUCT_ID,image,title\n1,2,a.jpg,Mug\n")
    with pytest.raises(
        ValueError, match="'Product ID' and 'PRODUCT_ID' could both be 'product_id'; choose by"
    ) as caught:
        read(products)
    key = advised(str(caught.value)).removeprefix("data.source.columns.products.").split("=")[0]
    assert read(products, columns={"products": {key: "PRODUCT_ID"}}).products.keys() == {"2"}
    products = write("products.csv", "Title,product_id,image,title\nother,2,a.jpg,Mug\n")
    assert read(products).products["2"].title == "Mug" and read(products).products["2"].metadata == {"Title": "other"}


@pytest.mark.parametrize(
    ("column", "table"), [("productnr", "products"), ("query image", "queries"), ("bild", "queries")]
)
def test_a_column_of_a_similar_name_is_offered_by_the_word_to_type(write: Write, column: str, table: str) -> None:
    header = {"products": ["product_id", "image", "title"], "queries": ["split", "image", "product_id"]}
    ours = "product_id" if table == "products" else "image"
    header[table][header[table].index(ours)] = column
    products = write("products.csv", ",".join(header["products"]) + "\n1,a.jpg,Mug\n")
    queries = write("queries.csv", ",".join(header["queries"]) + "\ntrain,a.jpg,1\n")
    words = ["data=manifest", f"data.source.products={products}", f"data.source.queries={queries}"]

    def read_composed(*further: str) -> Manifest:
        return build(compose("prepare", [*words, *further])["data"]["source"]).read(Path())

    with pytest.raises(ValueError, match=rf"{table}.csv: missing column '{ours}', it has .*'{column}'") as caught:
        read_composed()
    key = f"data.source.columns.{table}.{ours}"
    if column == "bild":
        assert f"; name another with {key}=<column>, or null if there is none" in str(caught.value)
    else:
        word = re.search(rf"did you mean '{column}'\? Then give (.*), or null if there is none", str(caught.value))
        assert word is not None
        assert list(read_composed(*shlex.split(word[1])).products) == ["1"]


def test_assumptions_about_a_table_are_reported_once(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    products = write("products.csv", "Product ID,image,title,price,price\n1,a.jpg,Mug,1,2\n", "utf-16-le")
    with caplog.at_level(logging.WARNING):
        assert read(products).products["1"].metadata == {"price": "2"}
        read(products)
    assert [record.getMessage() for record in caplog.records] == [
        f"{products}: read as utf-16-le, without a byte order mark, column 'Product ID' is read as 'product_id', "
        "the last of 2 columns 'price' is read"
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("products.xlsx", b"PK\3\4", "products.xlsx: an Excel workbook, save it as CSV"),
        (
            "products.csv.gz",
            gzip.compress(("product_id,image,title\n" + "".join(f"{i},a,b\n" for i in range(99))).encode())[:-20],
            "products.csv.gz: damaged or incomplete",
        ),
        ("products.csv.gz", b"\x1f\x8b\x08" + b"nonsense" * 9, "products.csv.gz: damaged or incomplete"),
        ("products.csv.bz2", bz2.compress(b"x" * 999)[:-9], "products.csv.bz2: damaged or incomplete"),
        ("products.csv.xz", lzma.compress(b"x" * 999)[:-9], "products.csv.xz: damaged or incomplete"),
        ("products.zip", b"PK\3\4 no archive", "products.zip: damaged or incomplete"),
        ("products.csv", b"", "products.csv: the table has no rows"),
        ("products.csv", b"\n\n", "products.csv: the table has no rows"),
        ("products.csv", b"product_id,image,title\n", "products.csv: the table has no rows"),
        ("products.csv", b"product_id,image,title\n1,a.jpg,M\0g\n", "products.csv, row 2, column .title.: .* NUL"),
        ("products.csv", b"\xff\xfep\0r\0o", "products.csv, row 1: not utf-16 \\(truncated data\\)"),
        ("products.parquet.gz", gzip.compress(b"PAR1"), "products.parquet.gz: a products table ends in"),
        ("products.json", b"[]", "products.json: a products table ends in .csv, .parquet or .jsonl"),
        ("products.jsonl", b"[" * 100_000, "products.jsonl, row 1: not readable as JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_no_table_is_one_line(write: Write, name: str, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read(write(name, content))
    assert "\n" not in str(caught.value)


def test_a_zip_file_of_several_tables_and_a_workbook_by_another_name(write: Write) -> None:
    for names, message in ((("a.csv", "b.csv"), "a zip file of 2 files"), (("xl/workbook.xml",), "an Excel workbook")):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in names:
                archive.writestr(name, "product_id,image,title\n")
        with pytest.raises(ValueError, match=message):
            read(write("products.csv", out.getvalue()))


def test_empty_cells_and_numbers_stored_as_floats(write: Write, tmp_path: Path) -> None:
    """pandas writes 7.0 where a column of whole numbers has a gap, and databases write NULL."""
    products = write(
        "products.csv", "product_id,image,title,brand\n7,NULL,Mug,nan\n8,a.jpg,<NA>,\\N\n9.5,a.jpg,Cup,x\n"
    )
    queries = write("queries.csv", "split,image,product_id\ntrain,q.jpg,7.0\nval,q.jpg,9.5|8.0\n")
    manifest = read(products, queries)
    assert manifest.products["7"].images == () and manifest.products["7"].metadata == {}
    assert manifest.products["8"].title is None
    assert [query.target_ids for query in manifest.queries] == [("7",), ("9.5", "8")]
    assert manifest.queries[0].reference_ids == ("7",)
    table = pyarrow.table({"product_id": [7.0, 8.0], "image": ["a", "b"], "title": ["x", "y"], "price": [5.0, None]})
    pyarrow.parquet.write_table(table, tmp_path / "products.parquet")
    found = read(tmp_path / "products.parquet").products
    assert list(found) == ["7", "8"] and repr(found["7"].metadata) == "{'price': 5}"


def test_rows_are_numbered_by_the_line_they_start_on(write: Write) -> None:
    body = 'sep=,\nproduct_id,image,title\n\n1,a.jpg,"two\nlines"\n,b.jpg,"no\nid"\n'
    with pytest.raises(ValueError, match=r"products.csv, row 6, column 'product_id': empty"):
        read(write("products.csv", body))


def test_a_named_pipe_or_device_is_no_table() -> None:
    with pytest.raises(ValueError, match=r"/dev/zero: no such file \(products table\)"):
        open_table(Path("/dev/zero"), "products")
