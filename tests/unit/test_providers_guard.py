import asyncio
import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tidings.providers.guard import ConnectFailed, Guard, TargetRefused

GUARD = Guard()

V4_INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.0.1", "198.18.0.1", "224.0.0.1",
    "240.0.0.1", "255.255.255.255",
]  # fmt: skip


def wrapped(address: IPv4Address) -> list[str]:
    """The IPv6 spellings whose packets end at an IPv4 address."""
    n = int(address)
    return [
        str(IPv6Address((0xFFFF << 32) | n)),  # mapped
        f"::ffff:{address}",
        str(IPv6Address((0xFFFF << 48) | n)),  # translated, RFC 2765
        str(IPv6Address(int(IPv6Address("64:ff9b::")) | n)),  # NAT64
        str(IPv6Address(int(IPv6Address("2002::")) | n << 80)),  # 6to4
    ]


@pytest.mark.parametrize("text", V4_INSIDE)
def test_inner_addresses_are_refused_in_every_spelling(text: str) -> None:
    assert not GUARD.allows(text)
    for spelling in [*wrapped(IPv4Address(text)), str(IPv6Address(int(IPv4Address(text))))]:
        assert not GUARD.allows(spelling), spelling


@pytest.mark.parametrize(
    "text",
    [
        "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "64:ff9b:1::1", "100::1",
        "2001::1", "2001:db8::1", "3fff::1", "5f00::1", "fec0::1", "", "localhost", "1", "0x7f.1", "127.1", "1.2.3.4 ",
    ],
)  # fmt: skip
def test_other_addresses_and_what_is_none_are_refused(text: str) -> None:
    assert not GUARD.allows(text)


@pytest.mark.parametrize("text", ["1.1.1.1", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_public_addresses_are_allowed(text: str) -> None:
    assert GUARD.allows(text)


@given(st.ip_addresses(v=4))
@example(IPv4Address("192.88.99.1"))
def test_nothing_is_allowed_that_the_standard_library_calls_special(address: IPv4Address) -> None:
    if GUARD.allows(str(address)):
        assert address.is_global
        assert not address.is_multicast
    for spelling in wrapped(address):
        assert GUARD.allows(spelling) == GUARD.allows(str(address))


@given(st.ip_addresses(v=6))
def test_the_same_for_ipv6(address: IPv6Address) -> None:
    if GUARD.allows(str(address)):
        assert address.is_global
        assert not address.is_multicast


@given(st.ip_addresses(v=4, network="10.0.0.0/8"))
def test_an_operator_opens_just_what_he_names(address: IPv4Address) -> None:
    opened = Guard([ip_network("10.1.0.0/16")])
    assert opened.allows(str(address)) == (address in ip_network("10.1.0.0/16"))
    assert opened.allows(wrapped(address)[0]) == opened.allows(str(address))


async def test_plain_text_only_to_what_was_opened() -> None:
    opened = Guard(["127.0.0.0/8", "::1/128"])
    assert await opened.permits_plain("127.0.0.1", 80)
    assert await opened.permits_plain("[::1]", 80)
    assert await opened.permits_plain("localhost", 80)
    assert not await opened.permits_plain("1.1.1.1", 80)
    assert not await opened.permits_plain("10.0.0.1", 80)
    assert not await opened.permits_plain("no-such-host.invalid", 80)
    assert not await GUARD.permits_plain("127.0.0.1", 80)


async def test_connect_decides_on_what_the_name_resolves_to() -> None:
    server = await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(TargetRefused, match="not a public address"):
            await GUARD.connect("localhost", port, 5)
        with pytest.raises(TargetRefused):
            await GUARD.connect("127.0.0.1", port, 5)
        sock = await Guard(["127.0.0.0/8"]).connect("127.0.0.1", port, 5)
        assert not sock.getblocking()
        sock.close()


async def test_connect_to_nobody_fails_definitely() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # bound, but not listening
        with pytest.raises(ConnectFailed):
            await Guard(["127.0.0.0/8"]).connect("127.0.0.1", held.getsockname()[1], 5)
    with pytest.raises(ConnectFailed):
        await GUARD.connect("no-such-host.invalid", 25, 5)
    with pytest.raises(ConnectFailed):
        await GUARD.connect("x" * 80 + ".example", 25, 5)  # a label that IDNA refuses
