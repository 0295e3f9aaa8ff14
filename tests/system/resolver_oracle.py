"""Looks names up with the C library and with fleetlm, with the same files in /etc, and prints both as JSON.

It runs in namespaces of its own: it mounts files over those in /etc, and serves DNS on port 53 of loopback.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from fleetlm.discovery.dns import DnsDiscovery
from fleetlm.testing import DnsServer
from fleetlm.testing.dns_server import Fault, Reply

GOOD, DEAD, CLOSED = "127.77.0.1", "127.77.0.2", "127.77.0.3"
ONE = f"nameserver {GOOD}\n"
POD = f"search ns.svc.test svc.test corp.test\nnameserver {GOOD}\noptions ndots:5 timeout:1 attempts:1\n"
DNS_FIRST = "hosts: dns files\n"
FILES_FIRST = "hosts: files dns\n"
HOSTS = "127.0.0.1 localhost\n127.0.0.9 workers fleet.test\n::1 workers\n"

CASES: dict[str, tuple[str, str, str, str]] = {
    "one server": (ONE, "fleet.test", "", FILES_FIRST),
    "a name with a final dot": (ONE, "fleet.test.", HOSTS, FILES_FIRST),
    "the hosts file first": (ONE, "fleet.test", HOSTS, FILES_FIRST),
    "DNS first": (ONE, "fleet.test", HOSTS, DNS_FIRST),
    "only the hosts file knows it, DNS first": (ONE, "workers", HOSTS, DNS_FIRST),
    "only the hosts file knows it": (ONE, "WORKERS", HOSTS, FILES_FIRST),
    "only the hosts file is asked": (ONE, "fleet.test", "", "hosts: files\n"),
    "only the hosts file is asked, and knows it": (ONE, "fleet.test", HOSTS, "hosts: files\n"),
    "a missing name ends the search": (ONE, "fleet.test", "", "hosts: files [NOTFOUND=return] dns\n"),
    "in lower case": (ONE, "fleet.test", "", "hosts: files[notfound=return]dns\n"),
    "what is found gives way": (ONE, "fleet.test", HOSTS, "hosts: files [SUCCESS=continue] dns\n"),
    "two lines, the last without files": (ONE, "fleet.test", HOSTS, f"{FILES_FIRST}hosts: dns\n"),
    "two lines, the last with files": (ONE, "fleet.test", HOSTS, f"hosts: dns\n{FILES_FIRST}"),
    "another case": (ONE, "fleet.test", HOSTS, "HOSTS: dns\n"),
    "a service in another case": (ONE, "fleet.test", HOSTS, "hosts: Files dns\n"),
    "without a colon": (ONE, "fleet.test", HOSTS, "hosts dns\n"),
    "what looks like a comment": (ONE, "fleet.test", "", "hosts: files # dns\n"),
    "a host name instead of an address": (f"nameserver ns1\n{ONE}", "fleet.test", "", FILES_FIRST),
    "an address with a port": (f"nameserver {DEAD}:53\n{ONE}", "fleet.test", "", FILES_FIRST),
    "a comment after the address": (f"nameserver {GOOD} # a comment\n", "fleet.test", "", FILES_FIRST),
    "an address with a port, as dnsmasq has it": (
        f"nameserver {DEAD}#5\n{ONE}",
        "fleet.test",
        "",
        FILES_FIRST,
    ),
    "no space after the keyword": (f"nameserver\n{ONE}", "fleet.test", "", FILES_FIRST),
    "a bad search domain": (f"search corp..test\n{ONE}", "fleet.test", "", FILES_FIRST),
    "a number that is none": (f"{ONE}options ndots:x\n", "fleet.test", "", FILES_FIRST),
    "nobody listens on the first": (f"nameserver {CLOSED}\n{ONE}", "fleet.test", "", FILES_FIRST),
    "the first is silent": (f"nameserver {DEAD}\n{ONE}options timeout:1\n", "fleet.test", "", FILES_FIRST),
    "the search ends at the first that exists": (POD, "worker", "", FILES_FIRST),
    "an outer domain is refused": (POD, "other.test", "", FILES_FIRST),
    "TCP only": (f"{ONE}options use-vc\n", "tcp.test", "", FILES_FIRST),
    "no address": (ONE, "nobody.test", "", FILES_FIRST),
    "AAAA is refused": (ONE, "four.test", "", FILES_FIRST),
    "AAAA is not implemented": (ONE, "old.test", "", FILES_FIRST),
}


def look_up_with_the_c_library(name: str) -> list[str]:
    try:
        return sorted({str(each[4][0]) for each in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)})
    except OSError:
        return []


def main() -> int:
    for key in ("RES_OPTIONS", "LOCALDOMAIN"):
        os.environ.pop(key, None)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    results = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        DnsServer.in_thread(GOOD, 53) as good,
        DnsServer.in_thread(DEAD, 53) as dead,
    ):
        files = {name: Path(folder, name) for name in ("resolv.conf", "hosts", "nsswitch.conf")}
        for name, path in files.items():
            path.touch()
            subprocess.run(["mount", "--bind", str(path), f"/etc/{name}"], check=True)
        dead.behave(Reply.DROP)
        for name in ("fleet.test", "other.test", "tcp.test", "four.test", "old.test"):
            good.set(name, ["127.0.0.2", "127.0.0.3"])
        good.set("worker.ns.svc.test", ["127.0.0.4"])
        good.set("worker.corp.test", ["::1"])
        for name in ("other.test.ns.svc.test", "other.test.svc.test", "other.test.corp.test"):
            good.behave(Reply.REFUSED, name)
        good.behave(Fault(Reply.DROP, tcp_reply=Reply.ANSWER), "tcp.test")
        good.behave(Reply.REFUSED, "four.test", "AAAA")
        good.behave(Reply.NOTIMP, "old.test", "AAAA")
        for title, (conf, name, hosts, nsswitch) in CASES.items():
            for path, text in zip(files.values(), (conf, hosts, nsswitch), strict=True):
                path.write_text(text)
            found = look_up_with_the_c_library(name)
            answer = asyncio.run(DnsDiscovery(name).lookup())
            results[title] = found, list(answer.addresses), f"{answer.outcome.name}: {answer.detail}"
    print(json.dumps(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
