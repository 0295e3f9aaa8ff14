"""Builds programs of classic BPF that drop the packets of some addresses, or of all.

A filter on a listening socket drops the packets that begin a connection; those that are accepted have gone
another way. An IPv6 address stands for its network of 64 bits, which is what one machine can have for itself.

Source: the Linux kernel's filter.rst; RFC 791 and RFC 8200 for the headers.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection
from typing import Final

_NETWORK_HEADER: Final = 0x1_0000_0000 - 0x10_0000
"""``SKF_NET_OFF``: offsets from here are in the header of IP; the packet itself begins with that of TCP."""
_LOAD_WORD, _LOAD_BYTE, _AND, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x30, 0x54, 0x15, 0x06
_VERSION_BITS: Final = 0xF0
_VERSION_4: Final = 0x40
_SOURCE_4: Final = 12
_SOURCE_6: Final = 8
_ALL: Final = 0xFFFF_FFFF
INSTRUCTION_BYTES: Final = 8
_DROP: Final = struct.pack("HBBI", _RETURN, 0, 0, 0)
_PASS: Final = struct.pack("HBBI", _RETURN, 0, 0, _ALL)


def drop_all() -> bytes:
    """Return a program of one instruction that passes on no byte of a packet."""
    return _DROP


def drop_from(ips: Collection[str]) -> bytes:
    """Return a program that drops the packets from these addresses and passes all others."""
    addresses = [ipaddress.ip_address(ip.partition("%")[0]) for ip in ips]
    fours = sorted({int(each) for each in addresses if each.version == 4})
    sixes = sorted({int(each) >> 64 for each in addresses if each.version == 6})
    four = _load(_SOURCE_4) + b"".join(_drop_if_equal(each) for each in fours) + _PASS
    six = b"".join(_drop_network(each) for each in sixes) + _PASS
    skipped = len(four) // INSTRUCTION_BYTES
    version = (
        struct.pack("HBBI", _LOAD_BYTE, 0, 0, _NETWORK_HEADER)
        + struct.pack("HBBI", _AND, 0, 0, _VERSION_BITS)
        + struct.pack("HBBI", _JUMP_IF_EQUAL, 0, skipped, _VERSION_4)
    )
    return version + four + six


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", _LOAD_WORD, 0, 0, _NETWORK_HEADER + offset)


def _drop_if_equal(word: int) -> bytes:
    return struct.pack("HBBI", _JUMP_IF_EQUAL, 0, 1, word) + _DROP


def _drop_network(network: int) -> bytes:
    """Drop the packet if the first half of its source is this network: two words of 32 bits."""
    low = _load(_SOURCE_6 + 4) + _drop_if_equal(network & _ALL)
    past = len(low) // INSTRUCTION_BYTES
    return _load(_SOURCE_6) + struct.pack("HBBI", _JUMP_IF_EQUAL, 0, past, network >> 32) + low
