"""Whose request is this: the address that rates, connections and uploads are counted by."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network, ip_address

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
