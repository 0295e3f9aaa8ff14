"""Which sockets hold a port, and which processes they belong to."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from fleetlm.transport import port_holders
from fleetlm.transport.port_holders import PortHolder, find_holders, parse_line, read_command

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has the tables")
HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
LISTENS = (
    "   0: 0200007F:1112 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 501 1 0\n"
)
ACCEPTED = (
    "   1: 0200007F:1112 0300007F:D431 01 00000000:00000000 00:00000000 00000000  1000        0 502 1 0\n"
)
DIALS = "   2: 0200007F:1113 0300007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 503 1 0\n"
CLOSED = "   3: 0200007F:1114 0300007F:D431 06 00000000:00000000 03:000014F4 00000000     0        0 0 3 0\n"
EVERYWHERE = f"   0: {'0' * 32}:1115 {'0' * 32}:0000 0A 0:0 0:0 0 33 0 504 1\n"
SEVEN = f"   1: 000000FD000000000000000007000000:1116 {'0' * 32}:0000 0A 0:0 0:0 0 0 0 505 1\n"
PORTS = range(4370, 4386)


@pytest.fixture
def proc(tmp_path: Path) -> str:
    """A proc file system in which process 12 has sockets, process 13 too, and process 14 cannot be seen."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "tcp").write_text(HEAD + LISTENS + ACCEPTED + DIALS + CLOSED)
    (tmp_path / "net" / "tcp6").write_text(HEAD + EVERYWHERE + SEVEN)
    for pid, command, inodes in (
        (12, b"/usr/bin/python\0-m\0fleetlm\0start\0", (501, 9)),
        (13, b"", (501, 503)),
    ):
        folder = tmp_path / str(pid) / "fd"
        folder.mkdir(parents=True)
        (folder.parent / "cmdline").write_bytes(command)
        (folder.parent / "comm").write_text("kworker\n")
        for number, inode in enumerate(inodes):
            (folder / str(number)).symlink_to(f"socket:[{inode}]")
        (folder / "7").symlink_to("/dev/null")
    (tmp_path / "14").mkdir()
    (tmp_path / "self").mkdir()
    return str(tmp_path)


def test_a_port_is_held_by_the_socket_that_listens_and_its_first_process(proc: str) -> None:
    [found] = find_holders([4370], "127.0.0.2", proc)
    assert found == PortHolder(4370, "127.0.0.2", True, 1000, 501, 12, "python -m fleetlm start")


def test_a_connection_holds_its_port_where_no_program_listens(proc: str) -> None:
    [found] = find_holders([4371], "127.0.0.2", proc)
    assert (found.is_listening, found.pid, found.command) == (False, 13, "kworker")


def test_a_connection_that_is_closed_holds_nothing(proc: str) -> None:
    assert find_holders([4372], None, proc) == []


def test_a_socket_on_all_addresses_holds_its_port_on_each_and_its_process_may_be_hidden(proc: str) -> None:
    [found] = find_holders([4373], "10.0.0.9", proc)
    assert (found.ip, found.uid, found.pid, found.command) == ("::", 33, None, "")


def test_a_socket_on_another_address_holds_nothing_here(proc: str) -> None:
    assert find_holders(PORTS, "fd00::8", proc) == find_holders([4373], "fd00::8", proc)
    assert [each.port for each in find_holders(PORTS, "fd00::7", proc)] == [4373, 4374]


def test_without_an_address_every_one_counts(proc: str) -> None:
    assert [each.port for each in find_holders(PORTS, None, proc)] == [4370, 4371, 4373, 4374]
    assert find_holders(PORTS, "0.0.0.0", proc) == find_holders(PORTS, None, proc)


def test_the_search_for_processes_has_an_end(proc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(port_holders, "MAX_DESCRIPTORS", 0)
    assert find_holders([4370], "127.0.0.2", proc)[0].pid is None
    monkeypatch.setattr(port_holders, "MAX_DESCRIPTORS", 100)
    monkeypatch.setattr(port_holders, "MAX_PROCESSES", 0)
    assert find_holders([4370], "127.0.0.2", proc)[0].pid is None


def test_a_system_without_these_tables_names_nothing(tmp_path: Path) -> None:
    assert find_holders(PORTS, None, str(tmp_path / "none")) == []
    assert (
        port_holders.add_processes([PortHolder(1, "::", True, 0, 5)], str(tmp_path / "none"))[0].pid is None
    )


@pytest.mark.parametrize(
    "line", ["", "nonsense\n", "0: xyz:1112 0:0 0A 0 0 0 0 0 1", "0: 02:zz 0 0A", LISTENS.replace("501", "x")]
)
def test_a_line_that_cannot_be_read_is_passed_over(line: str) -> None:
    assert parse_line(line) is None


def test_an_ipv4_address_in_the_table_of_ipv6_is_an_ipv4_address() -> None:
    mapped = "0: 0000000000000000FFFF00000200007F:1112 0:0 0A 0:0 0:0 0 0 0 505 1\n"
    found = parse_line(mapped)
    assert found is not None
    assert found.ip == "127.0.0.2"


def test_a_long_command_is_cut_and_what_cannot_be_printed_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "5").mkdir()
    (tmp_path / "5" / "cmdline").write_bytes(b"python\0-c\0import x\nx.y()\x1b[2J\0" + b"a" * 500)
    command = read_command(5, str(tmp_path))
    assert len(command) == port_holders.MAX_COMMAND_CHARS
    assert command.startswith("python -c import x x.y() [2J aaa")
    assert command.endswith("…")
    assert read_command(6, str(tmp_path)) == ""


@linux
def test_this_process_and_a_child_are_found_on_real_sockets() -> None:
    child = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); "
        "print(s.getsockname()[1], flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    with process, socket.create_server(("127.0.0.1", 0)) as mine:
        ports = [mine.getsockname()[1], int(process.stdout.readline())]
        found = {each.port: each for each in find_holders(ports, "127.0.0.1")}
        process.stdin.close()
    assert [found[port].pid for port in ports] == [os.getpid(), process.pid]
    assert found[ports[1]].command.startswith(f"{Path(sys.executable).name} -c import")
