"""Who may tell facts about a node."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fleetlm.core.speakers import check_speaker

OWN = SimpleNamespace(node="a@10.0.0.1", incarnation=7)
OTHER = SimpleNamespace(node="b@10.0.0.2", incarnation=0xAB)


def test_a_node_tells_of_its_present_start() -> None:
    check_speaker(OTHER, OWN, 0xAB, "the rows")


def test_a_former_start_may_not_tell() -> None:
    with pytest.raises(ValueError, match=r"b@10\.0\.0\.2 may not tell the rows of incarnation aa"):
        check_speaker(OTHER, OWN, 0xAA, "the rows")


def test_nobody_tells_of_this_node() -> None:
    with pytest.raises(ValueError, match=r"a@10\.0\.0\.1 may not tell of the members of incarnation 7"):
        check_speaker(OWN, OWN, 7, "of the members")
