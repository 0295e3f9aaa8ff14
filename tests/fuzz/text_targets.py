"""Targets for what people, files, name servers and clients of the remote shell write."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
from types import CodeType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import dns.message
import dns.name

from fleetlm import settings as settings_module
from fleetlm.core.dns_answers import MAX_ADDRESSES, sift
from fleetlm.discovery import resolv_conf, system_files
from fleetlm.discovery.dns_exchange import Exchange, NameServer, ServerFailure, _parse
from fleetlm.discovery.dns_search import RecordType
from fleetlm.errors import InvalidName, NodeStopped, SettingsError
from fleetlm.escapes import escape
from fleetlm.names import NodeName, canonical_ip, check_process_name, parse_address
from fleetlm.remote import protocol
from fleetlm.remote.evaluator import Evaluator
from fleetlm.remote.server import _Client
from fleetlm.settings import Settings
from tests.fuzz.inputs import Inputs
from tests.fuzz.wire_targets import in_time

RECORD_TYPES: tuple[RecordType, ...] = ("A", "AAAA", "SRV")
QUERY_ID = 0x1234
QUERY_NAME = "fleet.test."
VARIABLES = tuple(
    variable for variable in settings_module._KNOWN if variable != "FLEETLM_COOKIE_FILE"
)  # No input opens a file.
SECRET_VARIABLES = ("FLEETLM_COOKIE", "FLEETLM_COOKIE_OLD", "FLEETLM_COKIE", "FLEETLM_PSK")


# ── names and settings ───────────────────────────────────────────────────────────────────────────


def fuzz_names(data: bytes) -> None:
    """A name or address is refused, or has one canonical text, which is its own canonical text."""
    text = data.decode(errors="surrogateescape")
    with contextlib.suppress(InvalidName):
        name = in_time(NodeName.parse, text)
        assert NodeName.parse(str(name)) == name
        assert str(name).isprintable()
        assert name.sort_key
    ip = in_time(canonical_ip, text)
    assert ip is None or canonical_ip(ip) == ip
    in_time(parse_address, text)
    with contextlib.suppress(InvalidName):
        assert check_process_name(text).isprintable()


def fuzz_settings(data: bytes) -> None:
    """Settings are refused by SettingsError, or can be shown; neither shows a cookie."""
    source, env = Inputs(data), dict[str, str]()
    while source and len(env) < 4:
        variable = source.choice((*VARIABLES, "FLEETLM_NODE_PROT", "FLEETLM_PORT", "DNS_CLUSTER_QUERRY"))
        env[variable] = source.text(source.number(80))
    public = " ".join(text for variable, text in env.items() if variable not in SECRET_VARIABLES)
    secrets = [env[each].strip() for each in SECRET_VARIABLES if each in env]
    secrets = [secret for secret in secrets if len(secret) >= 16 and secret not in public]
    try:
        read = in_time(Settings.from_env, env)
    except SettingsError as error:
        shown = str(error)
    else:
        shown = f"{read!r} {in_time(read.effective)}"
    assert not any(secret in shown for secret in secrets)


def fuzz_files(data: bytes) -> None:
    """The resolver's files: nothing is raised, and what cannot be read becomes a remark."""
    text = data.decode("utf-8", "replace")
    head, _, tail = text.partition("\x00")
    config = in_time(
        lambda: resolv_conf.parse(text, source="test", environ={"RES_OPTIONS": tail}, host_name=head[:60])
    )
    assert config.servers
    for name in ("fleet", "fleet.test"):
        assert len(config.candidates(dns.name.from_text(name, origin=None))) < 64
    services = in_time(system_files.parse_services, text)
    system_files.reads_hosts_first(services)
    for addresses in in_time(system_files.parse_hosts, text, frozenset({"fleet", "a"})).values():
        in_time(sift, addresses)


# ── answers of name servers ──────────────────────────────────────────────────────────────────────


def fuzz_dns(data: bytes) -> None:
    """An answer to a question, in a packet and over TCP: records, or ServerFailure."""
    kind, wire = RECORD_TYPES[data[0] % 3 if data else 0], struct.pack(">H", QUERY_ID) + data[3:]

    async def exchange(_server: object, query: dns.message.Message) -> dns.message.Message:
        query.id = QUERY_ID
        response = _parse(wire, query)
        if response is None:
            raise EOFError("not a response")
        return response

    with (
        patch("fleetlm.discovery.dns_exchange._exchange_udp", exchange),
        patch("fleetlm.discovery.dns_exchange._exchange_tcp", exchange),
    ):
        asyncio.run(_answered(kind))


async def _answered(kind: RecordType) -> None:
    server = NameServer(resolv_conf.ServerAddress("127.0.0.53"))
    exchange = Exchange(server, dns.name.from_text(QUERY_NAME), kind, attempt=0, use_tcp=False)
    failure = ""
    try:
        records = await exchange.run()
    except ServerFailure as error:
        failure = str(error)
    if exchange.truncated is not None:
        in_time(sift, exchange.truncated.addresses)
    if failure:
        assert escape(failure) == failure
        return
    addresses, remark = in_time(sift, records.addresses)
    assert len(addresses) <= MAX_ADDRESSES
    assert remark.isprintable()
    for service in records.services:
        assert 0 <= service.port < 1 << 16
        in_time(sift, service.addresses)


# ── the remote shell ─────────────────────────────────────────────────────────────────────────────


class _Inert(Evaluator):
    """Compiles what it is asked to evaluate, and does not run it."""

    async def _call(self, code: CodeType) -> Any:
        return None


class _Writer:
    """The client's end: notes the frames that the node writes."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.transport = SimpleNamespace(get_write_buffer_size=lambda: 0, abort=lambda: None)

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass

    async def wait_closed(self) -> None:
        pass


def fuzz_console(data: bytes) -> None:
    """Requests to the remote shell are answered by frames of the protocol; bad ones end the connection."""
    with patch("fleetlm.remote.facts.node_facts", lambda _node: {}):
        asyncio.run(_asked(data))


async def _stopped(timeout_s: float) -> None:
    raise NodeStopped("fleetlm@10.0.0.1", f"before {timeout_s} s")


async def _asked(data: bytes) -> None:
    reader, writer = asyncio.StreamReader(), _Writer()
    node = SimpleNamespace(name="fleetlm@10.0.0.1", overview=_stopped)
    client = _Client(node, reader, writer)  # type: ignore[arg-type]
    client._evaluator = _Inert({"node": node}, client._forward_output)
    reader.feed_data(data)
    reader.feed_eof()
    await client.serve()
    for frame in writer.written:
        length = protocol.body_length(frame[:4], protocol.MAX_FRAME_BYTES)
        assert length == len(frame) - 4
        assert isinstance(json.loads(frame[4:]), dict)
