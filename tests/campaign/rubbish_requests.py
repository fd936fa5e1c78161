"""Malformed HTTP requests: what a client may send to the service instead of a request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tests.campaign.rubbish_images import JPEG, PNG, png_header
from tests.data.images.hostile import png
from tests.search.service.color_shop import square

LONG, NESTED = "x" * 300, "[" * 5000
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True)
class BadRequest:
    """A request to the application, with what is wrong."""

    wrong: str
    method: str
    path: str
    statuses: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


def searched(wrong: str, *statuses: int, **data: Any) -> BadRequest:
    return BadRequest(wrong, "POST", "/search", statuses or (400, 422), {"data": data})


def pictured(wrong: str, *statuses: int, images: Any, **data: Any) -> BadRequest:
    files = [("image", (f"{number}.jpg", image)) for number, image in enumerate(images)]
    return BadRequest(wrong, "POST", "/search", statuses or (415,), {"files": files, "data": data})


def raw(wrong: str, content: bytes, kind: str | None, *statuses: int, path: str = "/search") -> BadRequest:
    headers = {} if kind is None else {"content-type": kind}
    return BadRequest(wrong, "POST", path, statuses or (400, 422), {"content": content, "headers": headers})


def multipart(*lines: bytes, end: bytes = b"--b--\r\n") -> bytes:
    return b"".join(b"--b\r\n" + line + b"\r\n" for line in lines) + end


TEXT = b'content-disposition: form-data; name="text"\r\n\r\nred'
MULTI = "multipart/form-data; boundary=b"
REQUESTS = [
    # the query
    searched("nothing to search by", text=""),
    searched("blanks to search by", text="   "),
    searched("text too long", 413, text=LONG),
    searched("k that is a text", text="red", k="many"),
    searched("k of 0", text="red", k="0"),
    searched("negative k", text="red", k="-1"),
    searched("k too large", text="red", k="1000"),
    searched("k of 5,000 digits", text="red", k="9" * 5000),
    searched("k that is a fraction", text="red", k="1.5"),
    searched("k that is NaN", text="red", k="NaN"),
    searched("unknown product", 404, 422, like="nothing"),
    searched("product id of 10,000 characters", 404, 413, 422, like="x" * 10_000),
    searched("product id with NUL", 404, 422, like="a\0b"),
    searched("unknown arm", 404, 422, text="red", arm="nothing"),
    *(
        searched(f"{key} that is {said}", *((413,) if "long" in said else (400, 422)), text="red", **{key: value})
        for key in ("weights", "where", "fields")
        for said, value in (
            ("no JSON", "{"), ("an array", "[]"), ("a number", "7"), ("a text", '"x"'),
            ("nested 5,000 deep", NESTED), ("too long", '{"a": "' + "x" * 30_000 + '"}'),
            ("NaN", '{"image": NaN}'), ("a key twice", '{"image": 1, "image": 2}'),
            ("an integer of 5,000 digits", '{"image": ' + "9" * 5000 + "}"),
        )
    ),
    searched("weight that is a text", text="red", weights='{"text": "high"}'),
    searched("weight that is infinite", text="red", weights='{"text": 1e999}'),
    searched("weight that is true", text="red", weights='{"text": true}'),
    searched("weight of nothing", text="red", weights='{"nothing": 1}'),
    searched("weights that are all 0", text="red", weights='{"text": 0}'),
    searched("filter of an unknown column", text="red", where='{"nothing": 1}'),
    searched("filter of a number by a text", text="red", where='{"price": "cheap"}'),
    searched("filter of an unknown bound", text="red", where='{"price": {"about": 1}}'),
    searched("filter of nested objects", text="red", where='{"price": {"max": {"max": 1}}}'),
    searched("filter of no bound", text="red", where='{"price": {}}'),
    searched("filter with a lone surrogate", text="red", where='{"category": "\\ud800"}'),
    searched("field that is a number", text="red", fields='{"query_text": 7}'),
    # images
    pictured("image of nothing", images=[b""]),
    pictured("image of text", images=[b"not an image"]),
    pictured("image cut off", images=[JPEG[: len(JPEG) // 2]]),
    pictured("image too many", 413, images=[square("red")] * 3),
    pictured("image of too many pixels", 413, images=[png(400, 400)]),
    pictured("image of 40 million rows", 413, images=[png_header(1, 40_000_000)]),
    pictured("image of 2**31 pixels", 413, 415, images=[png_header(2**16, 2**15)]),
    pictured("image that is long and thin", 413, images=[png(5000, 1)]),
    pictured("one of two images damaged", images=[square("red"), PNG[:-200]]),
    BadRequest("image that is a path", "POST", "/search", (415, 422), {"data": {"image": "/etc/passwd"}}),
    BadRequest("image that is a URL", "POST", "/search", (415, 422), {"data": {"image": "http://169.254.169.254/"}}),
    BadRequest("text that is a file", "POST", "/search", (422,), {"files": {"text": ("a.txt", b"red")}}),
    # body and content type
    raw("no body", b"", None, 422),
    raw("body of JSON", b'{"text": "red"}', "application/json", 422),
    raw("form with a charset of its own", b"text=red&k=%ff", f"{FORM}; charset=utf-7", 422),
    raw("form with a charset that there is not", b"\xff\xfe", f"{FORM}; charset=nothing", 422),
    raw("form of 2,000 fields", b"&".join(b"a%d=1" % number for number in range(2000)), FORM, 400, 422),
    raw("form too large", b"text=" + b"x" * 200_000, FORM, 413),
    raw("multipart without a boundary", multipart(TEXT), "multipart/form-data"),
    raw("multipart of another boundary", multipart(TEXT), "multipart/form-data; boundary=c"),
    raw("multipart with an empty boundary", multipart(TEXT), "multipart/form-data; boundary="),
    raw("multipart with a boundary of 1,000 characters", multipart(TEXT), "multipart/form-data; boundary=" + "b" * 1000),
    raw("multipart that is cut off", multipart(TEXT, end=b"")[:-30], MULTI),
    raw("multipart without its end", multipart(b'content-disposition: form-data; name="nothing"\r\n\r\nx', end=b""), MULTI, 400, 422),
    raw("multipart without names", multipart(b"content-disposition: form-data\r\n\r\nred"), MULTI),
    raw("multipart without headers", multipart(b"\r\nred"), MULTI),
    raw("multipart of a header of 100,000 bytes", multipart(b"x: " + b"y" * 90_000 + b"\r\n\r\nred"), MULTI, 400, 413, 422),
    raw("multipart of 2,000 parts", multipart(*[b'content-disposition: form-data; name="a"\r\n\r\n1'] * 1500), MULTI, 400, 413, 422),
    raw("multipart of binary noise", bytes(range(256)) * 8, MULTI),
    # clicks
    raw("click that is no JSON", b"{", "application/json", 422, path="/click"),
    raw("click that is an array", b"[]", "application/json", 422, path="/click"),
    raw("click without a product", b'{"impression_id": "a"}', "application/json", 422, path="/click"),
    raw("click of numbers", b'{"impression_id": 1, "product_id": 2}', "application/json", 422, path="/click"),
    raw("click with a lone surrogate", b'{"impression_id": "\\ud800", "product_id": "a"}', "application/json", 404, 409, 422, path="/click"),
    raw("click nested 100,000 deep", b"[" * 90_000, "application/json", 400, 422, path="/click"),
    raw("click that is no UTF-8", b'{"impression_id": "\xff", "product_id": "a"}', "application/json", 400, 422, path="/click"),
    raw("click of an integer of 5,000 digits", b'{"impression_id": ' + b"9" * 5000 + b', "product_id": "a"}', "application/json", 400, 422, path="/click"),
    raw("click without an experiment", b'{"impression_id": "a", "product_id": "b"}', "application/json", 404, 409, 422, path="/click"),
    # paths and methods
    BadRequest("unknown path", "GET", "/nothing", (404,)),
    BadRequest("path that leads out", "GET", "/products/../../../../etc/passwd", (404,)),
    BadRequest("path that leads out in escapes", "GET", "/products/%2e%2e%2f%2e%2e%2fetc%2fpasswd/picture", (404,)),
    BadRequest("path with NUL", "GET", "/products/a%00b", (404, 422)),
    BadRequest("path that is no UTF-8", "GET", "/products/%ff%fe", (404, 422)),
    BadRequest("path of 5,000 characters", "GET", "/products/" + "x" * 5000, (404, 414)),
    BadRequest("product of an unknown arm", "GET", "/products/red-1?arm=nothing", (404, 422)),
    BadRequest("product with the arm twice", "GET", "/products/red-1?arm=default&arm=nothing", (404, 422)),
    BadRequest("search by GET", "GET", "/search?text=red", (404, 405)),
    BadRequest("health by POST", "POST", "/health", (405,)),
    BadRequest("unknown method", "BREW", "/search", (405,)),
    BadRequest("DELETE of a product", "DELETE", "/products/red-1", (405,)),
    BadRequest("length announced too large", "POST", "/search", (413,), {"content": b"text=red", "headers": {"content-type": FORM, "content-length": "9" * 30}}),
]  # fmt: skip


@dataclass(frozen=True)
class BadBytes:
    """What a client sends to the socket, and the statuses of the answer; 0: the connection is closed without one."""

    wrong: str
    parts: tuple[bytes, ...]
    statuses: tuple[int, ...]
    goes_on: bool = False  # the client sends nothing more, and waits


HEAD = b"POST /search HTTP/1.1\r\nhost: a\r\ncontent-type: " + FORM.encode() + b"\r\n"
SOCKETS = [
    BadBytes("noise", (bytes(range(128, 256)) * 4 + b"\r\n\r\n",), (0, 400)),
    BadBytes("TLS", (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),), (0, 400, 408)),
    BadBytes("the preface of HTTP/2", (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), (0, 400, 404, 405, 505)),
    BadBytes("a version that there is not", (b"GET /health HTTP/9.9\r\nhost: a\r\n\r\n",), (0, 400, 505)),
    BadBytes("a request line without a path", (b"GET\r\n\r\n",), (0, 400)),
    BadBytes("a method of 10,000 letters", (b"G" * 10_000 + b" / HTTP/1.1\r\n\r\n",), (0, 400, 405)),
    BadBytes("a header without a colon", (b"GET /health HTTP/1.1\r\nhost: a\r\nrubbish\r\n\r\n",), (0, 400)),
    BadBytes("a header with a blank name", (b"GET /health HTTP/1.1\r\nhost: a\r\n: x\r\n\r\n",), (0, 400)),
    BadBytes("a header with NUL", (b"GET /health HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n",), (0, 400)),
    BadBytes("headers of 200,000 bytes", (b"GET /health HTTP/1.1\r\nhost: a\r\n" + b"x: y\r\n" * 34_000,), (0, 400, 431)),
    BadBytes("one header of 100,000 bytes", (b"GET /health HTTP/1.1\r\nx: " + b"y" * 100_000,), (0, 400, 431)),
    BadBytes("a path of 100,000 bytes", (b"GET /" + b"x" * 100_000,), (0, 400, 414, 431)),
    BadBytes("a length that is a text", (HEAD + b"content-length: many\r\n\r\n",), (0, 400)),
    BadBytes("a negative length", (HEAD + b"content-length: -5\r\n\r\ntext=red",), (0, 400)),
    BadBytes("two lengths", (HEAD + b"content-length: 8\r\ncontent-length: 9\r\n\r\ntext=red",), (0, 400)),
    BadBytes("a length of 30 digits", (HEAD + b"content-length: " + b"9" * 30 + b"\r\n\r\n",), (0, 400, 413)),
    BadBytes("a length and chunks", (HEAD + b"content-length: 8\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",), (0, 400, 422)),
    BadBytes("a chunk of no number", (HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\ntext=red\r\n0\r\n\r\n",), (0, 400)),
    BadBytes("a chunk of 2**70 bytes", (HEAD + b"transfer-encoding: chunked\r\n\r\n" + b"f" * 18 + b"\r\ntext",), (0, 400, 413)),
    BadBytes("a negative chunk", (HEAD + b"transfer-encoding: chunked\r\n\r\n-8\r\ntext=red\r\n",), (0, 400)),
    BadBytes("a chunk longer than it says", (HEAD + b"transfer-encoding: chunked\r\n\r\n2\r\ntext=red\r\n0\r\n\r\n",), (0, 400)),
    BadBytes("an encoding of transfer that there is not", (HEAD + b"transfer-encoding: rubbish\r\n\r\n",), (0, 400, 422, 501)),
    BadBytes("a body shorter than it says", (HEAD + b"content-length: 100\r\n\r\ntext=red",), (408,), goes_on=True),
    BadBytes("chunks that do not end", (HEAD + b"transfer-encoding: chunked\r\n\r\n8\r\ntext=red\r\n",), (408,), goes_on=True),
    BadBytes("headers that do not end", (b"GET /health HTTP/1.1\r\nhost: a\r\n",), (408,), goes_on=True),
    BadBytes("nothing", (b"",), (0, 408), goes_on=True),
    BadBytes("line ends alone", (b"\r\n" * 2000,), (0, 400, 408), goes_on=True),
]  # fmt: skip
