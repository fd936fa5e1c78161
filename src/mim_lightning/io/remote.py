"""Remote reads with retries: files at URLs, read into memory or downloaded, in bounded time and size.

`read_url` reads what an untrusted table points to: it connects to public hosts only and bounds the size. `download`
fetches files of any size from a store of the user's. What a store does - answer 500, stay silent, break off - ends in
a `RemoteError` of one line: fsspec's own promises about time limits are not relied on.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from mim_lightning.io.paths import EXTRAS, file_system, irregular_kind
from mim_lightning.io.public_network import PrivateAddressError, http_opener
from mim_lightning.io.retry import NotFoundError, PrivateHostError, RangeError, RemoteError, RetryPolicy, explain_error

CHUNK = 1 << 16  # bytes
RETRYABLE_STATUS = {408, 425, 429}  # besides 5xx
USER_AGENT = "Mozilla/5.0 (compatible; mim-lightning)"  # some shops' servers reject Python's own
STORES = (  # protocols of fsspec that name no host: a bucket, a user, or a file inside another
    *("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci", "hf", "github", "memory", "data"),
    *("zip", "tar", "libarchive", "simplecache", "filecache", "blockcache", "cached"),
)
SAFE = "%/:=&?~#+!$,;'@()*[]"  # characters of a URL that are not quoted

T = TypeVar("T")
Check = Callable[[Path, int], None]  # (a file, the number of the try from 0); raises ValueError if it is damaged


def read_url(
    url: str, policy: RetryPolicy, max_bytes: int, allow_private: bool = False, stop: threading.Event | None = None
) -> bytes:
    """Return the content of a file at a URL that is not trusted.

    Args:
        max_bytes: a larger file is not read to its end.
        allow_private: whether hosts of private networks and this machine may be read from.
        stop: ends the pauses between tries when it is set.

    Raises:
        RemoteError: it cannot be read.
        ValueError: the client of the protocol is not installed.
    """
    read = _read_http if url.lower().startswith(("http://", "https://")) else _read_other
    return policy.run(lambda _: read(url, policy.timeout, max_bytes, allow_private), stop)


def _read_http(url: str, timeout: float, max_bytes: int, allow_private: bool) -> bytes:
    stop_at = time.monotonic() + timeout
    try:
        request = urllib.request.Request(quote(url, safe=SAFE), headers={"User-Agent": USER_AGENT})
        with http_opener(allow_private).open(request, timeout=timeout) as answer:
            if answer.headers.get("Content-Type", "").startswith("text/html"):
                raise RemoteError("the server answered with an HTML page")
            length = answer.headers.get("Content-Length", "")
            if length.isdecimal() and int(length) > max_bytes:
                raise RemoteError(f"{int(length):,} bytes, at most {max_bytes:,} are read")
            data = _read_bounded(answer, max_bytes, stop_at)
    except urllib.error.HTTPError as error:
        if error.code >= 500 or error.code in RETRYABLE_STATUS:
            raise
        raise RemoteError(explain_error(error)) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise RemoteError(f"not a valid URL ({error})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, PrivateAddressError):
            raise PrivateHostError(str(error.reason)) from error
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise RemoteError(explain_error(error)) from error
        raise
    except PrivateAddressError as error:
        raise PrivateHostError(str(error)) from error
    if length.isdecimal() and len(data) < int(length):
        raise ConnectionError(f"the answer ended after {len(data):,} of {int(length):,} bytes")
    return _validate_not_empty(data)


def _read_bounded(answer: http.client.HTTPResponse, max_bytes: int, stop_at: float) -> bytes:
    """Read to the end, within the limits also if the server sends a byte at a time."""
    parts, size = [], 0
    while part := answer.read1(CHUNK):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise RemoteError(f"more than {max_bytes:,} bytes")
        if time.monotonic() > stop_at:
            raise TimeoutError("timed out")
    return b"".join(parts)


def _read_other(url: str, timeout: float, max_bytes: int, allow_private: bool) -> bytes:
    """Read from a store, through fsspec."""
    _validate_protocols(url, allow_private)
    try:
        system, path = file_system(url)
        if "::" not in url:  # a file inside another uses two file systems
            system = open_file_system(url, timeout)
    except ValueError as error:
        if isinstance(error.__cause__, ImportError):  # not the fault of this URL
            raise
        raise RemoteError(str(error)) from error
    try:
        data = bytes(system.cat_file(path, start=0, end=max_bytes + 1))
    except (FileNotFoundError, PermissionError) as error:
        raise RemoteError("no such file" if isinstance(error, FileNotFoundError) else explain_error(error)) from error
    except Exception as error:  # the clients of object stores have error classes of their own
        raise ConnectionError(explain_error(error)) from error
    if len(data) > max_bytes:
        raise RemoteError(f"more than {max_bytes:,} bytes")
    return _validate_not_empty(data)


def _validate_protocols(url: str, allow_private: bool) -> None:
    """Reject a URL that may lead to a private host, or to a local file whose reading would not end."""
    import fsspec

    for part in url.split("::"):
        protocol, separator, rest = part.partition("://")
        if not separator and part not in fsspec.available_protocols():
            protocol, rest = "file", part.removeprefix("file:").removeprefix("local:")
        if protocol.lower() in ("file", "local"):
            path = Path(rest)
            if path.exists() and (kind := irregular_kind(path.stat().st_mode)):
                raise RemoteError(f"{path} is {kind}, not a file")
        elif protocol.lower() not in STORES and not allow_private:
            # fsspec's clients resolve names again, and follow redirects to any host
            raise PrivateHostError(f"the hosts that {protocol}:// connects to cannot be checked")


def _validate_not_empty(data: bytes) -> bytes:
    if not data:
        raise RemoteError("the file is empty")
    return data


def download(url: str, path: Path, policy: RetryPolicy, check: Check | None = None) -> Path:
    """Download a file and return its path: beside `path`, with a name of its own for each try.

    A try that was given up may still be writing: it must not write to the file of the next one.

    Args:
        check: called with the path of the downloaded file and the number of the try; if it raises ValueError, the file
            is downloaded again.

    Raises:
        NotFoundError: there is no such file.
        RemoteError: it could not be downloaded; says why the last try failed.
    """

    def attempt(number: int) -> Path:
        target = path.with_name(f"{path.name}.try{number}")
        with _client_errors(url):
            _import_client(url)
            try:
                _download_once(url, target, policy.timeout)
                if check is not None:
                    check(target, number)
            except (RemoteError, FileNotFoundError, ImportError, PermissionError):
                raise
            except Exception:
                target.unlink(missing_ok=True)
                raise
        return target

    with _named(url):
        return policy.run(attempt)


def download_range(url: str, start: int, stop: int, policy: RetryPolicy) -> bytes:
    """Return the bytes of a file from `start` to `stop`.

    Raises:
        NotFoundError, RemoteError: as `download`; RangeError: the store sent another number of bytes.
    """

    def attempt(_: int) -> bytes:
        with _client_errors(url):
            _import_client(url)
            system = open_file_system(url, policy.timeout)
            data = bytes(_run_in_thread(lambda: system.cat_file(url, start=start, end=stop), policy.timeout))
        if len(data) != stop - start:
            raise RangeError(f"{len(data):,} bytes came instead of {stop - start:,}")
        return data

    with _named(url):
        return policy.run(attempt)


@contextmanager
def _client_errors(url: str) -> Iterator[None]:
    """Raise RemoteError where another try would fail the same way, else ConnectionError."""
    try:
        yield
    except RemoteError:
        raise
    except FileNotFoundError:
        raise NotFoundError("there is no such file") from None
    except ImportError as error:
        protocol = url.split("://", 1)[0]
        extra = f"{protocol}:// needs an extra: pip install 'mim-lightning[{EXTRAS.get(protocol)}]'"
        raise RemoteError(extra if protocol in EXTRAS else explain_error(error)) from error
    except PermissionError as error:
        raise RemoteError(explain_error(error)) from error
    except Exception as error:  # the clients of object stores have error classes of their own
        raise ConnectionError(explain_error(error)) from error


@contextmanager
def _named(url: str) -> Iterator[None]:
    """Name the file in a RemoteError."""
    try:
        yield
    except RemoteError as error:
        raise type(error)(f"{url}: {error}") from error.__cause__


def download_json(url: str, policy: RetryPolicy) -> bytes:
    """Return the content of a small file of JSON; one that a store has sent in part is downloaded again.

    Where it is never whole, the caller finds out what is wrong with it.

    Raises:
        NotFoundError, RemoteError: as `download`.
    """

    def check(path: Path, number: int) -> None:
        if number < policy.retries and not _is_json(path.read_bytes()):
            raise ValueError("it is not whole")

    with tempfile.TemporaryDirectory() as folder:
        return download(url, Path(folder) / "file", policy, check).read_bytes()


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except (ValueError, RecursionError):
        return False
    return True


def remote_size(url: str, policy: RetryPolicy) -> int | None:
    """Return the size of a file in bytes, or None if the store does not say."""
    try:
        _import_client(url)
        size = _run_in_thread(lambda: open_file_system(url, policy.timeout).info(url)["size"], policy.timeout)
    except Exception:  # `download` will report it
        return None
    return None if size is None else int(size)


def list_folder(url: str, policy: RetryPolicy) -> list[str]:
    """Return the names in a folder of a store; none if there is no such folder, or the store lists nothing."""
    try:
        _import_client(url)
        found = _run_in_thread(lambda: open_file_system(url, policy.timeout).ls(url, detail=False), policy.timeout)
    except Exception:  # plain web servers list nothing
        return []
    own = url.rstrip("/").rsplit("/", 1)[-1]
    names = (str(name).rstrip("/").rsplit("/", 1)[-1] for name in found)
    return sorted({name for name in names if name} - {own})


def _import_client(url: str) -> None:
    """Import the client of a protocol before the time of its store runs: it may take seconds."""
    import fsspec

    with suppress(ValueError):  # no such protocol, which `open_file_system` reports
        fsspec.get_filesystem_class(url.split("://", 1)[0])


def open_file_system(url: str, timeout: float) -> Any:
    """Return fsspec's file system for a URL; one a process, since connections do not survive a fork.

    Raises:
        RemoteError: there is none for its protocol.
        ImportError: an extra is missing.
    """
    return _open_file_system("/".join(url.split("/")[:3]), timeout, os.getpid())


@lru_cache(maxsize=64)
def _open_file_system(root: str, timeout: float, process_id: int) -> Any:
    import fsspec

    timeout = 1.5 * timeout + 1  # after our own: it ends the threads of tries that were given up
    protocol = root.split("://", 1)[0]
    settings = fsspec.config.conf.get(protocol, {})
    options: dict[str, Any] = {}
    if protocol in ("s3", "s3a"):
        # one stream, whose progress can be seen; parallel parts would also be held in memory
        limits = {"connect_timeout": timeout, "read_timeout": timeout, "retries": {"max_attempts": 0}}
        options = {"config_kwargs": {**settings.get("config_kwargs", {}), **limits}, "max_concurrency": 1}
    elif protocol in ("http", "https"):
        from aiohttp import ClientTimeout

        limits = {"timeout": ClientTimeout(total=None, sock_connect=timeout, sock_read=timeout)}
        options = {"client_kwargs": {**settings.get("client_kwargs", {}), **limits}}
    try:
        system, _ = fsspec.core.url_to_fs(root, skip_instance_cache=True, use_listings_cache=False, **options)
    except ValueError as error:
        raise RemoteError(f"{root}: cannot be opened ({error})") from error
    if hasattr(system, "retries"):  # of s3fs and gcsfs: retries are ours
        system.retries = 1
    return system


def _download_once(url: str, path: Path, timeout: float) -> None:
    from fsspec.callbacks import Callback

    class Progress(Callback):
        last_byte = time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            self.last_byte = time.monotonic()

    progress = Progress()
    _run_in_thread(
        lambda: open_file_system(url, timeout).get_file(url, str(path), callback=progress),
        timeout,
        lambda: progress.last_byte,
    )


def _run_in_thread(call: Callable[[], T], timeout: float, last_byte: Callable[[], float] | None = None) -> T:
    """Call a function in a thread, and abandon it when no byte has come for `timeout` seconds."""
    started, done = time.monotonic(), threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="download", daemon=True).start()
    while not done.wait(min(0.5, timeout / 4)):
        if time.monotonic() - (last_byte() if last_byte is not None else started) > timeout:
            raise ConnectionError(f"the store has sent nothing for {timeout:g} s")
    if errors:
        raise errors[0]
    return results[0]
