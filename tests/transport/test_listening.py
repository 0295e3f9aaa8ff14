"""A port belongs to one process: the first free one of a range is taken, and the kernel is the registry."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator

import pytest

from fleetlm.errors import StartFailed
from fleetlm.settings import Settings
from fleetlm.transport.listening import Listening, take_port
from fleetlm.transport.zeromq import ZmqTransport
from tests.support.transport_rig import free_ip

FIRST = 14_700
PORTS = range(FIRST, FIRST + 3)


@contextlib.contextmanager
def taken(ip: str, ports: range = PORTS) -> Iterator[Listening]:
    listening = take_port(ip, ports)
    try:
        yield listening
    finally:
        listening.close()


def test_the_first_free_port_is_taken_and_a_full_range_is_an_error() -> None:
    ip = free_ip()
    with taken(ip) as one, taken(ip) as two, taken(ip) as three:
        assert [one.port, two.port, three.port] == list(PORTS)
        with pytest.raises(OSError, match="in use") as caught:
            take_port(ip, PORTS)
        assert caught.value.errno == errno.EADDRINUSE
    with taken(ip) as again:
        assert again.port == FIRST


def test_a_hole_is_filled() -> None:
    ip = free_ip()
    with taken(ip) as one, taken(ip) as two, taken(ip):
        two.close()
        with taken(ip) as successor:
            assert successor.port == FIRST + 1
        assert one.port == FIRST


def test_a_port_of_all_addresses_is_taken_on_each_of_them_and_the_other_way_round() -> None:
    ip = free_ip()
    with taken("*") as everywhere:
        assert everywhere.ips == ()
        with taken(ip) as here:
            assert here.port != everywhere.port
            with taken("*") as another:
                assert another.port not in (here.port, everywhere.port)


def test_the_two_families_of_loopback_are_two_addresses() -> None:
    with taken("127.0.0.1") as four:
        try:
            with taken("::1") as six:
                assert six.port == four.port
        except OSError as error:
            pytest.skip(f"no IPv6: {error}")


def test_the_port_of_an_outgoing_connection_counts_as_taken() -> None:
    ip = free_ip()
    with socket.create_server((ip, FIRST + 500)), socket.socket() as outgoing:
        outgoing.bind((ip, FIRST))
        outgoing.connect((ip, FIRST + 500))
        with taken(ip) as listening:
            assert listening.port == FIRST + 1


def test_a_port_can_be_taken_again_while_former_connections_are_in_time_wait() -> None:
    ip = free_ip()
    with taken(ip) as first:
        [(_, listener)] = first.sockets()
        with socket.create_connection((ip, FIRST)):
            listener.setblocking(True)
            accepted, _ = listener.accept()
            accepted.close()  # This end closes first, so it is the one in TIME_WAIT.
    with taken(ip) as again:
        assert again.port == FIRST


async def test_a_transport_that_was_bound_and_never_started_gives_its_port_back() -> None:
    ip = free_ip()
    transport, other = ZmqTransport(Settings()), ZmqTransport(Settings())
    assert await transport.bind(ip, PORTS) == FIRST
    with pytest.raises(StartFailed):
        await other.bind(ip, PORTS[:1])
    with pytest.raises(RuntimeError):
        await transport.bind(ip, PORTS)
    await transport.close()
    await transport.close()
    assert await other.bind(ip, PORTS[:1]) == FIRST
    await other.close()
