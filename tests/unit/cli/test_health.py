"""`fleetlm health`: what it looks at, whom it asks, and how fast it starts."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleetlm.cli import health
from fleetlm.cli.main import main
from fleetlm.errors import SettingsError
from fleetlm.remote import health_socket
from fleetlm.settings import Settings

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = HEAD + (
    "   0: 0200007F:1112 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    "   1: 0700000A:1115 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1\n"
    "   2: 0800000A:1112 0800000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 3 1\n"
    "   3: 0700000A:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4 1\n"
)
TCP6 = HEAD + (
    "   0: 000000FD000000000000000007000000:1112 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 5 1\n"
)


def asked(*arguments: str) -> health.Asked:
    found = health.parse(list(arguments))
    assert found is not None
    return found


# ── arguments ────────────────────────────────────────────────────────────────────────────────────


def test_the_arguments_are_read_without_argparse() -> None:
    assert not asked().ready, "without a word it looks whether the node is alive"
    assert asked("--live", "--timeout=0.5").timeout_s == 0.5
    found = asked("--ready", "--min-nodes", "3", "--node=fleetlm@10.0.0.7")
    assert (found.ready, found.min_nodes, found.node) == (True, 3, "fleetlm@10.0.0.7")


@pytest.mark.parametrize(
    "arguments",
    ["--live --ready", "--min-nodes 2", "--ready --min-nodes -1", "--ready --min-nodes few", "--timeout 0",
     "--timeout nan", "--timeout inf", "--timeout", "--node", "extra", "--what"],
)  # fmt: skip
def test_wrong_usage_is_explained_by_argparse_and_exit_code_2(
    arguments: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert health.parse(arguments.split()) is None
    with pytest.raises(SystemExit) as leaving:
        main(["health", *arguments.split()])
    assert leaving.value.code == 2
    assert "usage: fleetlm" in capsys.readouterr().err


# ── alive ────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("tcp", TCP), ("tcp6", TCP6)):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(health, "TABLES", (f"{tmp_path}/tcp", f"{tmp_path}/tcp6"))
    return tmp_path


def test_listeners_are_read_from_the_kernels_tables() -> None:
    assert health.parse_listeners(TCP, 4370, 4385) == [("127.0.0.2", 4370), ("10.0.0.7", 4373)]
    assert health.parse_listeners(TCP6, 4370, 4370) == [("fd00::7", 4370)]
    assert health.parse_listeners(TCP, 9, 9) == []


@pytest.mark.parametrize(
    "table", ["", HEAD, HEAD + "nonsense\n", HEAD + "0: xyz:1112 0:0 0A\n", HEAD + "0: 02:zz 0 0A"]
)
def test_a_table_that_cannot_be_read_names_no_listener(table: str) -> None:
    assert health.parse_listeners(table, 4370, 4370) == []


@pytest.mark.parametrize(
    ("node", "env", "is_alive"),
    [
        (None, {}, True),
        (None, {"FLEETLM_NODE_PORT": "4371-4372"}, False),
        (None, {"FLEETLM_NODE_SLOT": "3"}, True),
        (None, {"FLEETLM_NODE_SLOT": "4"}, False),
        ("fleetlm@127.0.0.2", {}, True),
        ("fleetlm@10.0.0.7", {}, False),
        ("fleetlm@10.0.0.7:4373", {}, True),
        ("fleetlm@10.0.0.7", {"FLEETLM_NODE_PORT": "4373-4380"}, True),
        ("fleetlm@127.0.0.2", {"FLEETLM_NODE_SLOT": "3"}, True),
        ("fleetlm@127.0.0.2", {"FLEETLM_NODE_PORT": "4373", "DNS_CLUSTER_QUERY": "a, _f._tcp.b"}, True),
        ("fleetlm@10.0.0.8", {}, False),  # a connection, not a listener
        ("fleetlm@fd00::7", {}, True),
        ("fleetlm@[fd00::7]:4370", {}, True),
        ("fleetlm@[fd00::7]:4371", {}, False),
    ],
)
def test_a_node_is_alive_while_a_process_listens_on_its_port(
    tables: Path, node: str | None, env: dict[str, str], is_alive: bool
) -> None:
    question = asked("--live")
    question.node = node
    found, text = health.is_live(question, env)
    assert (found, text.startswith("alive: ")) == (is_alive, is_alive)


def test_without_tables_the_kernel_is_asked_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TABLES", ("/nowhere/tcp",))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        env = {"FLEETLM_NODE_PORT": str(listener.getsockname()[1])}
        assert health.is_live(asked(), env)[0]
    assert not health.is_live(asked(), env)[0]


PORTS = (
    None, "4370", "4370-4377", " 4370 - 4377 ", "4380-4370", "4370-", "-4370", "1-65535", "1-256", "1-257",
    "0", "65536", "x", "", "4370-4370", "4_370", "+4370", "٤٣٧٠", "4370-4377-4380", "4370,4371", "004370",
)  # fmt: skip
SLOTS = (None, "0", "3", "15", "16", "-1", "two", "", " 1 ", "1.0", "+1", "01")
QUERIES = (None, "worker", "a, _fleetlm._tcp.workers", "127.0.0.1,127.0.0.2")


@pytest.mark.parametrize("ports", PORTS)
def test_ports_are_those_that_a_node_of_this_environment_would_use(ports: str | None) -> None:
    for slot, query in itertools.product(SLOTS, QUERIES):
        given = {"FLEETLM_NODE_PORT": ports, "FLEETLM_NODE_SLOT": slot, "DNS_CLUSTER_QUERY": query}
        env = {name: text for name, text in given.items() if text is not None}
        try:
            settings = Settings.from_env(env)
        except SettingsError:
            with pytest.raises(health.BadSetting):
                health.read_ports(env)
            continue
        first, last = settings.node_ports
        if settings.node_slot is not None:
            first = last = first + settings.node_slot
        assert health.read_ports(env) == (first, last, settings.base_port), env
    assert Settings().node_ports == health.DEFAULT_PORTS


@pytest.mark.parametrize(
    "env",
    [
        {"FLEETLM_NODE_PORT": "many"},
        {"FLEETLM_NODE_PORT": "0"},
        {"FLEETLM_NODE_PORT": "70000"},
        {"FLEETLM_NODE_PORT": "4380-4370"},
        {"FLEETLM_NODE_SLOT": "16"},
        {"FLEETLM_NODE_SLOT": "-1"},
    ],
)
@pytest.mark.parametrize("kind", ["--live", "--ready"])
def test_a_setting_that_cannot_be_used_is_exit_code_78(
    kind: str, env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    assert main(["health", kind]) == 78
    assert next(iter(env)) in capsys.readouterr().err


def test_a_name_that_is_none_is_exit_code_78(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--node", "10.0.0.7"]) == 78
    assert "not a name such as fleetlm@10.0.0.7" in capsys.readouterr().err


# ── ready ────────────────────────────────────────────────────────────────────────────────────────

UNIX = (
    "Num       RefCount Protocol Flags    Type St Inode Path\n"
    "0000000000000000: 00000002 00000000 00010000 0001 01 11 @fleetlm-health/fleetlm@10.0.0.7:4371\n"
    "0000000000000000: 00000002 00000000 00010000 0001 01 12 @fleetlm-health/fleetlm@[fd00::7]:4370\n"
    "0000000000000000: 00000003 00000000 00000000 0001 03 13 @fleetlm-health/fleetlm@10.0.0.9:4370\n"
    "0000000000000000: 00000002 00000000 00010000 0001 01 14 /run/other.sock\n"
    "0000000000000000: 00000003 00000000 00000000 0001 03 15\n"
    "0000000000000000: 00000003 00000000 zzz 0001 03 15 @fleetlm-health/fleetlm@10.0.0.9:4370\n"
)
FIRST, SECOND = "\0fleetlm-health/fleetlm@10.0.0.7:4371", "\0fleetlm-health/fleetlm@[fd00::7]:4370"


def test_the_nodes_of_a_container_are_found_in_the_kernels_table() -> None:
    assert health_socket.parse_table(UNIX) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("node", "ports", "selected"),
    [
        (None, "4370-4385", [FIRST, SECOND]),
        (None, "4370", [SECOND]),
        ("fleetlm@10.0.0.7:4371", "4370-4385", [FIRST]),
        ("fleetlm@fd00::7", "4370-4385", [SECOND]),
        ("other@10.0.0.7:4371", "4370-4385", []),
        ("4371", "4370-4385", [FIRST]),
        ("1", "4370-4385", [FIRST]),
        ("0", "4370-4385", [SECOND]),
        ("5", "4370-4385", []),
    ],
)
def test_the_nodes_that_are_meant_are_asked(node: str | None, ports: str, selected: list[str]) -> None:
    assert health.select([FIRST, SECOND], node, {"FLEETLM_NODE_PORT": ports}) == selected


def test_a_long_basename_is_cut_to_fit_into_the_address() -> None:
    address = health_socket.address_of("b" * 64, "2001:db8:1234:1234:1234:1234:1234:1234", 65_535)
    assert len(address) == 1 + health_socket.MAX_NAME_BYTES
    assert health_socket.port_of(address) == 65_535
    assert health_socket.port_of("\0other") == 0


@contextlib.contextmanager
def answering(name: str, *replies: bytes) -> Iterator[list[bytes]]:
    """Let a socket answer as a node does: each connection gets the next reply; none for an empty one."""
    requests: list[bytes] = []
    held = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(health_socket.address_of(name, "10.0.0.7", os.getpid() % 60_000 + 1))
        listener.listen()

        def serve() -> None:
            for reply in replies:
                client, _ = listener.accept()
                requests.append(client.recv(100))
                if reply:
                    client.sendall(reply)
                    client.close()
                else:
                    held.append(client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield requests
        thread.join(5)
    for client in held:
        client.close()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract sockets")
@pytest.mark.parametrize(
    ("reply", "code", "words"),
    [
        (b"1 a@10.0.0.7 is ready, connected to 2\n", 0, "is ready, connected to 2"),
        (b"0 a@10.0.0.7 is not ready: it is draining\n", 1, "it is draining"),
        (b"1 no end of line", 1, "gives no answer"),
        (b"", 1, "did not answer in time"),
    ],
)
def test_each_node_is_asked_once_and_its_words_are_printed(
    reply: bytes, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETLM_NODE_PORT", str(os.getpid() % 60_000 + 1))
    with answering("a", reply) as requests:
        assert (
            main(["health", "--ready", "--min-nodes", "2", "--timeout", "0.2" if not reply else "5"]) == code
        )
    assert requests == [b"ready 2\n"]
    printed = capsys.readouterr()
    assert words in (printed.err if code else printed.out)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract sockets")
def test_a_node_that_does_not_run_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    port = str(os.getpid() % 60_000 + 1)
    monkeypatch.setenv("FLEETLM_NODE_PORT", port)
    for arguments, words in (((), "no node runs"), (("--node", port), f"no node {port} runs")):
        assert main(["health", "--ready", *arguments]) == 1
        assert f"{words} in this container" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has abstract sockets")
def test_all_nodes_of_a_container_must_be_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLEETLM_NODE_PORT", str(os.getpid() % 60_000 + 1))
    with (
        answering("a", b"1 a is ready\n", b"1 a is ready\n"),
        answering("b", b"0 b drains\n", b"1 b is ready\n"),
    ):
        assert main(["health", "--ready"]) == 1
        assert capsys.readouterr().err == "b drains\n"
        assert main(["health", "--ready"]) == 0
        assert capsys.readouterr().out == "a is ready\nb is ready\n"


# ── the start ────────────────────────────────────────────────────────────────────────────────────

SCRIPT = """
import sys
before = set(sys.modules)
sys.argv = ["fleetlm", "health", *sys.argv[1:]]
import fleetlm.__main__ as run
code = run.main()
print(code, *sorted(name for name in set(sys.modules) - before if not name.startswith("fleetlm")))
"""


@pytest.mark.parametrize("kind", ["--live", "--ready"])
def test_it_imports_next_to_nothing(kind: str) -> None:
    """Each module of this list would cost a container processor time every few seconds."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        capture_output=True, text=True, check=True, timeout=20,
        env={**os.environ, "FLEETLM_NODE_PORT": "1"}, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    code, *loaded = done.stdout.split()
    assert (code, set(loaded)) == ("1", {"__future__", "_socket"})
