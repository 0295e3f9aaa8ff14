"""Collects what `Node.info()` shows of this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fleetlm.runtime.info import NodeInfo

if TYPE_CHECKING:
    from fleetlm.runtime.assembly import Assembly


def own_info(parts: Assembly, listening: tuple[str, ...]) -> NodeInfo:
    """Return a snapshot of a node. The sums of messages are over the sessions that are open now."""
    me, kernel, poller = parts.context, parts.kernel, parts.poller
    now = me.loop.time()
    answered_at = None if poller is None else poller.last_answer_at
    answer = None if poller is None else poller.last_answer
    sessions = list(me.sessions.values())
    return NodeInfo(
        name=me.name,
        incarnation=me.incarnation,
        uptime_s=now - parts.started_at,
        own_address_why=parts.own_address_why,
        own_address_warning=parts.own_address_warning,
        cluster=me.settings.cluster,
        listening=listening,
        cookie=me.settings.cookie is not None,
        exposure_warning=parts.exposure_warning,
        discovery="off" if poller is None else poller.source,
        dns_verdict="" if answer is None else f"{answer.outcome.value}: {answer.detail}",
        dns_age_s=None if answered_at is None else now - answered_at,
        polls=0 if poller is None else poller.polls,
        lag_ms=parts.driver.lag_ms,
        draining=parts.draining.own.step != 0,
        observed_ips=tuple(sorted(kernel.reports.observed)),
        processes=parts.local.count,
        messages_sent=sum(session.messages_sent for session in sessions),
        messages_received=sum(session.messages_received for session in sessions),
        undelivered=parts.inbound.undelivered,
        unreadable=parts.inbound.unreadable,
        stalled=tuple(parts.outbound.waits.stalled(me.settings.stalled_after_s)),
        peers=tuple(kernel.topology.info(now)),
    )
