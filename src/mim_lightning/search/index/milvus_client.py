"""The way to a Milvus collection: addresses, the connection, and errors told in one line.

An address comes in from `product_index`, a MilvusPlace goes out to `milvus_build` and `milvus_index`. With
milvus-lite the address is a path that ends in `.db`: the engine then runs inside this process, and keeps others out
until it ends.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PATIENCE = 30.0  # seconds that a search waits for an answer; pymilvus alone would try again for minutes
TOKEN = "MIM_MILVUS_TOKEN"  # noqa: S105 - environment variable: an API key, or user:password
EXTRA = "pip install 'mim-lightning[milvus]'"
DEFAULT_COLLECTION = "products"
_SERVER = re.compile(r"(?P<server>(?:https?|tcp|unix)://[^/#]+)(?:/(?P<database>[^/#]+))?/?(?:#(?P<name>.*))?")
_LITE = re.compile(r"(?P<server>[^#]+\.db)(?:#(?P<name>.*))?")
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


def is_address(place: str) -> bool:
    """Does this name a Milvus collection, and not a folder?

    `http://host:19530`, with `/database` and `#collection` if these are not the default ones, or `shop.db#collection`.
    """
    return "://" in place or _LITE.fullmatch(place) is not None


@dataclass(frozen=True)
class MilvusPlace:
    """A collection's name, and where: the name is an alias, behind which one collection replaces another."""

    address: str
    server: str
    database: str
    collection: str

    @property
    def is_lite(self) -> bool:
        return "://" not in self.server

    @cached_property
    def client(self) -> Any:
        """The connection, made when it is first needed.

        Raises:
            ValueError: the extra is not installed, or the server does not answer.
        """
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else it tells of every connection that it renews
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError(f"{self.address}: a Milvus index needs pymilvus: {EXTRA} ({error})") from error
        for name in ("pymilvus", "milvus_lite"):  # they print call stacks; what matters is told by whoever asked
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            return MilvusClient(self.server, token=os.environ.get(TOKEN, ""), db_name=self.database)
        except MilvusException as error:
            hint = "; another process may have it open" if self.is_lite else ""
            raise ValueError(f"{self.address}: {_reason(error)}{hint}") from error

    @contextmanager
    def told(self, kind: type[Exception] = ConnectionError) -> Iterator[None]:
        """Tell what a server refuses, or that it is silent, as one line that names the address.

        Args:
            kind: of error: ValueError where the user has named the server, for instance.
        """
        self.client  # noqa: B018  connects, and tells if pymilvus is missing
        from grpc import RpcError
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, RpcError) as error:
            raise kind(f"{self.address}: {_reason(error)}") from error


def read_address(address: str) -> MilvusPlace:
    """Return the parts of an address.

    Raises:
        ValueError: it is none, or its collection has an impossible name.
    """
    match = _SERVER.fullmatch(address) if "://" in address else _LITE.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: not an address of Milvus; http://host:19530/database#collection, or file.db")
    parts = match.groupdict()
    name = parts["name"] or DEFAULT_COLLECTION
    if not _COLLECTION.fullmatch(name):
        raise ValueError(f"{address}: '{name}' cannot name a collection; letters, digits and _, a letter first")
    return MilvusPlace(address, parts["server"], parts.get("database") or "", name)


def require_database(place: MilvusPlace) -> None:
    """Raise ValueError if an embedded database is not there: connecting would make an empty one."""
    if place.is_lite and not Path(place.server).exists():
        raise ValueError(f"{place.server}: no such database; build an index there first")


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())
