"""Lookups of a service on virtual time: SRV records, and the hosts that must be asked for."""

from __future__ import annotations

import asyncio

import hypothesis
import hypothesis.strategies as st
import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery.dns_client import TARGETS_AT_ONCE
from fleetlm.discovery.dns_questions import GRACE_S
from fleetlm.discovery.dns_search import Records, Service
from fleetlm.discovery.dns_targets import MAX_TARGETS_ASKED
from fleetlm.names import endpoint
from tests.support.name_servers import (
    FAST_S,
    NO_RECORD,
    NXDOMAIN,
    ONE,
    POD,
    SERVFAIL,
    SILENCE,
    TWO,
    Reply,
    Rig,
    World,
)
from tests.support.session_fakes import virtual

NAME = "_w._tcp.test"


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    world.install(monkeypatch)
    return world


def srv(*targets: str, glue: bool = False, name: str = f"{NAME}.") -> tuple[tuple[str, str], Reply]:
    services = tuple(Service(each, 4370, ("10.0.0.9",) if glue else ()) for each in targets)
    return (name, "SRV"), Records(Outcome.ADDRESSES, services=services)


def fill(world: World, count: int) -> list[str]:
    """A service of that many hosts, none of which is in the additional section."""
    targets = [f"h{n:03}.test." for n in range(count)]
    key, records = srv(*targets)
    world.zone[key] = records
    for n, target in enumerate(targets):
        world.set(target, Records(Outcome.ADDRESSES, (f"10.0.{n // 250}.{n % 250 + 1}",)))
    return targets


def test_hosts_are_asked_for_a_few_at_a_time_and_each_once(world: World) -> None:
    @virtual
    async def main() -> None:
        targets = fill(world, 20)
        key, records = srv(*targets, *targets)
        world.zone[key] = records
        answer, took_s = await Rig(ONE, NAME).run()
        assert (answer.outcome, len(answer.addresses)) == (Outcome.ADDRESSES, 20)
        assert took_s == pytest.approx(FAST_S * 4)  # the records, and three rounds of eight hosts
        begun = [at for at, _, name, family, _ in world.asked if family == "A" and name in targets]
        assert max(begun.count(at) for at in begun) == TARGETS_AT_ONCE
        assert len(begun) == 20

    main()


def test_the_search_domains_make_candidates_of_the_service_and_not_of_its_hosts(world: World) -> None:
    @virtual
    async def main() -> None:
        key, records = srv("h.test.", name=f"{NAME}.ns.svc.")
        world.zone[key] = records
        answer, _ = await Rig(ONE + POD, NAME).run()
        assert answer.outcome is Outcome.FAILED
        assert world.names() == [f"{NAME}.ns.svc.", "h.test."]
        world.asked.clear()
        await Rig(ONE + POD, f"{NAME}.").run()  # a final dot
        assert world.names() == [f"{NAME}."]

    main()


def test_silent_hosts_leave_time_for_the_others_and_the_deadline_holds(world: World) -> None:
    @virtual
    async def main() -> None:
        targets = fill(world, 30)
        for target in targets[3:7]:
            world.set(target, SILENCE, SILENCE)
        rig = Rig(ONE, NAME)
        answer, took_s = await rig.run()
        assert (answer.outcome, len(answer.addresses)) == (Outcome.PARTIAL, 26)
        assert took_s == 3.0
        await rig.client.close()

    main()


def test_hosts_that_were_not_asked_for_in_time_are_asked_for_first_by_the_next_lookup(world: World) -> None:
    @virtual
    async def main() -> None:
        targets = fill(world, 20)
        for target in targets[:8]:
            world.set(target, SILENCE, SILENCE)
        rig = Rig(ONE, NAME)
        first, _ = await rig.run()
        assert (first.outcome, first.addresses) == (Outcome.FAILED, ())
        assert "not asked in time" not in first.detail.partition(": ")[0]
        second, _ = await rig.run()
        assert (second.outcome, len(second.addresses)) == (Outcome.PARTIAL, 12)
        await rig.client.close()

    main()


def test_a_service_of_thousands_costs_a_bounded_number_of_questions(world: World) -> None:
    @virtual
    async def main() -> None:
        fill(world, 4096)
        rig = Rig(ONE, NAME)
        seen: set[str] = set()
        for _ in range(4):
            before = len(world.asked)
            answer, took_s = await rig.run()
            assert answer.outcome is Outcome.PARTIAL
            assert len(world.asked) - before == 1 + 2 * MAX_TARGETS_ASKED
            assert took_s <= 3.0
            seen.update(answer.addresses)
        assert len(seen) == 4 * MAX_TARGETS_ASKED
        await rig.client.close()

    main()


@pytest.mark.parametrize("latency_s", [0.35, 0.6, 0.9, 1.3])
def test_servers_that_are_slower_than_a_lookup_serve_it_from_the_third_one_on(
    world: World, latency_s: float
) -> None:
    @virtual
    async def main() -> None:
        fill(world, 4)
        world.delays = {"1.0.0.1": latency_s}
        rig = Rig(ONE, NAME, lifetime_s=0.8)
        outcomes = await rig.poll(12, 1.0)
        assert set(outcomes[4:]) == {Outcome.ADDRESSES}
        await rig.client.close()

    main()


