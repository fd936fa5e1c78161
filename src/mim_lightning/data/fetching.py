"""One file over the network: tries, waits, bounds of time and size.

An address comes in, its bytes go out, or an OSError that says in one line why not; `pictures.download` calls it in
threads.
"""

from __future__ import annotations

import http.client
import random
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from urllib.parse import quote

from mim_lightning.data.places.transfer import open_system
from mim_lightning.io.paths import file_system
from mim_lightning.io.public_network import PrivateAddressError, http_opener

CHUNK = 1 << 16  # bytes
PASSING = {408, 425, 429}  # status codes besides 5xx after which a server may answer otherwise
USER_AGENT = "Mozilla/5.0 (compatible; mim-lightning)"  # some shops' servers send Python's own away
STORES = (  # protocols of fsspec that name no host: a bucket, a user, or a file inside another
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf", "github", "memory", "data"),
    *("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache", "cached"),
)
SAFE = "%/:=&?~#+!$,;'@()*[]"  # what stays as it is in an address


@dataclass(frozen=True)
class DownloadSettings:
    """How pictures at addresses are fetched."""

    cache: str | None = None  # folder; None: nothing is kept
    num_connections: int = 16  # at once
    timeout: float = 20.0  # seconds for one picture
    retries: int = 3  # after the first try, where the server may do better later
    wait: float = 0.5  # seconds before the first of them, doubled with each
    max_bytes: int = 50_000_000  # a larger file is not fetched to its end
    private_addresses: bool = False  # True: also from this machine and private networks, wherever a table points

    def __post_init__(self) -> None:
        least = {"num_connections": 1, "timeout": 1e-3, "retries": 0, "wait": 0, "max_bytes": 1}
        for name, bound in least.items():
            value = getattr(self, name)
            if not isinstance(value, int | float) or value < bound:
                raise ValueError(f"data.source.download.{name}={value}: must be a number, at least {bound:g}")


SWITCH = "data.source.download.private_addresses=true"


class RefusedError(OSError):
    """The answer is no, and would be again."""


class NoAnswerError(OSError):
    """None of the tries was answered."""


def fetch(address: str, settings: DownloadSettings, stop: Event) -> bytes:
    """Return the file at an address, trying again where that may help; `stop` ends the waiting between tries.

    Raises:
        RefusedError, NoAnswerError: it cannot be had.
        ValueError: what the protocol needs is not installed.
    """
    attempt = _read_http if address.lower().startswith(("http://", "https://")) else _read_other
    reason, num_tries = "", 0
    while num_tries <= settings.retries and not stop.is_set():
        try:
            return attempt(address, settings)
        except RefusedError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reason, num_tries = _reason(error), num_tries + 1
            if num_tries <= settings.retries:
                stop.wait(_pause(error, settings, num_tries))
    raise NoAnswerError(f"{reason} (tried {num_tries} times)" if num_tries > 1 else reason)


def _pause(error: Exception, settings: DownloadSettings, num_tries: int) -> float:
    """Return the seconds until the next try: what the server asks for, or twice as long each time."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    if asked.isdecimal():
        return min(float(asked), settings.timeout)
    # spread, or all connections come back at the same moment
    return settings.wait * 2 ** (num_tries - 1) * random.uniform(0.5, 1.5)


def _read_http(address: str, settings: DownloadSettings) -> bytes:
    stop_at = time.monotonic() + settings.timeout
    try:
        request = urllib.request.Request(quote(address, safe=SAFE), headers={"User-Agent": USER_AGENT})
        with http_opener(settings.private_addresses).open(request, timeout=settings.timeout) as answer:
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise RefusedError("the server answered with a page, not with a picture")
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal() and int(length) > settings.max_bytes:
                raise RefusedError(f"{int(length):,} bytes, at most {settings.max_bytes:,} are fetched")
            data = _read_bounded(answer, settings.max_bytes, stop_at)
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in PASSING:
            raise
        raise RefusedError(_reason(error)) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise RefusedError(f"no address ({error})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, PrivateAddressError):
            raise RefusedError(_refusal(error.reason)) from error
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RefusedError(_reason(error)) from error
        raise
    except PrivateAddressError as error:
        raise RefusedError(_refusal(error)) from error
    if length.isdecimal() and len(data) < int(length):
        raise ConnectionError(f"the answer ended after {len(data):,} of {int(length):,} bytes")
    return _require_some(data)


def _read_bounded(answer: http.client.HTTPResponse, max_bytes: int, stop_at: float) -> bytes:
    """Read to the end, however slowly it drips, within settings."""
    parts, size = [], 0
    while part := answer.read1(CHUNK):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise RefusedError(f"more than {max_bytes:,} bytes")
        if time.monotonic() > stop_at:
            raise TimeoutError("timed out")
    return b"".join(parts)


def _read_other(address: str, settings: DownloadSettings) -> bytes:
    """Read from a store, through fsspec."""
    _require_harmless(address, settings)
    try:
        system, path = file_system(address)
        if "::" not in address:  # a file inside another goes through two systems
            system = open_system(address, settings.timeout)
    except ValueError as error:
        if isinstance(error.__cause__, ImportError):  # no fault of this address
            raise
        raise RefusedError(str(error)) from error
    try:
        data = bytes(system.cat_file(path, start=0, end=settings.max_bytes + 1))
    except (FileNotFoundError, PermissionError) as error:
        raise RefusedError("no such file" if isinstance(error, FileNotFoundError) else _reason(error)) from error
    except Exception as error:  # the clients of object stores raise dozens of kinds
        raise ConnectionError(_reason(error)) from error
    if len(data) > settings.max_bytes:
        raise RefusedError(f"more than {settings.max_bytes:,} bytes")
    return _require_some(data)


def _require_harmless(address: str, settings: DownloadSettings) -> None:
    """Refuse what may lead to a private host, or to a file of this machine that would be waited for."""
    import fsspec

    for part in address.split("::"):
        protocol, separator, rest = part.partition("://")
        if not separator and part not in fsspec.available_protocols():
            protocol, rest = "file", part.removeprefix("file:").removeprefix("local:")
        if protocol.lower() in ("file", "local"):
            path = Path(rest)
            if path.exists() and not path.is_file():
                raise RefusedError(f"{path} is no regular file")
        elif protocol.lower() not in STORES and not settings.private_addresses:
            # fsspec's clients look names up again, and follow redirects to wherever they lead
            raise RefusedError(f"what {protocol}:// connects to cannot be checked; {SWITCH} lets it be read")


def _refusal(error: PrivateAddressError) -> str:
    return f"{error}; {SWITCH} lets them be read"


def _require_some(data: bytes) -> bytes:
    if not data:
        raise RefusedError("the file is empty")
    return data


def _reason(error: BaseException) -> str:
    """Return an error of the network in one line."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}".strip()
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(inner, TimeoutError):
        return "timed out"
    if isinstance(inner, socket.gaierror):
        return f"no such host ({inner.strerror})"
    return " ".join(str(inner).split()) or type(inner).__name__
