"""Who may tell facts about a node: that node itself, as it was started last."""

from __future__ import annotations

from typing import Any, Protocol


class Speaker(Protocol):
    """What a table knows of one node."""

    @property
    def node(self) -> str:
        """Its name."""

    @property
    def incarnation(self) -> int:
        """Of the start that tells."""


def check_speaker(told: Speaker, own: Any, incarnation: int, what: str) -> None:
    """Check who tells a fact.

    Args:
        told: what the table knows of the node that tells.
        own: what it knows of this node, of which no other one may tell.
        incarnation: of the node that tells.
        what: the facts, for the error: "the rows".

    Raises:
        ValueError: it may not.
    """
    if told is own or told.incarnation != incarnation:
        raise ValueError(f"{told.node} may not tell {what} of incarnation {incarnation:x}")
