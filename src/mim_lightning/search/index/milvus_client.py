"""The connection to a Milvus collection: addresses, the client, and its errors as one line (extra `milvus`).

With milvus-lite the address is a path that ends in `.db`: the engine then runs inside this process, and locks other
processes out until it ends.
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

TIMEOUT = 30.0  # seconds that a search waits for an answer; pymilvus alone would retry for minutes
TOKEN = "MIM_MILVUS_TOKEN"  # noqa: S105 - environment variable: an API key, or user:password
EXTRA = "pip install 'mim-lightning[milvus]'"
DEFAULT_COLLECTION = "products"
_SERVER = re.compile(r"(?P<server>(?:https?|tcp|unix)://[^/#]+)(?:/(?P<database>[^/#]+))?/?(?:#(?P<name>.*))?")
_LITE = re.compile(r"(?P<server>[^#]+\.db)(?:#(?P<name>.*))?")
_COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}")


@dataclass(frozen=True)
class MilvusCollection:
    """A collection's server and name: the name is an alias, behind which one collection replaces another."""

    address: str
    server: str
    database: str
    name: str

    @property
    def is_lite(self) -> bool:
        return "://" not in self.server

    @cached_property
    def client(self) -> Any:
        """The connection, opened at the first use.

        Raises:
            ValueError: the extra is not installed, or the server does not answer.
        """
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # otherwise it logs every connection that it renews
        try:
            from pymilvus import MilvusClient, MilvusException
        except ImportError as error:
            raise ValueError(f"{self.address}: a Milvus index needs pymilvus: {EXTRA} ({error})") from error
        for name in ("pymilvus", "milvus_lite"):  # they log call stacks; our error has what matters
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            return MilvusClient(self.server, token=os.environ.get(TOKEN, ""), db_name=self.database)
        except MilvusException as error:
            hint = "; another process may have it open" if self.is_lite else ""
            raise ValueError(f"{self.address}: {_reason(error)}{hint}") from error

    @contextmanager
    def errors_as(self, error_type: type[Exception] = ConnectionError) -> Iterator[None]:
        """Raise errors of the server and of the connection as one line that names the address.

        Args:
            error_type: ValueError where the user has just named the server, for example.
        """
        self.client  # noqa: B018  connects, and raises if pymilvus is missing
        from grpc import RpcError
        from pymilvus import MilvusException

        try:
            yield
        except (MilvusException, RpcError) as error:
            raise error_type(f"{self.address}: {_reason(error)}") from error

    def find(self) -> tuple[str, dict[str, str]] | None:
        """Return the collection behind the name and its properties; None if there is none."""
        if not self.client.has_collection(self.name):
            return None
        described = self.client.describe_collection(self.name)
        return described["collection_name"], dict(described.get("properties", {}))


def parse_address(address: str) -> MilvusCollection:
    """Return the collection at an address (see `artifact_paths.is_address`).

    Raises:
        ValueError: it is not an address, or not a valid name of a collection.
    """
    match = _SERVER.fullmatch(address) if "://" in address else _LITE.fullmatch(address)
    if match is None:
        raise ValueError(f"{address}: not an address of Milvus; http://host:19530/database#collection, or file.db")
    parts = match.groupdict()
    name = parts["name"] or DEFAULT_COLLECTION
    if not _COLLECTION.fullmatch(name):
        raise ValueError(f"{address}: '{name}' cannot name a collection; letters, digits and _, a letter first")
    return MilvusCollection(address, parts["server"], parts.get("database") or "", name)


def validate_database(collection: MilvusCollection) -> None:
    """Raise ValueError if an embedded database does not exist: connecting would create an empty one."""
    if collection.is_lite and not Path(collection.server).exists():
        raise ValueError(f"{collection.server}: no such database; build an index there first")


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())
