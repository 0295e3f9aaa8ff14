"""Where fleetlm differs from Erlang/OTP on purpose.

docs/differences-from-otp.md has the same table for readers; a test checks that the two agree.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """One decision, and the outcome of each scenario that shows it."""

    otp: str
    here: str
    why: str
    outcomes: dict[str, list[str]]
    """Scenario → fleetlm's outcome."""

    @property
    def row(self) -> str:
        """This difference as a line of the table in the document."""
        names = ", ".join(f"`{name}`" for name in self.outcomes)
        return f"| {self.otp} | {self.here} | {self.why} | {names} |"


DIFFERENCES = (
    Difference(
        "if a process ends before it reads a `call`, the call exits with that process's reason",
        "`NoProcess`",
        "the request never ran, so it is safe to try again; `ProcessDown` means that it may have run",
        {
            f"call/dies_before_it_took_it/{where}": ["a call noproc", "a lives", "b ended boom"]
            for where in ("here", "there")
        },
    ),
    Difference(
        "a request is served even if its caller has given up",
        "an expired request is skipped",
        "the deadline travels with the request; work without a waiting caller makes an overload worse",
        {
            f"call/expires_before_it_is_taken/{where}": ["a call timeout", "a lives", "b lives"]
            for where in ("here", "there")
        },
    ),
    Difference(
        "a `send` always succeeds",
        "`send` raises `NoProcess` or `NoConnection` if this node knows that the message would not arrive",
        "the sender can react, and the check costs nothing",
        {
            "send/dead/here": ["a post noproc", "a lives", "b ended normal"],
            "send/not_connected": ["a post noconnection", "a lives", "b lives"],
            "send/former_incarnation": ["a post noproc", "a lives", "c lives"],
        },
    ),
    Difference(
        "the first exit signal ends a process at once, so a later `kill` has no effect",
        "it cancels the coroutine, which may clean up; a `kill` ends that, and the reason is then `killed`",
        "a clean-up must not last for ever, and `killed` says that it was cut short",
        {f"exit/kill_after_another/{where}": ["a lives", "b ended killed"] for where in ("here", "there")},
    ),
    Difference(
        "`link` to a dead process on the same node raises `noproc`, unless the caller traps exits",
        "the caller gets an exit signal `noproc`, as for a process on another node",
        "one rule for both cases; Erlang's manual calls its own behaviour historical",
        {"link/dead/here/plain": ["a ended noproc", "b ended normal"]},
    ),
    Difference(
        "children that trap exits and ignore them survive when their supervisor is killed",
        "they are ended as in an orderly shutdown of the supervisor, deadline included",
        "the clean-up of a killed coroutine still runs, and orphans are of no use",
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
        "`restart_child` of a running child is an error",
        "`restart_child` returns the pid of that child",
        "another node may repeat the request after a `CallTimeout`",
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
        "restarting a child that ended because a node was lost counts as a restart",
        "the child is restarted after a pause, and the restart does not count",
        "the loss of one node must not end the supervision trees of all others",
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
        "a restart that fails is repeated at once, and counts each time",
        "if the child's name is taken, the restart is repeated after pauses, and does not count",
        "the start of a coroutine fails for no other reason, and the name is free once its owner ends",
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
"""Scenario → fleetlm's outcome, where it differs from OTP's."""
