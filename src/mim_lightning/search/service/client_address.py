"""Whose request is this: the address that rates, connections and uploads are counted by."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network

from starlette.types import Scope

UNKNOWN = "unknown"


def client_of(scope: Scope) -> str:
    """Return the client of a request; behind a trusted proxy it is who the proxy says (see `forwarded_allow_ips`)."""
    client = scope.get("client")
    return counted_as(client[0]) if client else UNKNOWN


@lru_cache(maxsize=10_000)
def counted_as(host: str) -> str:
    """Return what an address counts as: of IPv6 its network of 64 bits, for one client has all of that."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host[:100]
    if not isinstance(address, IPv6Address):
        return str(address)
    return str(address.ipv4_mapped or IPv6Network((address, 64), strict=False))


class Proxies:
    """The addresses whose word on a client is believed: none, unless they are named.

    Args:
        named: addresses and networks, such as "127.0.0.1, 10.0.0.0/8"; "*" for every one; None or "" for none.

    Raises:
        ValueError: something else stands there.
    """

    def __init__(self, named: str | Sequence[str] | None) -> None:
        words = named.split(",") if isinstance(named, str) else list(named or ())
        self.names = [word.strip() for word in words if word.strip()]
        self._all = "*" in self.names
        try:
            self._networks = [ip_network(name) for name in self.names if name != "*"]
        except ValueError as error:
            raise ValueError(
                f"forwarded_allow_ips={','.join(self.names)}: {error}; give addresses or networks, such as 127.0.0.1"
            ) from error

    def __contains__(self, host: str) -> bool:
        if self._all or not self._networks:
            return self._all
        try:
            address = ip_address(host)
        except ValueError:
            return False
        return any(address in network for network in self._networks)
