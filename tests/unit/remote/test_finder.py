"""Where `fleetlm remote` looks for the sockets of nodes."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetlm.remote import finder, protocol

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
