"""Which network targets a project may make us connect to (SSRF), decided on the resolved address.

The check stands where the socket is made, after the name was resolved, so a name that answers differently the second
time (DNS rebinding) gains nothing. Private targets are an operator's setting (`Guard(allow=…)`), never a project's.

This room knows addresses and sockets; it knows no HTTP, no SMTP and no vendor.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

import aiohappyeyeballs

from tidings.errors import TidingsError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# IANA "IPv4 Special-Purpose Address Registry" (not globally reachable), multicast, class E, and what clouds put
# elsewhere.
_REFUSED_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network, unspecified
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata (100.100.100.200)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's wire server: a public number that every Azure machine reaches inside
        "169.254.0.0/16",  # link-local; metadata of AWS, GCP, Azure, DigitalOcean (169.254.169.254)
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata (192.0.0.192)
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays, deprecated
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
    )
)

# Outside of 2000::/3 nothing is global unicast (loopback, unspecified, ULA with AWS's fd00:ec2::254, link-local,
# site-local, multicast, discard, the local NAT64 prefix 64:ff9b:1::/48, IPv4-compatible). Inside it, these are no
# targets either:
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_REFUSED_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # IETF protocol assignments: Teredo, ORCHID, benchmarking
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")  # RFC 6052: the last 32 bits are the IPv4 target
_IPV4_TRANSLATED: Final = IPv6Network("::ffff:0:0:0/96")  # RFC 2765


# What the guard can say of an address.
_OPENED: Final = "opened"  # by the operator
_PUBLIC: Final = "public"
_REFUSED: Final = "refused"
_NO_ADDRESS: Final = "no address"


class TransportFailure(TidingsError):
    """No complete answer came over the network."""

    code = "transport"
    sent = False
    """Whether the request, or a part that counts, may have reached the other side."""


class ConnectFailed(TransportFailure):
    """No connection came about; nothing left this machine."""


class TargetRefused(TransportFailure):
    """The target is not allowed: it is no public address, or it is reached without TLS."""


class _RefusedAddress(OSError):
    """What the socket factory raises. One constant text: connectors merge errors by text, and a project that can
    choose the target must not learn what a name resolves to inside."""

    def __init__(self) -> None:
        super().__init__("the address is not a public one")


class Guard:
    """The rule for every address that a project can choose.

    Args:
        allow: networks that an operator opens beside the public internet, e.g. the one of an internal mail relay.
    """

    def __init__(self, allow: Iterable[Network | str] = ()) -> None:
        self._allow = tuple(ip_network(n) if isinstance(n, str) else n for n in allow)
        # Parsing an address takes 10 µs. Per guard, because the answers depend on `allow`; bounded, because a project
        # chooses the addresses.
        self._decide = lru_cache(maxsize=4096)(self._decide_uncached)

    def __repr__(self) -> str:
        return f"Guard(allow=[{', '.join(map(str, self._allow))}])"

    def allows(self, address: str) -> bool:
        """Whether a socket may be connected to this IP address (text, as the resolver gave it)."""
        return self._decide(address) in (_OPENED, _PUBLIC)

    async def permits_plain(self, host: str, port: int) -> bool:
        """Whether a target may be reached without TLS: only if an operator opened all of its addresses.

        Args:
            host: a name, or an IP address (IPv6 with or without brackets).

        Answers False for a name that does not resolve.
        """
        if not self._allow:
            return False
        verdict = self._decide(host.strip("[]"))
        if verdict is not _NO_ADDRESS:
            return verdict is _OPENED
        try:
            infos = await _resolve(host, port)
        except (OSError, UnicodeError):
            return False
        return all(self._decide(str(info[4][0])) is _OPENED for info in infos)

    def _decide_uncached(self, text: str) -> str:
        try:
            targets = list_targets(ip_address(text))
        except ValueError:
            return _NO_ADDRESS
        if all(any(target in net for net in self._allow) for target in targets):
            return _OPENED
        opened_or_public = all(_is_public(t) or any(t in net for net in self._allow) for t in targets)
        return _PUBLIC if opened_or_public else _REFUSED

    def make_socket(self, addr_info: aiohappyeyeballs.AddrInfoType) -> socket.socket:
        """A socket for a resolved address; the `socket_factory` of aiohttp and aiohappyeyeballs.

        Raises:
            OSError: the address is not allowed. See :func:`find_refusal`.
        """
        family, kind, protocol, _, target = addr_info
        if not self.allows(str(target[0])):
            raise _RefusedAddress
        return socket.socket(family=family, type=kind, proto=protocol)

    async def connect(self, host: str, port: int, timeout: float) -> socket.socket:
        """A connected, non-blocking TCP socket.

        Args:
            timeout: seconds for resolving and connecting together.

        Raises:
            TargetRefused: every address of the host is refused.
            ConnectFailed: no such host, refused, unreachable, or out of time.
        """
        try:
            async with asyncio.timeout(timeout):
                infos = await _resolve(host, port)
                return await aiohappyeyeballs.start_connection(
                    infos, happy_eyeballs_delay=0.25, socket_factory=self.make_socket
                )
        except TimeoutError:
            raise ConnectFailed(f"no connection within {timeout:g} s") from None
        except (OSError, RuntimeError, UnicodeError) as failure:  # uvloop raises RuntimeError, IDNA UnicodeError
            raise find_refusal(failure) or ConnectFailed(to_sentence(failure)) from None


def list_targets(address: Address) -> list[Address]:
    """Where packets to this address end: the address itself, or the IPv4 address that it wraps.

    Mapped, translated (RFC 2765) and NAT64 (RFC 6052) addresses stand for the IPv4 address alone. A 6to4 address
    (RFC 3056) stands for itself and for the IPv4 host that unwraps it: both have to be allowed.
    """
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64 or address in _IPV4_TRANSLATED:
        return [IPv4Address(int(address) & 0xFFFFFFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    return [address]


def _is_public(address: Address) -> bool:
    if isinstance(address, IPv4Address):
        return not any(address in net for net in _REFUSED_V4)
    return address in _GLOBAL_V6 and not any(address in net for net in _REFUSED_V6)


async def _resolve(host: str, port: int) -> list[aiohappyeyeballs.AddrInfoType]:
    """TCP addresses of a host (a name or an IP literal). Raises OSError."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    if not infos:
        raise OSError("the name has no address")
    return list(infos)


def find_refusal(failure: BaseException) -> TargetRefused | None:
    """A `TargetRefused` if the guard is what stopped a connection."""
    return TargetRefused("the target is not a public address") if isinstance(failure, _RefusedAddress) else None


def to_sentence(failure: BaseException) -> str:
    """The words of an operating-system or library error, for evidence: short, never empty."""
    text = (isinstance(failure, OSError) and failure.strerror) or str(failure) or type(failure).__name__
    return text[:200]
