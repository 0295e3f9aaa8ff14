"""Lookups of one name on virtual time, with name servers that answer as a script says."""

from __future__ import annotations

import asyncio

import pytest

from fleetlm.core.dns_answers import Answer, Outcome
from fleetlm.discovery import dns_client
from fleetlm.discovery.dns_exchange import MEMORY_OF_SILENCE_S, ServerFailure
from fleetlm.discovery.dns_lookup import LOOKUPS_UNTIL_MOVED
from fleetlm.discovery.dns_questions import GRACE_S
from fleetlm.discovery.dns_search import Records, Service
from fleetlm.discovery.resolv_conf import parse
from tests.support.name_servers import (
    FAST_S,
    FOUND,
    NO_RECORD,
    NXDOMAIN,
    ONE,
    POD,
    REFUSED,
    SERVFAIL,
    SILENCE,
    THREE,
    TWO,
    V6,
    Reply,
    Rig,
    World,
    servers,
)
from tests.support.session_fakes import virtual


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    world.install(monkeypatch)
    return world


def test_a_silent_first_server_costs_one_pause_and_then_nothing(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.silent = {"1.0.0.1"}
        rig = Rig(TWO, lifetime_s=0.8)
        first, took_s = await rig.run()
        assert first.addresses == ("10.0.0.2",)
        assert took_s == pytest.approx(0.8 / 5 + FAST_S)
        for _ in range(3):
            assert await rig.run() == (first, FAST_S)
        assert world.servers() == ["1.0.0.1", "1.0.0.2", "1.0.0.2", "1.0.0.2", "1.0.0.2"]
        await asyncio.sleep(MEMORY_OF_SILENCE_S)
        world.silent = set()
        await rig.run()
        assert world.servers()[-1] == "1.0.0.1"  # it is back
        await rig.client.close()

    main()


@pytest.mark.parametrize("lifetime_s", [0.2, 0.8, 3.0])
def test_two_silent_servers_and_many_search_domains_leave_time_for_the_third(
    world: World, lifetime_s: float
) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.silent = {"1.0.0.1", "1.0.0.2"}
        rig = Rig(THREE + POD, lifetime_s=lifetime_s)
        answer, took_s = await rig.run()
        assert (answer.outcome, answer.addresses) == (Outcome.ADDRESSES, ("10.0.0.2",))
        assert took_s < lifetime_s
        assert (await rig.run())[1] == pytest.approx(4 * FAST_S)
        await rig.client.close()

    main()


@pytest.mark.parametrize(("reply", "asked"), [(REFUSED, 1), (SERVFAIL, 1)])
def test_a_server_that_fails_passes_its_turn_on_at_once(world: World, reply: Reply, asked: int) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.replies = {"1.0.0.1": reply}
        answer, took_s = await Rig(TWO).run()
        assert (answer.outcome, took_s) == (Outcome.ADDRESSES, 2 * FAST_S)
        assert world.servers() == ["1.0.0.1"] * asked + ["1.0.0.2"]

    main()


def test_a_servfail_of_all_servers_is_retried_once(world: World) -> None:
    @virtual
    async def main() -> None:
        world.replies = {"1.0.0.1": SERVFAIL, "1.0.0.2": REFUSED}
        answer, took_s = await Rig(TWO).run()
        assert answer == Answer(Outcome.FAILED, (), "SERVFAIL, REFUSED")
        assert world.servers() == ["1.0.0.1", "1.0.0.2", "1.0.0.1"]
        assert took_s < 0.2

    main()


@pytest.mark.parametrize(
    ("latency_s", "lifetime_s", "every_s"),
    [(1.3, 0.8, 1.0), (0.9, 0.8, 1.0), (2.9, 0.8, 1.0), (4.0, 3.0, 5.0)],
)
def test_answers_that_come_after_the_lookup_serve_the_next_one_and_each_after_it(
    world: World, latency_s: float, lifetime_s: float, every_s: float
) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.delays = {"1.0.0.1": latency_s}
        rig = Rig(ONE, lifetime_s=lifetime_s)
        outcomes = await rig.poll(12, every_s)
        first = outcomes.index(Outcome.ADDRESSES)
        assert first <= 3
        assert outcomes == [Outcome.FAILED] * first + [Outcome.ADDRESSES] * (12 - first)
        await rig.client.close()

    main()


def test_a_slow_server_is_searched_to_the_last_domain_over_two_lookups(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.delays = {"1.0.0.1": 1.3}
        rig = Rig(ONE + POD, lifetime_s=0.8)
        assert set((await rig.poll(8, 1.0))[2:]) == {Outcome.ADDRESSES}
        await rig.client.close()

    main()


@pytest.mark.parametrize("name", ["w", "_w._tcp.test"])
@pytest.mark.parametrize("minutes", [1, 20])
def test_a_network_that_was_not_there_when_the_node_started_is_used_as_soon_as_it_is_there(
    world: World, name: str, minutes: int
) -> None:
    @virtual
    async def main() -> None:
        absent = ServerFailure("1.0.0.1: network is unreachable")
        world.replies = {"1.0.0.1": absent, "1.0.0.2": absent}
        rig = Rig(TWO + POD, name)
        assert set(await rig.poll(12 * minutes, 5.0)) == {Outcome.FAILED}
        world.replies.clear()
        world.set("w.ns.svc.", FOUND)
        services = (Service("h.test.", 4370, ("10.0.0.2",)),)
        world.zone["_w._tcp.test.ns.svc.", "SRV"] = Records(Outcome.ADDRESSES, services=services)
        answer, took_s = await rig.run()
        assert (answer.outcome, len(answer.addresses), took_s) == (Outcome.ADDRESSES, 1, FAST_S)
        await rig.client.close()

    main()


def test_a_late_answer_is_used_only_where_the_new_question_has_none(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.delays = {"1.0.0.1": 1.0}
        rig = Rig(ONE, lifetime_s=0.5)
        assert (await rig.run())[0].outcome is Outcome.FAILED
        await asyncio.sleep(world.delays["1.0.0.1"])
        world.delays.clear()
        world.set("w.", Records(Outcome.ADDRESSES, ("10.0.0.9",)))
        assert await rig.run() == (Answer(Outcome.ADDRESSES, ("10.0.0.9",), "1 address"), FAST_S)
        world.silent = {"1.0.0.1"}
        assert (await rig.run())[0].outcome is Outcome.FAILED  # the former answer is forgotten
        await rig.client.close()

    main()


def test_an_old_late_answer_is_no_answer(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.delays = {"1.0.0.1": 1.0}
        rig = Rig(ONE, lifetime_s=0.5)
        await rig.run()
        await asyncio.sleep(dns_client.LATE_ANSWER_S)
        world.silent = {"1.0.0.1"}
        assert (await rig.run())[0].outcome is Outcome.FAILED
        await rig.client.close()

    main()


def test_a_gateway_that_drops_edns_is_learned(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.drops_edns = {"1.0.0.1"}
        rig = Rig(ONE)
        answer, took_s = await rig.run()
        assert (answer.outcome, took_s) == (Outcome.ADDRESSES, 1.0 + FAST_S)
        for _ in range(3):
            assert (await rig.run())[1] == FAST_S
        await rig.client.close()

    main()


def test_a_lost_packet_does_not_cost_a_server_its_edns(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        rig = Rig(ONE)
        await rig.run()
        world.silent = {"1.0.0.1"}
        await rig.run()
        assert all(has_edns for *_, has_edns in world.asked)  # it is known to answer that
        await rig.client.close()

    main()


def test_the_search_ends_at_the_first_name_that_exists_for_both_families(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.ns.svc.", FOUND)
        world.set("w.corp.", NO_RECORD, V6)
        rig = Rig(ONE + POD)
        assert await rig.run() == (Answer(Outcome.ADDRESSES, ("10.0.0.2",), "1 address"), FAST_S)
        assert world.names() == ["w.ns.svc."]

    main()


@pytest.mark.parametrize("outside", [REFUSED, SERVFAIL, SILENCE])
def test_domains_outside_that_fail_for_ever_do_not_hide_the_name(world: World, outside: Reply) -> None:
    @virtual
    async def main() -> None:
        for name in ("w.ns.svc.", "w.svc.", "w.corp."):
            world.set(name, outside, outside)
        world.set("w.", FOUND)
        rig = Rig(ONE + POD)
        for _ in range(3):
            answer, took_s = await rig.run()
            assert (answer.outcome, answer.addresses) == (Outcome.ADDRESSES, ("10.0.0.2",))
            assert answer.detail.startswith("1 address, after w.ns.svc. failed (")
            assert took_s <= 3.0
        await rig.client.close()

    main()


def test_the_home_that_fails_for_a_moment_is_not_replaced_by_a_namesake(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.ns.svc.", FOUND)
        world.set("w.svc.", Records(Outcome.ADDRESSES, ("10.9.9.9",)))
        rig = Rig(ONE + POD)
        await rig.run()
        for reply in (SERVFAIL, SILENCE):
            world.set("w.ns.svc.", reply, reply)
            answer, _ = await rig.run()
            assert (answer.outcome, answer.addresses) == (Outcome.FAILED, ())
        world.set("w.ns.svc.", NXDOMAIN, NXDOMAIN)
        assert (await rig.run())[0].addresses == ("10.9.9.9",)
        await rig.client.close()

    main()


def test_a_home_that_fails_for_long_is_given_up_for_what_the_c_library_finds(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.ns.svc.", FOUND)
        world.set("w.svc.", Records(Outcome.ADDRESSES, ("10.9.9.9",)))
        rig = Rig(ONE + POD)
        await rig.run()
        world.set("w.ns.svc.", SERVFAIL, SERVFAIL)
        assert await rig.poll(LOOKUPS_UNTIL_MOVED, 5.0) == [Outcome.FAILED] * LOOKUPS_UNTIL_MOVED
        assert (await rig.run())[0].addresses == ("10.9.9.9",)
        await rig.client.close()

    main()


@pytest.mark.parametrize("reply", [REFUSED, SILENCE])
def test_a_family_that_is_never_answered_costs_three_partial_answers_and_no_time_afterwards(
    world: World, reply: Reply
) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND, reply)
        rig = Rig(ONE)
        for _ in range(3):
            answer, took_s = await rig.run()
            assert (answer.outcome, answer.whole_families) == (Outcome.PARTIAL, (4,))
            assert took_s <= FAST_S + GRACE_S
        for _ in range(3):
            answer, took_s = await rig.run()
            assert (answer.outcome, answer.whole_families, took_s) == (Outcome.ADDRESSES, (4,), FAST_S)
        world.set("w.", FOUND, V6)
        await rig.run()
        assert (await rig.run())[0] == Answer(Outcome.ADDRESSES, ("10.0.0.2", "fdaa::2"), "2 addresses")
        await rig.client.close()

    main()


def test_a_name_that_does_not_exist_is_empty_although_aaaa_is_never_answered(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", NXDOMAIN, SILENCE)
        rig = Rig(ONE)
        outcomes = await rig.poll(5, 5.0)
        assert outcomes == [Outcome.FAILED] * 3 + [Outcome.EMPTY] * 2
        await rig.client.close()

    main()


def test_single_request_asks_one_family_after_the_other(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND, V6)
        answer, took_s = await Rig(ONE + "options single-request\n").run()
        assert (len(answer.addresses), took_s) == (2, 2 * FAST_S)
        assert [(at, family) for at, _, _, family, _ in world.asked] == [(0.0, "A"), (FAST_S, "AAAA")]

    main()


def test_rotate_begins_with_another_server_each_time_and_no_aaaa_asks_for_a_only(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        rig = Rig(TWO + "options rotate no-aaaa\n")
        for _ in range(4):
            assert (await rig.run())[0].outcome is Outcome.ADDRESSES
        assert world.servers() == ["1.0.0.1", "1.0.0.2"] * 2
        assert world.servers("AAAA") == []

    main()


def test_questions_that_wait_are_bounded_and_end_when_the_client_is_closed(world: World) -> None:
    @virtual
    async def main() -> None:
        world.silent = {"1.0.0.1", "1.0.0.2", "1.0.0.3"}
        rig = Rig(THREE + POD, lifetime_s=0.2)
        before = len(asyncio.all_tasks())
        for _ in range(40):
            answer, _ = await rig.run()
            assert answer.outcome is Outcome.FAILED
            waiting = [each for each in rig.client._questions if not each.task.done()]
            assert len(waiting) <= dns_client.MAX_QUESTIONS
        await rig.client.close()
        assert len(asyncio.all_tasks()) == before

    main()


def test_new_servers_are_used_at_once_and_those_that_stay_keep_what_is_known(world: World) -> None:
    @virtual
    async def main() -> None:
        world.set("w.", FOUND)
        world.silent = {"1.0.0.1"}
        rig = Rig(TWO)
        await rig.run()
        rig.config = parse(servers("1.0.0.1", "1.0.0.3"), source="resolv.conf")
        rig.client.configure(rig.config)
        assert (await rig.run())[1] == FAST_S
        assert world.servers()[-1] == "1.0.0.3"
        await rig.client.close()

    main()


@pytest.mark.parametrize("name", ["a..b", "x" * 64, ".".join(["x" * 60] * 5)])
def test_a_name_that_cannot_be_asked_for_is_a_failure(world: World, name: str) -> None:
    @virtual
    async def main() -> None:
        answer, _ = await Rig(ONE, name).run()
        assert (answer.outcome, answer.addresses) == (Outcome.FAILED, ())
        assert answer.detail.startswith(f'cannot ask for "{name}": ')
        assert world.asked == []

    main()
