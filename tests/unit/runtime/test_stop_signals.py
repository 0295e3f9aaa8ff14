"""Which signals end a process that leaves already."""

from __future__ import annotations

from signal import SIGINT, SIGTERM

import pytest

from fleetlm.runtime.stop_signals import StopSignals, Verdict

LEAVE, GO_ON, END = Verdict.LEAVE, Verdict.GO_ON, Verdict.END


@pytest.mark.parametrize(
    ("numbers", "verdicts"),
    [
        ([SIGTERM], [LEAVE]),
        ([SIGTERM, SIGTERM], [LEAVE, END]),
        ([SIGINT, SIGINT], [LEAVE, END]),
        ([SIGINT, SIGTERM], [LEAVE, GO_ON]),  # Fly.io
        ([SIGTERM, SIGINT], [LEAVE, GO_ON]),
        ([SIGINT, SIGTERM, SIGTERM], [LEAVE, GO_ON, END]),
        ([SIGINT, SIGTERM, SIGINT], [LEAVE, GO_ON, END]),
    ],
)
def test_a_second_signal_of_the_same_kind_ends_and_one_of_the_other_kind_does_not(
    numbers: list[int], verdicts: list[Verdict]
) -> None:
    signals = StopSignals()
    assert [signals.take(number) for number in numbers] == verdicts
    assert signals.names[0] == numbers[0].name  # type: ignore[attr-defined]
