"""Requests to any member of a process group: picks one, asks it, and asks another one if that is safe.

Theory of operation. A `GroupRequest` says whom to pick and how often. For each attempt a member is picked
from the table as it is then, so that a repetition finds members that came meanwhile. After a failure its
member is passed over, and so are the other members on its node, as long as there are others: a node that
refuses, or that is lost, most likely does the same to the next request. While there is a member that was not
tried, the next attempt begins at once, since no process is asked twice. After that there is a pause, as with
`fleetlm.retry`, and all members but the last one are tried again. `messaging.retries` decides what is
repeated at all, and bounds it.

A stream is repeated only before its first item: after it, the program has seen a part of an answer that
another member would begin anew.

Source: gRPC A6 with a load balancer below it, which picks afresh for each attempt; Envoy's previous-hosts
retry predicate; differs: whether a request may be repeated is known from its error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from fleetlm.core.picking import ANY, Picker, Tried, Wanted, check_rule
from fleetlm.errors import FleetError, NotDelivered, OutcomeUnknown
from fleetlm.messaging.repeated_source import RepeatedSource
from fleetlm.messaging.retries import check_attempts
from fleetlm.records import Record
from fleetlm.seconds import check_timeout

if TYPE_CHECKING:
    from fleetlm.actors.sender import ActorSender
    from fleetlm.core.group_table import GroupTable
    from fleetlm.core.picking import By, Score
    from fleetlm.core.rings import Key
    from fleetlm.ids import Pid
    from fleetlm.messaging.retries import Course, Retries
    from fleetlm.settings import Settings
    from fleetlm.stream import Source, Stream

R = TypeVar("R")


class GroupRequest(Record):
    """Whom a request goes to, and how often it is made.

    Attributes:
        group: its name.
        by: the rule of `Groups.pick`.
        key: for the rules with a key.
        attempts: how often at most, the first one included.
        idempotent: whether the request may run twice.
        wanted: which members are wanted.

    Raises:
        TypeError, ValueError: they do not fit together.
    """

    group: str
    by: By
    key: Key | None
    attempts: int
    idempotent: bool
    wanted: Wanted = ANY

    def __post_init__(self) -> None:
        check_rule(self.by, self.key, self.wanted)
        check_attempts(self.attempts)


class GroupCalls:
    """Makes the requests of one node to groups.

    Args:
        table: knows the members.
        picker: picks one.
        sender: sends to it.
        retries: of this node.
        settings: of this node.
    """

    def __init__(
        self, table: GroupTable, picker: Picker, sender: ActorSender, retries: Retries, settings: Settings
    ) -> None:
        self.sender: ActorSender = sender
        self._table = table
        self._picker = picker
        self._retries = retries
        self._settings = settings

    def pick(
        self, group: str, by: By, key: Key | None, where: Mapping[str, Any] | None, score: Score | None
    ) -> Pid:
        """See `Groups.pick`."""
        wanted = wanted_by(where, score)
        return self._picker.pick(group, self._table.members(group), by, key, None, wanted)

    @staticmethod
    def request(
        group: str, by: By, key: Key | None, attempts: int, idempotent: bool,
        where: Mapping[str, Any] | None = None, score: Score | None = None,
    ) -> GroupRequest:  # fmt: skip
        """Return what the arguments of `Groups.ref` ask for. Raises: TypeError, ValueError."""
        return GroupRequest(group, by, key, attempts, idempotent, wanted_by(where, score))

    async def call(self, request: GroupRequest, message: Any, timeout_s: float | None) -> Any:
        """See `Groups.call`."""
        within_s = self._settings.call_timeout_s if timeout_s is None else timeout_s

        def ask(pid: Pid, left_s: float) -> Awaitable[Any]:
            return self.sender.call(pid, message, left_s)

        return await self._repeat(self.begin(request, within_s), ask)

    async def cast(self, request: GroupRequest, message: Any, timeout_s: float | None) -> None:
        """See `GroupRef.cast`."""
        within_s = self._settings.send_timeout_s if timeout_s is None else timeout_s

        def ask(pid: Pid, left_s: float) -> Awaitable[None]:
            return self.sender.cast(pid, message, left_s)

        await self._repeat(self.begin(request, within_s), ask)

    def stream(
        self, request: GroupRequest, message: Any, timeout_s: float | None, idle_s: float | None
    ) -> Stream[Any]:
        """See `Groups.stream`."""
        check_timeout(timeout_s)
        check_timeout(idle_s, "idle")
        return self.sender.held(GroupSource(self, request, message, timeout_s, idle_s))

    def begin(self, request: GroupRequest, timeout_s: float | None) -> Search:
        """Begin a request. Raises: Expired: the call being served has no time left."""
        course = self._retries.begin(request.group, request.attempts, timeout_s, request.idempotent)
        return Search(request, course, self._table, self._picker)

    async def _repeat(self, search: Search, ask: Callable[[Pid, float], Awaitable[R]]) -> R:
        while True:
            try:
                return await ask(search.pick(), search.course.left_s)
            except (NotDelivered, OutcomeUnknown) as error:
                if not await search.goes_on(error):
                    raise


class Search:
    """The members that one request has been made at, and the next one.

    Attributes:
        course: bounds the attempts.
    """

    __slots__ = ("_last", "_picker", "_request", "_table", "_tried", "course")

    def __init__(self, request: GroupRequest, course: Course, table: GroupTable, picker: Picker) -> None:
        self.course: Course = course
        self._request = request
        self._table = table
        self._picker = picker
        self._tried: Tried | None = None
        self._last: Pid | None = None

    def pick(self) -> Pid:
        """Return the member for the next attempt. Raises: NoMember."""
        self._last = None
        request, members = self._request, self._table.members(self._request.group)
        self._last = self._picker.pick(
            request.group, members, request.by, request.key, self._tried, request.wanted
        )
        return self._last

    async def goes_on(self, error: FleetError) -> bool:
        """Return whether to pick again after a failure; pause before that if all members have failed."""
        last, is_another_left = self._last, False
        if last is not None:
            tried = self._tried = self._tried or Tried()
            tried.add(last)
            request, members = self._request, self._table.members(self._request.group)
            is_another_left = tried.leaves_another(
                self._picker.candidates(request.group, members, request.wanted)
            )
        if not await self.course.goes_on(error, at_once=is_another_left):
            return False
        if last is not None and not is_another_left:
            self._tried = Tried()
            self._tried.add(last)
        return True


class GroupSource(RepeatedSource):
    """A stream from any member of a group.

    Args:
        calls: pick members, and send to them.
        request: whom to ask, and how often.
        message: what is asked.
        timeout_s: seconds for the whole stream, from its begin; None: without limit.
        idle_s: seconds that it may pause; see `Node.stream`.
    """

    __slots__ = ("_calls", "_idle_s", "_message", "_request", "_search", "_timeout_s")

    def __init__(
        self,
        calls: GroupCalls,
        request: GroupRequest,
        message: Any,
        timeout_s: float | None,
        idle_s: float | None,
    ) -> None:
        super().__init__()
        self._calls = calls
        self._request = request
        self._message = message
        self._timeout_s = timeout_s
        self._idle_s = idle_s
        self._search: Search | None = None

    async def open(self) -> Source:
        """Pick a member."""
        if self._search is None:
            self._search = self._calls.begin(self._request, self._timeout_s)
        timeout_s = None if self._timeout_s is None else self._search.course.left_s
        pid = self._search.pick()
        return self._calls.sender.source(pid, self._message, timeout_s, self._idle_s)

    async def goes_on(self, error: NotDelivered | OutcomeUnknown) -> bool:
        """See `Search.goes_on`."""
        return self._search is not None and await self._search.goes_on(error)


def wanted_by(where: Mapping[str, Any] | None, score: Score | None) -> Wanted:
    """Return which members the arguments ``where`` and ``score`` of `Groups.pick` want.

    Raises:
        TypeError: ``where`` is no mapping, or ``score`` no function.
    """
    if where is None and score is None:
        return ANY
    if where is not None and not isinstance(where, Mapping):
        raise TypeError(f"where= is a mapping of names and values, not {type(where).__name__}")
    if score is not None and not callable(score):
        raise TypeError(f"score= is a function of a MemberInfo, not {type(score).__name__}")
    return Wanted(where, score)
