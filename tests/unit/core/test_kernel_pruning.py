from __future__ import annotations

from collections.abc import Sequence

import pytest

from fleetlm.core.dns_answers import Outcome
from fleetlm.core.effects import Dial, Down
from fleetlm.settings import Settings
from tests.support.kernel_fakes import Meeting, T, addresses, name, outcome

PRUNING = Settings(dns_query="fleet.test", prune_after_lookups=3)


def downs(effects: Sequence[object]) -> list[str]:
    return [effect.name for effect in effects if isinstance(effect, Down)]


def test_nothing_is_pruned_unless_the_operator_asked_for_it() -> None:
    m = Meeting()
    m.up(2)
    for n in range(100):
        assert downs(m.kernel.looked_up(T + n, addresses(3))) == []
    assert m.status(2) == "up"


def test_a_peer_that_dns_stops_naming_is_disconnected_until_it_names_it_again() -> None:
    m = Meeting(settings=PRUNING)
    m.up(2)
    m.kernel.looked_up(T, addresses(2, 3))
    assert downs(m.kernel.looked_up(T + 1, addresses(3))) == []
    assert downs(m.kernel.looked_up(T + 2, addresses(3))) == []

    effects = m.kernel.looked_up(T + 3, addresses(3))

    assert [(o.name, o.reason) for o in effects if isinstance(o, Down)] == [
        (name(2), "pruned: 3 lookups in a row did not name it")
    ]
    assert m.status(2) == "discovered"
    assert not any(isinstance(o, Dial) and o.ip == "10.0.0.2" for o in m.kernel.tick(T + 30))

    effects = m.kernel.looked_up(T + 31, addresses(2, 3))

    assert any(isinstance(o, Dial) and o.ip == "10.0.0.2" for o in effects)


@pytest.mark.parametrize("kind", [Outcome.FAILED, Outcome.PARTIAL])
def test_a_lookup_that_failed_or_is_partial_prunes_no_peer(kind: Outcome) -> None:
    m = Meeting(settings=PRUNING)
    m.up(2)
    for n in range(100):
        assert downs(m.kernel.looked_up(T + n, outcome(kind, "SERVFAIL", 3))) == []


def test_a_peer_that_was_asked_for_by_name_is_not_pruned() -> None:
    m = Meeting(settings=PRUNING)
    m.up(2)
    m.kernel.asked_for(T, name(2))
    for n in range(10):
        assert downs(m.kernel.looked_up(T + n, addresses(3))) == []


def test_a_pruned_peer_that_is_asked_for_is_dialled() -> None:
    m = Meeting(settings=PRUNING)
    m.up(2)
    for n in range(3):
        m.kernel.looked_up(T + n, addresses(3))
    assert m.status(2) == "discovered"

    assert any(isinstance(o, Dial) for o in m.kernel.asked_for(T + 4, name(2)))
    assert m.status(2) == "dialling"
