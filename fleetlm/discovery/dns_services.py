"""Decides what the SRV records of a service and the addresses of its hosts mean. Pure.

The four outcomes are those of `fleetlm.core.dns_answers`:

* ADDRESSES: the SRV records are whole, and so is what is known of each host. A host without an address is
  passed over, as an unusable address is.
* EMPTY: there is no SRV record, or only one whose target is ``.``, which says that there is no such service.
* PARTIAL: there are addresses, but the SRV records were truncated, or the question for a host failed.
* FAILED: there are SRV records and no address. They say that there are nodes, so the answer is never EMPTY.

A host whose addresses are in the additional section is not asked for further ones: a server that sends
addresses at all sends those of both families, and a node needs one only.

Source: RFC 2782; differs: priority and weight choose one server of several there, and every node is a peer
here, so they are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fleetlm.core.dns_answers import FAMILIES, MAX_ADDRESSES, Answer, Outcome, count_addresses, sift
from fleetlm.discovery.dns_search import (
    VERSIONS,
    Candidate,
    Records,
    RecordType,
    Service,
    find_whole_families,
    join_details,
)
from fleetlm.names import canonical_ip, endpoint
from fleetlm.records import Record

MAX_ADDRESSES_OF_HOST = 8
"""Addresses taken of one host. A hostile answer could otherwise combine a thousand addresses of one host with
a thousand ports."""
MAX_HOSTS_NAMED = 3
"""Hosts that a remark names; further ones are only counted."""


class Host(Record):
    """What is known of the target of SRV records.

    Attributes:
        name: its absolute name.
        addresses: addresses as text, neither checked nor sorted.
        trouble: why it may have further addresses; "" if all are known.
        whole_families: the IP versions whose addresses are all known.
    """

    name: str
    addresses: tuple[str, ...] = ()
    trouble: str = ""
    whole_families: tuple[int, ...] = FAMILIES


def read_host(name: str, candidate: Candidate | None) -> Host:
    """Return what the answers for a host say; None says that it was not asked for."""
    if candidate is None:
        return Host(name, (), "not asked in time", ())
    addresses = tuple(address for records in candidate.found.values() for address in records.addresses)
    trouble = candidate.trouble
    if addresses:
        trouble = {family: records for family, records in trouble.items() if not records.is_unserved}
    elif candidate.is_unknown:
        trouble = {}
    return Host(name, addresses, join_details(trouble), find_whole_families([candidate]))


def sum_up(candidates: Sequence[Candidate]) -> Candidate:
    """Return the answers for several hosts as one: a family has failed if it failed for each of them."""
    records: dict[RecordType, Records | None] = {}
    for family in VERSIONS:
        found = [each for candidate in candidates if (each := candidate.found.get(family)) is not None]
        if found:
            records[family] = max(found, key=lambda each: (each.is_some, each.is_whole))
    return Candidate("", records)


def conclude_services(candidate: Candidate, hosts: Mapping[str, Host], remark: str = "") -> Answer:
    """Make the answer of the SRV records of one name.

    Args:
        candidate: the name, which has SRV records.
        hosts: what is known of the targets; one that is missing was not asked for.
        remark: words to add to the detail.
    """
    is_cut = bool(candidate.trouble)
    services = [each for records in candidate.found.values() for each in records.services]
    offered = [each for each in services if each.target != "."]
    if not offered and not is_cut:
        return Answer(Outcome.EMPTY, (), "no such service (the target of its SRV record is .)")
    wanted = dict.fromkeys(each.target for each in offered if each.may_be_used)
    known = [hosts.get(target) or read_host(target, None) for target in wanted]
    ips, passed_over = sift(ip for host in known for ip in host.addresses)
    addresses, remarks = _pair(offered, known, ips)
    portless = [each.target for each in offered if not each.may_be_used]
    without = [host.name for host in known if not (host.addresses or host.trouble)]
    remarks = [
        passed_over,
        *remarks,
        _name_hosts("without an address", without),
        _name_hosts("with port 0, which no node has", dict.fromkeys(portless)),
        remark,
    ]
    troubles = [join_details(candidate.trouble)] if is_cut else []
    troubles += _describe_troubles([host for host in known if host.trouble])
    if not addresses:
        count = _count_hosts(len({each.target for each in offered}))
        detail = ", ".join(filter(None, [f"no address of {count} (SRV)", *remarks]))
        return Answer(Outcome.FAILED, (), f"{detail}: {'; '.join(troubles)}" if troubles else detail)
    useful = sum(bool(host.addresses) for host in known)
    whole = tuple(
        version
        for version in FAMILIES
        if not is_cut and all(version in host.whole_families for host in known)
    )
    detail = f"{count_addresses(len(addresses))} of {_count_hosts(useful)} (SRV)"
    detail = ", ".join(filter(None, [detail, *remarks]))
    if not troubles:
        return Answer(Outcome.ADDRESSES, addresses, detail, whole)
    return Answer(Outcome.PARTIAL, addresses, f"{detail}, but {'; '.join(troubles)}", whole)


def _pair(
    services: Iterable[Service], hosts: Iterable[Host], ips: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Join the usable addresses of each host with its ports, in the order of `Answer.addresses`."""
    rank = {ip: place for place, ip in enumerate(ips)}
    places: dict[str, list[int]] = {}
    remarks = []
    for host in hosts:
        usable = sorted({rank[ip] for ip in map(canonical_ip, host.addresses) if ip in rank})
        if len(usable) > MAX_ADDRESSES_OF_HOST:
            remarks.append(
                f"took the lowest {MAX_ADDRESSES_OF_HOST} of {len(usable)} addresses of {host.name}"
            )
        places[host.name] = usable[:MAX_ADDRESSES_OF_HOST]
    pairs = {(place, each.port) for each in services if each.may_be_used for place in places[each.target]}
    if len(pairs) > MAX_ADDRESSES:
        remarks.append(f"took the lowest {MAX_ADDRESSES} of {len(pairs)} addresses")
    if len(remarks) > MAX_HOSTS_NAMED:
        remarks = [*remarks[:MAX_HOSTS_NAMED], f"and {len(remarks) - MAX_HOSTS_NAMED} more remarks"]
    return tuple(endpoint(ips[place], port) for place, port in sorted(pairs)[:MAX_ADDRESSES]), remarks


def _describe_troubles(hosts: Sequence[Host]) -> list[str]:
    """Name the first hosts that failed with the reason, and count the others."""
    texts = [f"{host.name} {host.trouble}" for host in hosts[:MAX_HOSTS_NAMED]]
    rest = len(hosts) - MAX_HOSTS_NAMED
    return [*texts, f"{_count_hosts(rest)} more"] if rest > 0 else texts


def _name_hosts(what: str, names: Iterable[str]) -> str:
    """Return ``2 hosts without an address (a., b.)``; "" for no host."""
    listed = list(names)
    if not listed:
        return ""
    more = ", ..." if len(listed) > MAX_HOSTS_NAMED else ""
    return f"{_count_hosts(len(listed))} {what} ({', '.join(listed[:MAX_HOSTS_NAMED])}{more})"


def _count_hosts(number: int) -> str:
    return "1 host" if number == 1 else f"{number} hosts"
