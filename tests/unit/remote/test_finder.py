"""Where `fleetlm remote` looks for the sockets of nodes."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetlm.remote import finder, protocol
from fleetlm.remote.protocol import SocketFile

UID = os.getuid()
NAME = "fleetlm@10.0.0.7"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node whose TMPDIR is not that of this environment, in a /proc with its process."""
    known = protocol.folders
    folder = Path("/private") / f"fleetlm-{UID}"
    monkeypatch.setattr(
        protocol,
        "folders",
        lambda env, uid: [each for each in known(env, uid) if each.startswith("/private")],
    )
    monkeypatch.setattr(finder, "_find_folders_of_others", lambda: iter(()))
    process = tmp_path / "proc" / "12"
    root = process / "root"
    (process).mkdir(parents=True)
    (process / "environ").write_bytes(b"HOME=/\0TMPDIR=/private\0broken\0")
    here = root / folder.relative_to("/")
    here.mkdir(parents=True)
    here.chmod(0o700)
    real = finder._find_folders_of_processes
    monkeypatch.setattr(finder, "_find_folders_of_processes", lambda uid: real(uid, str(tmp_path / "proc")))
    with socket.socket(socket.AF_UNIX) as listener:
        with protocol.SocketAddress(str(here / protocol.socket_name(NAME, 12))) as address:
            listener.bind(address)
        listener.listen()
        yield here


def test_a_node_with_another_temporary_folder_is_found_through_its_process(elsewhere: Path) -> None:
    [found] = finder.discover({}, UID)
    assert (found.node, found.pid, found.folder) == (NAME, 12, str(elsewhere))


def test_a_folder_that_is_not_safe_is_passed_over(elsewhere: Path) -> None:
    elsewhere.chmod(0o755)
    assert finder.discover({}, UID) == []


