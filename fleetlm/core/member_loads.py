"""How loaded the members of a group are, from what they report and what waits at them.

The load of a member is the number of requests that all nodes together have outstanding at it, plus its gauge
``load``, if it reports one. A report that is too old says nothing: such a member counts as the mean of those
whose reports are fresh, since a load of 0 would draw all requests to a member that has stopped reporting. A
member that has just joined has nothing outstanding, and would get every request of every node until they see
each other's: so a part of the mean is added to it, which falls to nothing while it is new.

Source: Envoy's slow start; differs: a ramp of the load that is compared, not of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fleetlm.core.member_facts import Gauges
from fleetlm.ids import Pid
from fleetlm.records import Record

LOAD_GAUGE = "load"
"""The gauge that is added to the outstanding requests of a member."""

MOST_COMPARED = 128
"""In larger groups ``least_loaded`` does not compare all members, which takes half a microsecond for each."""


class MemberInfo(Record):
    """A member of a group, as this node knows it; what `Groups.describe` returns, and what a score gets."""

    pid: Pid
    meta: Any
    """The value that it joined with, or None."""
    gauges: Gauges
    """What it reported last; empty if it never did."""
    age_s: float | None
    """Seconds since this node heard of that report; None if there was none."""
    outstanding: int
    """Requests that wait at it or run: of this node now, of the others as they told last."""
    load: float
    """What the rules compare: see `core.member_loads`."""
    mean_load: float
    """The mean of the members that were looked at together."""
    is_passed_over: bool
    """Whether its node drains or is busy, so that no rule picks it while there are others."""


def weigh(
    outstanding: Sequence[float],
    reported: Sequence[tuple[float, float] | None],
    known_s: Sequence[float],
    stale_s: float,
    newcomer_s: float,
) -> list[float]:
    """Return the loads of some members, to be compared with each other.

    Args:
        outstanding: requests at each member.
        reported: the gauge ``load`` of each, and its age in seconds; None if it has none. Empty: none has.
        known_s: for how long each has been a member; infinite where that does not matter. Empty: nowhere.
        stale_s: the age from which on a report says nothing.
        newcomer_s: for how long a member is new.
    """
    loads = list(outstanding)
    if reported:
        fresh = [each[0] for each in reported if each is not None and each[1] <= stale_s]
        usual = sum(fresh) / len(fresh) if fresh else 0.0
        for at, each in enumerate(reported):
            if each is not None:
                load = loads[at] + (each[0] if each[1] <= stale_s else usual)
                loads[at] = max(0.0, load)
    if not known_s or min(known_s) >= newcomer_s:
        return loads
    old = [load for load, age in zip(loads, known_s, strict=True) if age >= newcomer_s]
    mean = sum(old) / len(old) if old else 0.0
    return [
        load + mean * (1 - age / newcomer_s) if age < newcomer_s else load
        for load, age in zip(loads, known_s, strict=True)
    ]
