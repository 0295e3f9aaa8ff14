"""Where fleetlm does something else than Erlang/OTP on purpose.

docs/differences-from-otp.md has the same table for people; a test holds the two together.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One decision, and what it makes of the scenarios that show it."""

    otp: str
    here: str
    why: str
    outcomes: dict[str, list[str]]
    """Scenario → our outcome."""

    @property
    def row(self) -> str:
        """As a line of the table in the document."""
        names = ", ".join(f"`{name}`" for name in self.outcomes)
        return f"| {self.otp} | {self.here} | {self.why} | {names} |"


DIFFERENCES = (
    Difference(
        "a `call` to a process that ends with the request unread exits with the reason of that end",
        "`NoProcess`",
        "it never ran, so that trying again is safe; `ProcessDown` says that it may have run",
        {
            f"call/dies_before_it_took_it/{where}": ["a call noproc", "a lives", "b ended boom"]
            for where in ("here", "there")
        },
    ),
    Difference(
        "a request whose caller has given up is served all the same",
        "an expired request is passed over",
        "the deadline travels; work that nobody waits for makes an overload worse",
        {
            f"call/expires_before_it_is_taken/{where}": ["a call timeout", "a lives", "b lives"]
            for where in ("here", "there")
        },
    ),
    Difference(
        "a `call` to oneself exits with `calling_self`",
        "`CallTimeout` at the deadline",
        "`Node.call` is asked by any task of the program; that may be another task of the process",
        {"call/self": ["a call timeout", "a lives"]},
    ),
    Difference(
        "a `send` always succeeds",
        "it raises `NoProcess` or `NoConnection` where this node knows already that nothing would arrive",
        "a fleet of workers wants to know; it costs nothing to say",
        {
            "send/dead/here": ["a post noproc", "a lives", "b ended normal"],
            "send/not_connected": ["a post noconnection", "a lives", "b lives"],
            "send/former_incarnation": ["a post noproc", "a lives", "c lives"],
        },
    ),
    Difference(
        "the first exit signal ends a process at once, so that a `kill` after it finds nobody",
        "it cancels a coroutine, which may clean up; a `kill` meanwhile ends that, and is what others hear",
        "a clean-up must not last for ever, and `killed` says that it was cut short",
        {f"exit/kill_after_another/{where}": ["a lives", "b ended killed"] for where in ("here", "there")},
    ),
    Difference(
        "`link` to a dead process of one's own node raises `noproc`, unless one traps exits",
        "an exit signal `noproc`, as from any other node",
        "one rule for both; Erlang's own manual calls its behaviour historical",
        {"link/dead/here/plain": ["a ended noproc", "b ended normal"]},
    ),
    Difference(
        "a killed supervisor leaves behind children that trap exits and ignore them",
        "they are ended as in its shutdown, deadline included",
        "the clean-up of a killed coroutine still runs, and an orphan helps nobody",
        {
            "supervisor/killed_above_who_traps": [
                "a exit t killed",
                "a exit t shutdown",
                "a ended killed",
                "log +a",
                "p exit t killed",
                "p lives",
                "t ended killed",
            ]
        },
    ),
    Difference(
        "`restart_child` of a child that runs is an error",
        "it answers with the pid of that child",
        "the request may come again from another node after a `CallTimeout`",
        {
            "supervisor/restart_child_that_runs": [
                "a lives",
                "log +a",
                "p restart ok",
                "p which a:runs",
                "p lives",
                "t lives",
            ]
        },
    ),
    Difference(
        "a child that a lost node took along counts as a restart",
        "it is started again after a pause, and does not count",
        "one node that goes must not take the trees of all others down",
        {
            "supervisor/child_of_a_lost_peer": [
                "a ended noconnection",
                "a lives",
                "log +a",
                "log +a",
                "p lives",
                "t lives",
                "x ended noconnection",
            ]
        },
    ),
    Difference(
        "a restart that fails is tried again at once, and counts each time",
        "a child whose name is taken is tried again after pauses, and does not count",
        "starting a coroutine fails for nothing else, and the name is free when its owner ends",
        {
            "supervisor/name_is_taken": [
                "a ended crash boom",
                "a lives",
                "log +a",
                "log +a",
                "p lives",
                "q lives",
                "t lives",
            ]
        },
    ),
)

OURS = {name: outcome for difference in DIFFERENCES for name, outcome in difference.outcomes.items()}
"""Scenario → our outcome, where it is another one than OTP's."""
