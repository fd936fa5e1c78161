"""Connections to public addresses only: untrusted tables and requests must not reach this machine's network.

A host name is resolved once, and the connection goes to the address that was checked, redirects included: a name cannot
change its address in between.
"""

from __future__ import annotations

import http.client
import socket
import urllib.request
from contextlib import suppress
from functools import cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

_resolve = socket.getaddrinfo
# their last 32 bits are an IPv4 address: NAT64, stateless translation, and two older forms
WITH_IPV4 = tuple(map(IPv6Network, ("64:ff9b::/96", "::ffff:0:0:0/96", "::/96")))
# two that not every Python classifies so, and the host that Azure's machines alone reach
PRIVATE_TOO = tuple(map(ip_network, ("64:ff9b:1::/48", "fec0::/10", "168.63.129.16")))


class PrivateAddressError(OSError):
    """A host is this machine or in a private network."""

    def __init__(self, host: str, address: str) -> None:
        found = f"{host} is {address}" if host != address else host
        super().__init__(f"{found}, an address of this machine or of a private network")
        self.host, self.address = host, address


def is_private(address: str) -> bool:
    """Is an IP address private, local, reserved or multicast?"""
    ip = ip_address(address)
    inner = _inner(ip) if isinstance(ip, IPv6Address) else None
    own = ip if inner is None else inner
    if any(ip in network or own in network for network in PRIVATE_TOO):
        return True
    return not own.is_global or own.is_multicast


def _inner(ip: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that is embedded in an IPv6 address."""
    if any(ip in network for network in WITH_IPV4):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)


def resolve_public(host: str, port: int | None = None) -> list[str]:
    """Return the addresses of a host.

    Raises:
        PrivateAddressError: one of them is private.
        socket.gaierror: it has no address.
    """
    found = [str(info[4][0]) for info in _resolve(host, port, type=socket.SOCK_STREAM)]
    for address in found:
        if is_private(address):
            raise PrivateAddressError(host, address)
    return list(dict.fromkeys(found))


def connect_public(address: tuple[str, int], timeout: Any = None, source_address: Any = None) -> socket.socket:
    """Connect as `socket.create_connection` does, to public addresses only."""
    host, port = address
    failure: OSError = OSError(f"{host}: has no address")
    for found in resolve_public(host, port):
        try:
            return socket.create_connection((found, port), timeout, source_address)
        except OSError as error:
            failure = error
    raise failure


@cache
def http_opener(may_be_private: bool) -> urllib.request.OpenerDirector:
    """Return an opener of http and https URLs that follows redirects to such URLs only.

    Args:
        may_be_private: whether private addresses are opened too.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler() if may_be_private else _HTTPHandler(),
        urllib.request.HTTPSHandler() if may_be_private else _HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _HTTPConnection(http.client.HTTPConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect_public


class _HTTPSConnection(http.client.HTTPSConnection):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._create_connection = connect_public


class _HTTPHandler(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(http.client.HTTPConnection if _by_proxy(req) else _HTTPConnection, req)


class _HTTPSHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if _by_proxy(req) else _HTTPSConnection
        return self.do_open(kind, req, context=self._context)  # type: ignore[attr-defined]


def _by_proxy(request: urllib.request.Request) -> bool:
    """Does a request go to the user's proxy, which may be private? Its target may not."""
    target = getattr(request, "_tunnel_host", None) or (request.full_url if request.has_proxy() else None)
    if target is None:
        return False
    host = urlsplit(target if "://" in target else f"//{target}").hostname or ""
    with suppress(socket.gaierror):  # a name that only the proxy can resolve
        resolve_public(host)
    return True
