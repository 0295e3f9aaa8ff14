"""Reads the resolver's configuration, /etc/resolv.conf, as the C library does.

A line that cannot be read is passed over, as the C library does, and named in `ResolverConfig.remarks`:
one odd line must not make every lookup fail while another line names a good server.

Source: res_init.c of glibc 2.36 and resolv.conf(5); differs: a carriage return ends a line too, a number
that cannot be read leaves the default in place instead of 0, and a search domain that cannot be read is
left out instead of ending the search.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

import dns.exception
import dns.name

from fleetlm.discovery.dns_search import RecordType
from fleetlm.records import Record

DNS_PORT = 53
MAX_SERVERS = 3
"""Name servers that are used; further ones are ignored. Source: MAXNS of glibc."""
MAX_NDOTS = 15
MAX_TIMEOUT_S = 30
MAX_ATTEMPTS = 5
"""Higher values of ``ndots``, ``timeout`` and ``attempts`` count as these. Source: resolv.conf(5)."""
LOCAL_SERVER = "127.0.0.1"
"""The server that is asked where the file names none. Source: resolv.conf(5)."""


class ServerAddress(Record):
    """Where a name server listens.

    Attributes:
        ip: its address, without a scope.
        scope: the interface of a link-local IPv6 address, as a name or a number; "" without one. It is
            resolved at each use, since an interface may appear late.
        port: its port.
    """

    ip: str
    scope: str = ""
    port: int = DNS_PORT

    def __str__(self) -> str:
        host = f"{self.ip}%{self.scope}" if self.scope else self.ip
        if self.port == DNS_PORT:
            return host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    @property
    def family(self) -> socket.AddressFamily:
        """The family of sockets that reach the server."""
        return socket.AF_INET6 if ":" in self.ip else socket.AF_INET

    def sockaddr(self) -> tuple[str, int] | tuple[str, int, int, int]:
        """Return the address for ``connect``. Raises: OSError if the scope is not an interface."""
        if self.family == socket.AF_INET:
            return self.ip, self.port
        scope = 0
        if self.scope:
            scope = int(self.scope) if self.scope.isdecimal() else socket.if_nametoindex(self.scope)
        return self.ip, self.port, 0, scope


class ResolverConfig(Record):
    """What resolv.conf says, with the C library's defaults.

    Attributes:
        servers: the name servers, in the order of the file; the local machine's if the file names none.
        names_no_server: whether the file names none.
        search: the search domains, each ending with the root. The root alone stands for the name as it is.
        ndots: names with at least so many dots are tried as they are before the search domains.
        timeout_s: seconds to wait for one server, at least 1.
        attempts: how often each server is asked, at least 1.
        rotate: begin with another server at each lookup.
        use_tcp: ask over TCP from the start (``use-vc``).
        single_request: ask for A first, and for AAAA once it is answered.
        no_aaaa: ask for A only.
        no_tld_query: never ask for a name without a dot as it is.
        remarks: what was passed over, as sentences.
    """

    servers: tuple[ServerAddress, ...] = (ServerAddress(LOCAL_SERVER),)
    names_no_server: bool = True
    search: tuple[dns.name.Name, ...] = ()
    ndots: int = 1
    timeout_s: int = 5
    attempts: int = 2
    rotate: bool = False
    use_tcp: bool = False
    single_request: bool = False
    no_aaaa: bool = False
    no_tld_query: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def families(self) -> tuple[RecordType, ...]:
        """The record types that a host is asked for."""
        return ("A",) if self.no_aaaa else ("A", "AAAA")

    def candidates(self, name: dns.name.Name) -> list[dns.name.Name]:
        """Return the absolute names to ask for, in the order of ``search`` and ``ndots``."""
        if name.is_absolute():
            return [name]
        searched = []
        for domain in self.search:
            try:
                searched.append(name.concatenate(domain))
            except dns.name.NameTooLong:
                continue
        as_it_is = name.concatenate(dns.name.root)
        dots = len(name) - 1
        if dots >= self.ndots:
            found = [as_it_is, *searched]
        elif searched and self.no_tld_query and not dots:
            found = searched
        else:
            found = [*searched, as_it_is]
        return list(dict.fromkeys(found))


_FLAGS = {
    "rotate": "rotate",
    "use-vc": "use_tcp",
    "single-request": "single_request",
    "no-aaaa": "no_aaaa",
    "no-tld-query": "no_tld_query",
}
"""Options without a value, and their attributes. Those that change nothing here, such as ``edns0``,
``trust-ad``, ``single-request-reopen`` and unknown ones, are ignored: EDNS is always used, the AD flag is
not read, and each question has its own socket."""
_NUMBERS = {
    "ndots": ("ndots", 0, MAX_NDOTS),
    "timeout": ("timeout_s", 1, MAX_TIMEOUT_S),
    "attempts": ("attempts", 1, MAX_ATTEMPTS),
}
"""Options with a number: attribute, and the lowest and highest value."""
_LEADING_NUMBER = re.compile(r"\+?[0-9]+", re.ASCII)
"""What atoi(3) reads of a text, such as the 2 of ``2,timeout:1``."""


@dataclass(slots=True)
class _Draft:
    """What was read so far."""

    servers: list[ServerAddress] = field(default_factory=list)
    search: list[dns.name.Name] | None = None
    options: dict[str, int | bool] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def read_line(self, line: str, where: str) -> None:
        keyword, *values = line.split() or [""]
        if line[:1] in ("", "#", ";", " ", "\t"):
            return
        if keyword == "nameserver":
            self._read_server(values, where)
        elif keyword in ("search", "domain"):
            self.read_search(values[:1] if keyword == "domain" else values, where)
        elif keyword == "options":
            self.read_options(values, where)

    def _read_server(self, values: list[str], where: str) -> None:
        text = values[0] if values else ""
        server = parse_server(text)
        if server is None:
            what = f'"{text}" is not an IP address' if text else "an address is missing"
            self.remarks.append(f"{where}: passed over the name server, {what}")
        elif len(self.servers) < MAX_SERVERS:
            self.servers.append(server)

    def read_search(self, values: list[str], where: str) -> None:
        self.search = []
        for text in values:
            try:
                domain = dns.name.from_text(text.removeprefix(".") or ".")  # As the C library reads it.
            except (dns.exception.DNSException, ValueError) as error:
                self.remarks.append(f'{where}: passed over the search domain "{text}" ({error})')
            else:
                self.search.append(domain)

    def read_options(self, values: list[str], where: str) -> None:
        for text, following in zip(values, [*values, ""][1:], strict=True):
            option, colon, number = text.partition(":")
            if not colon and option in _FLAGS:
                self.options[_FLAGS[option]] = True
            elif colon and option in _NUMBERS:
                attribute, low, high = _NUMBERS[option]
                found = _LEADING_NUMBER.match(number or following)  # atoi(3) skips the space before it.
                if found:
                    self.options[attribute] = min(max(int(found[0][:9]), low), high)
                else:
                    self.remarks.append(f'{where}: passed over the option "{text}", which has no number')


def parse(
    text: str, *, source: str, environ: Mapping[str, str] | None = None, host_name: str = ""
) -> ResolverConfig:
    """Read the text of a resolv.conf. Never raises: what cannot be read becomes a remark.

    Args:
        text: the file's text; "" if there is no file.
        source: the file's name, for the remarks.
        environ: environment, of which LOCALDOMAIN replaces the search domains and RES_OPTIONS adds options.
        host_name: the host's name; its domain is searched if nothing else names one.
    """
    environ = environ or {}
    draft = _Draft()
    for number, line in enumerate(text.replace("\r", "\n").split("\n") if text else (), 1):
        draft.read_line(line, f"{source} line {number}")
    if "LOCALDOMAIN" in environ:
        draft.read_search(environ["LOCALDOMAIN"].split(), "LOCALDOMAIN")
    draft.read_options(environ.get("RES_OPTIONS", "").split(), "RES_OPTIONS")
    if draft.search is None:
        domain = host_name.partition(".")[2]
        draft.search = []
        if domain:
            draft.read_search([domain], "the host's name")
    return ResolverConfig(
        servers=tuple(draft.servers) or (ServerAddress(LOCAL_SERVER),),
        names_no_server=not draft.servers,
        search=tuple(draft.search),
        remarks=tuple(draft.remarks),
        **draft.options,  # type: ignore[arg-type]  # `_FLAGS` and `_NUMBERS` name attributes of that type
    )


def parse_server(text: str) -> ServerAddress | None:
    """Return the address of a ``nameserver`` line, or None if it is none.

    Takes the short forms of IPv4 addresses that inet_aton(3) takes, such as 127.1, as the C library does.
    """
    ip, _, scope = text.partition("%")
    try:
        return ServerAddress(str(ipaddress.ip_address(ip)), scope)
    except ValueError:
        pass
    try:
        return ServerAddress(socket.inet_ntoa(socket.inet_aton(text)))
    except (OSError, ValueError):  # ValueError: a zero byte, or a letter beyond ASCII
        return None
