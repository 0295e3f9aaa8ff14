"""The ends of sessions that wait for what their peers have sent; `test_driver` has the whole stories."""

from __future__ import annotations

import asyncio

from fleetlm.messaging.backlog import Backlog
from fleetlm.runtime.last_words import LAST_WORDS_S, LastWords
from fleetlm.testing.loop import SimLoop
from tests.support.session_fakes import turns, virtual

SOURCE, OTHER = b"source", b"other"


class Rig:
    """Last words over a backlog that takes nothing by itself."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        self.backlog = Backlog(
            SimLoop.current(),
            1_000,
            go_on=lambda _source, _rest: None,
            take=lambda _source, _frame, _tail: None,
            begin_turn=lambda: None,
            is_over=lambda: False,
        )
        self.words = LastWords(SimLoop.current(), self.backlog)

    def hold(self, teller: str, name: str, source: bytes = SOURCE) -> None:
        self.words.hold(source, teller, lambda: self.ended.append(name))

    def lose(self, source: bytes = SOURCE) -> None:
        self.words.source_lost(source, lambda: self.ended.append("source"))


@virtual
async def test_without_anything_held_the_end_of_a_source_ends_its_session_at_once() -> None:
    rig = Rig()
    rig.lose()
    assert rig.ended == ["source"]


@virtual
async def test_what_is_held_comes_before_the_end_of_the_source_and_each_teller_counts_once() -> None:
    rig = Rig()
    rig.hold(LastWords.CHANNEL, "channel")
    rig.hold(LastWords.CHANNEL, "channel once more")
    rig.hold(LastWords.SUCCESSOR, "successor")
    rig.hold(LastWords.CHANNEL, "another", OTHER)
    assert rig.ended == []
    rig.lose()
    assert rig.ended == ["channel", "successor", "source"]
    await asyncio.sleep(2 * LAST_WORDS_S)
    assert rig.ended == ["channel", "successor", "source", "another"]


@virtual
async def test_a_source_that_lives_is_waited_for_only_so_long() -> None:
    rig = Rig()
    rig.hold(LastWords.SUCCESSOR, "successor")
    await asyncio.sleep(0.9 * LAST_WORDS_S)
    rig.hold(LastWords.CHANNEL, "channel")
    assert rig.ended == []
    await asyncio.sleep(0.2 * LAST_WORDS_S)
    assert rig.ended == ["successor", "channel"]


@virtual
async def test_what_has_come_and_was_not_taken_yet_comes_first_however_long_it_takes() -> None:
    rig = Rig()
    rig.backlog.park(SOURCE)
    rig.hold(LastWords.CHANNEL, "channel")
    await asyncio.sleep(10 * LAST_WORDS_S)
    assert rig.ended == []
    rig.backlog.resume(SOURCE, None)
    await turns()
    assert rig.ended == ["channel"]


@virtual
async def test_a_session_that_is_over_has_no_further_end() -> None:
    rig = Rig()
    rig.hold(LastWords.CHANNEL, "channel")
    rig.words.drop(SOURCE)
    rig.words.drop(SOURCE)
    await asyncio.sleep(2 * LAST_WORDS_S)
    assert rig.ended == []