def test_a_folder_that_another_user_has_made_hides_no_node(
    elsewhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planted = tmp_path / "planted\x1b[2J"
    planted.mkdir(mode=0o700)
    planted.chmod(0o777)
    known = protocol.folders
    monkeypatch.setattr(protocol, "folders", lambda env, uid: [str(planted)] if not env else known(env, uid))
    [found] = finder.discover({}, UID)
    assert found.folder == str(elsewhere)
    said = capsys.readouterr().err
    assert "a folder was passed over" in said
    assert "planted\\x1b[2J is open to other users" in said
    elsewhere.chmod(0o755)
    with pytest.raises(finder.RemoteFailure, match="is open to other users") as refused:
        finder.discover({}, UID)
    assert refused.value.code == finder.NOT_ALLOWED


def test_a_folder_in_the_home_of_the_user_is_the_last_place() -> None:
    assert protocol.folders({"HOME": "/home/ada/"}, 7)[-1] == "/home/ada/.fleetlm"
    assert protocol.folders({"HOME": "relative"}, 7)[-1] == "/dev/shm/fleetlm-7"


def test_a_process_of_another_user_is_not_looked_into(elsewhere: Path) -> None:
    assert elsewhere.exists()
    if UID == 0:
        pytest.skip("root may look into every process")
    assert finder.discover({}, UID + 1) == []


def test_one_folder_of_many_processes_is_found_once(elsewhere: Path) -> None:
    twin = elsewhere.parents[2].parent / "13"
    twin.mkdir()
    (twin / "environ").write_bytes(b"TMPDIR=/private\0")
    (twin / "root").symlink_to(elsewhere.parents[1])
    assert len(finder.discover({}, UID)) == 1


def test_a_system_without_proc_has_no_more_folders(tmp_path: Path) -> None:
    assert list(finder._find_folders_of_processes(UID, str(tmp_path / "none"))) == []


def test_no_node_says_where_sockets_were_searched() -> None:
    with pytest.raises(finder.RemoteFailure, match="searched in") as failure:
        finder.choose([], None)
    assert failure.value.code == finder.NO_NODE
    for folder in protocol.folders(os.environ, UID):
        assert folder in failure.value.text


# ── several nodes on one machine ─────────────────────────────────────────────────────────────────

RANGE = {"FLEETLM_NODE_PORT": "4370"}
HOST = [
    SocketFile("/run", NAME, 11),
    SocketFile("/run", f"{NAME}:4371", 12),
    SocketFile("/run", f"{NAME}:4373", 13),
    SocketFile("/run", "fleetlm@fd00::1:4370", 14),  # an address that looks as if it had a port
    SocketFile("/run", "fleetlm@[fd00::7]:4379", 15),
]


@pytest.mark.parametrize(
    ("wanted", "pid"),
    [
        (NAME, 11),
        (f"{NAME}:4370", 11),
        (f"{NAME}.11", 11),
        (f"{NAME}:4373", 13),
        ("4371", 12),
        ("1", 12),
        ("3", 13),
        ("9", 15),
        ("4379", 15),
        ("fleetlm@fd00::1:4370", 14),
        ("fleetlm@[fd00::7]:4379", 15),
    ],
)
def test_a_node_is_chosen_by_its_name_its_port_or_its_slot(wanted: str, pid: int) -> None:
    assert finder.choose(HOST, wanted, RANGE).pid == pid


@pytest.mark.parametrize("wanted", ["2", "4372", f"{NAME}:4372", "99999999", "other@10.0.0.7"])
def test_a_node_that_does_not_run_is_said_with_those_that_do(wanted: str) -> None:
    with pytest.raises(finder.RemoteFailure, match=f"no node {wanted} runs") as failure:
        finder.choose(HOST, wanted, RANGE)
    assert failure.value.code == finder.NO_NODE
    assert f"--node {NAME}:4371" in failure.value.text
    assert "other containers" in failure.value.text


def test_two_nodes_on_the_first_port_of_two_addresses_need_a_name() -> None:
    with pytest.raises(finder.RemoteFailure) as failure:
        finder.choose(HOST, "4370", RANGE)
    assert (failure.value.code, failure.value.kind) == (finder.USAGE, "several_nodes")


def test_a_slot_counts_from_the_first_port_of_the_range() -> None:
    others = [SocketFile("/run", NAME, 11), SocketFile("/run", f"{NAME}:5001", 12)]
    assert finder.choose(others, "1", {"FLEETLM_NODE_PORT": "5000"}).pid == 12
    assert finder.choose(others, "0", {"FLEETLM_NODE_PORT": "5000"}).pid == 11
    assert finder.choose(others, "0", {"FLEETLM_NODE_PORT": "nonsense"}).pid == 11


def test_the_list_of_nodes_says_which_process_each_is_and_for_how_long(tmp_path: Path) -> None:
    names = [NAME, f"{NAME}:4371"]
    for name, age_s in zip(names, (300, 5), strict=True):
        path = tmp_path / protocol.socket_name(name, 11)
        path.touch()
        os.utime(path, (time.time() - age_s,) * 2)
    found = [SocketFile(str(tmp_path), name, 11) for name in names]
    with pytest.raises(finder.RemoteFailure) as failure:
        finder.choose([*found, SocketFile(str(tmp_path), "gone@10.0.0.7", 12)], None)
    assert failure.value.text.splitlines()[1:] == [
        f"  --node {NAME}       process 11, up for 5 min",
        f"  --node {NAME}:4371  process 11, up for 5 s",
        "  --node gone@10.0.0.7          process 12, ended",
    ]


def test_two_processes_of_one_name_are_told_apart_by_their_numbers() -> None:
    twins = [SocketFile("/run", NAME, 11), SocketFile("/run", NAME, 12)]
    with pytest.raises(finder.RemoteFailure, match=f"--node {NAME}.12") as failure:
        finder.choose(twins, NAME)
    assert failure.value.code == finder.USAGE
    assert finder.choose(twins, f"{NAME}.12").pid == 12


def test_a_long_name_with_the_longest_address_still_fits() -> None:
    name = f"{'a' * 64}@[fd00:1111:2222:3333:4444:5555:6666:7777]:65535"
    short = protocol.stem(name)
    assert short.endswith("@[fd00:1111:2222:3333:4444:5555:6666:7777]:65535")
    assert short.startswith("a~")
    assert finder.choose([SocketFile("/run", short, 7)], name).pid == 7
