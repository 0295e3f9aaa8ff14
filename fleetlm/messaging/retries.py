"""Repeats requests that failed, where that is safe.

**What is repeated.** `NotDelivered`: the request never ran. `OutcomeUnknown` only if the program says that
the request may run twice. Never `RemoteError`, since the request ran; if requests of its handler failed,
repeating those is up to the handler, and repeating at each level would multiply the attempts. Never
`Expired`, since no time is left, nor `NotAllowed`, unless it is another member of a group that is asked next,
and no mistake of the program (`NotSerializable`, a TypeError). A cancellation ends the attempt, or the pause,
at once.

**What bounds it**, each for all attempts together: the number of attempts; the deadline, which is the one
that the program gives or that of the call being served; and the budget of the node (`core.retry_budget`). No
pause begins that would end after the deadline: the last error says more than a time-out.

The error of the last attempt is raised, with a note (PEP 678) that tells what was tried.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakKeyDictionary

from fleetlm.core.retry_budget import RetryBudget, pause_s
from fleetlm.errors import (
    CallTimeout,
    Draining,
    Expired,
    FleetError,
    NoConnection,
    NotAllowed,
    NotDelivered,
    OutcomeUnknown,
)
from fleetlm.messaging.deadline import within_deadline
from fleetlm.seconds import check_timeout
from fleetlm.settings import Settings
from fleetlm.texts import SHORT, text_of

if TYPE_CHECKING:
    from fleetlm.messaging.targets import Target

T = TypeVar("T")

MAX_TOLD = 5
"""Errors of former attempts that the note tells; of more, only the last ones."""

_of_loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Retries] = WeakKeyDictionary()
"""No value may refer to its loop, or that would never be collected."""


class Retries:
    """The repetitions of one node: its budget, its pauses.

    Args:
        settings: of the node.
        rng: makes the pauses.
    """

    def __init__(self, settings: Settings, rng: random.Random) -> None:
        self.budget: RetryBudget = RetryBudget(
            settings.retry_ratio, settings.retry_reserve, settings.retry_saved
        )
        self.settings: Settings = settings
        self.rng: random.Random = rng
        _of_loops.setdefault(asyncio.get_running_loop(), self)

    @classmethod
    def of_this_loop(cls) -> Retries:
        """Return those of the first node that was started on the running loop; without one, new ones."""
        found = _of_loops.get(asyncio.get_running_loop())
        return cls(Settings(), random.Random()) if found is None else found

    def begin(self, what: Target, attempts: int, timeout_s: float | None, idempotent: bool) -> Course:
        """Begin a request that may be repeated.

        Args:
            what: names it in the error of its time-out.
            attempts: how often it is made at most.
            timeout_s: seconds for all attempts together; None: as long as they take. At most what is left of
                the call that is being served.
            idempotent: whether it may run twice.

        Raises:
            TypeError, ValueError: ``attempts`` is not a whole number from 1.
            Expired: the call being served has no time left.
        """
        check_attempts(attempts)
        check_timeout(timeout_s)
        left_s = within_deadline(math.inf if timeout_s is None else timeout_s)
        self.budget.called()
        return Course(self, what, attempts, left_s, idempotent)

    async def run(
        self,
        operation: Callable[[], Awaitable[T]],
        attempts: int,
        timeout_s: float | None,
        idempotent: bool,
    ) -> T:
        """See `retry`."""
        course = self.begin(name_of_operation(operation), attempts, timeout_s, idempotent)
        limit = asyncio.timeout_at(None if timeout_s is None else course.deadline)
        try:
            async with limit:
                while True:
                    try:
                        return await operation()
                    except (NotDelivered, OutcomeUnknown) as error:
                        if not await course.goes_on(error):
                            raise
        except TimeoutError as error:
            if not limit.expired() or isinstance(error, FleetError):
                raise
            raise course.timed_out() from None


class Course:
    """One request and its repetitions. Used on the loop only.

    Attributes:
        deadline: of all attempts together, on the loop's clock; ``math.inf``: none.
    """

    __slots__ = (
        "_began_at", "_errors", "_idempotent", "_loop", "_most", "_pauses", "_retries", "_timeout_s",
        "_tried", "_what", "deadline",
    )  # fmt: skip

    def __init__(
        self, retries: Retries, what: Target, attempts: int, timeout_s: float, idempotent: bool
    ) -> None:
        self._retries = retries
        self._loop = asyncio.get_running_loop()
        self._what = what
        self._most = attempts
        self._timeout_s = timeout_s
        self._idempotent = idempotent
        self._began_at = self._loop.time()
        self.deadline: float = self._began_at + timeout_s
        self._tried = 0
        """Attempts that have failed."""
        self._pauses = 0
        self._errors: list[str] = []

    @property
    def left_s(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self.deadline - self._loop.time())

    async def goes_on(self, error: FleetError, at_once: bool = False) -> bool:
        """Say whether the request is made again after an attempt has failed, and pause before that.

        Args:
            error: of the attempt. If this returns False, it has got its note and is to be raised.
            at_once: without a pause: the next attempt goes to another process.
        """
        self._tried += 1
        pause, why = self._decide(error, at_once)
        if why:
            self._explain(error, why)
            return False
        self._errors.append(_shown(error))
        del self._errors[:-MAX_TOLD]
        if pause:
            await asyncio.sleep(pause)
        return True

    def timed_out(self) -> CallTimeout:
        """Return the error of an attempt that runs at the deadline."""
        error = CallTimeout(self._what, self._timeout_s)
        self._tried += 1
        self._explain(error, f"the {self._timeout_s:g} s for all attempts were over")
        return error

    def _decide(self, error: FleetError, at_once: bool) -> tuple[float, str]:
        """Return the pause before the next attempt, or why there is none."""
        retries, settings = self._retries, self._retries.settings
        is_final = isinstance(error, Expired) or (isinstance(error, NotAllowed) and not at_once)
        if is_final or not isinstance(error, NotDelivered | OutcomeUnknown):
            return 0.0, "this error is never repeated"
        has_begun = isinstance(error, OutcomeUnknown) or (isinstance(error, Draining) and error.has_begun)
        if has_begun and not self._idempotent:
            return 0.0, "the request may have run, and it was not said to be idempotent"
        if self._tried >= self._most:
            return 0.0, f"no attempt was left (attempts={self._most})"
        now, pause = self._loop.time(), 0.0
        if not at_once:
            pause = pause_s(retries.rng, self._pauses, settings.retry_pause_min_s, settings.retry_pause_max_s)
            self._pauses += 1
        if now + pause >= self.deadline:
            return 0.0, f"another attempt would begin after the deadline ({self._timeout_s:g} s)"
        # What was not sent was no load for anybody.
        is_free = isinstance(error, NoConnection) or (isinstance(error, Draining) and not error.was_sent)
        if not is_free and not retries.budget.take(now):
            return 0.0, "this node has used up its budget of repetitions (Settings.retry_ratio)"
        return pause, ""

    def _explain(self, error: FleetError, why: str) -> None:
        """Note on an error what was tried before it, unless that is nothing."""
        if not self._errors:
            return
        left_out = self._tried - 1 - len(self._errors)
        more = f"{left_out} more, " if left_out else ""
        took_s = self._loop.time() - self._began_at
        error.add_note(
            f"Attempt {self._tried} in {took_s:.2f} s; it was the last, since {why}. "
            f"Before it: {more}{'; '.join(self._errors)}"
        )


async def retry(
    operation: Callable[[], Awaitable[T]],
    *,
    attempts: int = 4,
    timeout: float | None = None,
    idempotent: bool = False,
) -> T:
    """Make a request, and make it again if it failed and that is safe.

    ::

        answer = await fleetlm.retry(lambda: ref.within(2).call(Model.answer, prompt), attempts=4)

    It is repeated after `NotDelivered`, which says that it never ran; after `OutcomeUnknown` only if
    ``idempotent``; after nothing else. So an operation that makes several requests one after the other is
    repeated as a whole though only its last one has failed: repeat each of them by itself.

    Before each repetition there is a random pause, whose ceiling doubles from `Settings.retry_pause_min_s` to
    `Settings.retry_pause_max_s`. The ``retry_after`` of `Draining` is not waited for: most drains end sooner,
    and a name may pass to another node before that. All requests of a node together are repeated at most as
    often as its budget allows (`Settings.retry_ratio`), so that callers do not make a failure worse. Attempts
    that were not sent cost nothing, such as those without a connection. For a request to any member of a
    group use `Groups.call` or `Groups.ref`, which repeat it at another member. For threads: `SyncNode.retry`.

    Args:
        operation: makes the request; called for each attempt.
        attempts: how often at most, the first one included.
        timeout: seconds for all attempts and pauses together; None: what the attempts themselves take. In a
            handler of an `Actor` it is at most what is left of the call being served.
        idempotent: whether the operation may run twice.

    Returns:
        What the operation returns.

    Raises:
        Exception: of the last attempt, unchanged but for a note on the attempts before it.
        CallTimeout: an attempt had begun and was cancelled at ``timeout``; it may have run.
        Expired: the call being served has no time left; nothing was done.
        TypeError, ValueError: ``attempts`` is not a whole number from 1; nothing was done.

    Source: gRPC A6 and AWS SDKs, which know from the status code alone whether a request may be repeated;
    differs: here each error says whether the request has run.
    """
    return await Retries.of_this_loop().run(operation, attempts, timeout, idempotent)


def name_of_operation(operation: object) -> str:
    """Return how errors name what a program repeats."""
    return getattr(operation, "__qualname__", None) or SHORT.repr(operation)


def check_attempts(attempts: int) -> None:
    """Raise TypeError or ValueError unless this is a number of attempts."""
    if type(attempts) is not int:
        raise TypeError(f"attempts is a whole number, not {type(attempts).__name__}")
    if attempts < 1:
        raise ValueError(f"attempts is {attempts}: at least one is needed to make the request at all")


def _shown(error: FleetError) -> str:
    return f"{type(error).__name__}: {text_of(error)}"