def test_a_family_that_is_never_answered_soon_costs_no_time(world: World) -> None:
    @virtual
    async def main() -> None:
        for target in fill(world, 12):
            world.zone[target, "AAAA"] = SILENCE
        rig = Rig(ONE, NAME)
        for _ in range(3):
            answer, took_s = await rig.run()
            assert (answer.outcome, answer.whole_families) == (Outcome.PARTIAL, (4,))
            assert took_s <= 2 * GRACE_S + 5 * FAST_S
        answer, took_s = await rig.run()
        assert (answer.outcome, answer.whole_families) == (Outcome.ADDRESSES, (4,))
        assert took_s == pytest.approx(3 * FAST_S)
        await rig.client.close()

    main()


def test_a_service_that_names_itself_is_asked_for_its_address_and_no_further(world: World) -> None:
    @virtual
    async def main() -> None:
        key, records = srv(f"{NAME}.")
        world.zone[key] = records
        answer, _ = await Rig(ONE, NAME).run()
        assert answer.outcome is Outcome.FAILED
        assert [family for _, _, _, family, _ in world.asked] == ["SRV", "A", "AAAA"]

    main()


@pytest.mark.parametrize(
    ("reply", "outcome"),
    [
        (SERVFAIL, Outcome.FAILED),
        (SILENCE, Outcome.FAILED),
        (NXDOMAIN, Outcome.EMPTY),
        (NO_RECORD, Outcome.EMPTY),
    ],
)
def test_a_failure_of_the_srv_question_is_never_an_empty_cluster(
    world: World, reply: Reply, outcome: Outcome
) -> None:
    @virtual
    async def main() -> None:
        key, records = srv("h.test.", glue=True)
        world.zone[key] = records
        rig = Rig(TWO, NAME)
        first, _ = await rig.run()
        assert first == Answer(Outcome.ADDRESSES, ("10.0.0.9:4370",), "1 address of 1 host (SRV)")
        world.zone[key] = reply
        for _ in range(5):
            answer, took_s = await rig.run()
            assert answer.outcome is outcome
            assert answer.is_whole(4) == answer.is_whole(6) == (outcome is Outcome.EMPTY)
            assert took_s <= 3.0
        await rig.client.close()

    main()


def test_several_services_share_the_slots_for_their_hosts(world: World) -> None:
    @virtual
    async def main() -> None:
        targets = fill(world, 16)
        key, _ = srv()
        other = Rig(ONE, "_v._tcp.test")
        world.zone["_v._tcp.test.", "SRV"] = world.zone[key]
        rig = Rig(ONE, NAME)
        other.lookups._client = other.lookups._targets._client = rig.client
        rig.client.begin_lookup()
        await asyncio.gather(rig.lookups.run(rig.config), other.lookups.run(rig.config))
        begun = [at for at, _, name, family, _ in world.asked if family == "A" and name in targets]
        assert max(begun.count(at) for at in begun) == TARGETS_AT_ONCE

    main()


TARGET = st.sampled_from([".", "a.test.", "b.test.", "c.test.", f"{NAME}."])
FAMILIES = ("A", "AAAA")
PORT = st.sampled_from([0, 1, 4370, 65535])
GOOD_A = Records(Outcome.ADDRESSES, ("10.0.0.1", "10.0.0.2"))
GOOD_AAAA = Records(Outcome.ADDRESSES, ("fd00::1",))
REPLIES = st.fixed_dictionaries(
    {
        (target, family): st.sampled_from([good, NO_RECORD, NXDOMAIN, SERVFAIL, SILENCE])
        for target in ("a.test.", "b.test.", "c.test.", f"{NAME}.")
        for family, good in (("A", GOOD_A), ("AAAA", GOOD_AAAA))
    }
)


@hypothesis.settings(
    max_examples=60, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    services=st.lists(st.tuples(TARGET, PORT), min_size=1, max_size=6),
    glue=st.sets(TARGET, max_size=2),
    zone=REPLIES,
)
def test_the_outcome_is_that_of_the_worst_question_and_no_address_is_made_up(
    world: World, services: list[tuple[str, int]], glue: set[str], zone: dict[tuple[str, str], Reply]
) -> None:
    def held(target: str) -> list[str]:
        replies = [zone[target, family] for family in FAMILIES]
        return [ip for reply in replies if isinstance(reply, Records) for ip in reply.addresses]

    @virtual
    async def main() -> None:
        found = [Service(target, port, ("10.9.0.9",) * (target in glue)) for target, port in services]
        world.zone = {**zone, (f"{NAME}.", "SRV"): Records(Outcome.ADDRESSES, services=tuple(found))}
        rig = Rig(ONE, NAME)
        answer, took_s = await rig.run()
        await rig.client.close()
        used = [each for each in found if each.target != "." and each.port]
        replies = [zone[each.target, family] for each in used if not each.addresses for family in FAMILIES]
        expected = {endpoint(ip, each.port) for each in used for ip in each.addresses or held(each.target)}
        assert set(answer.addresses) == expected
        assert took_s <= 3.0
        if all(each.target == "." for each in found):
            assert answer.outcome is Outcome.EMPTY
        elif not expected:
            assert answer.outcome is Outcome.FAILED
        elif all(isinstance(reply, Records) for reply in replies):
            assert (answer.outcome, answer.whole_families) == (Outcome.ADDRESSES, (4, 6))
        else:
            assert answer.outcome is Outcome.PARTIAL
            assert answer.whole_families != (4, 6)

    main()
