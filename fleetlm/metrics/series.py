"""The series of a node: one row for each, which the documentation and the dashboards are held to.

Names follow Prometheus and OpenTelemetry: the unit is part of the name, in base units, and a counter ends
with ``_total``. No label has a pid, a key or a text of another node as its value; `labels` says how many
values those may have that come from outside.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

Type = Literal["counter", "gauge", "histogram"]


class Series(NamedTuple):
    """One row: the name as it is shown, its type, its labels, and what it means."""

    name: str
    type: Type
    labels: tuple[str, ...]
    help: str


_PEER, _REASON, _OUTCOME, _KIND = ("peer",), ("reason",), ("outcome",), ("kind",)

SERIES: Final[tuple[Series, ...]] = (
    # The node.
    Series("fleetlm_build_info", "gauge", ("version", "python"), "Versions of fleetlm and Python; always 1."),
    Series("fleetlm_uptime_seconds", "gauge", (), "Since the node started."),
    Series("fleetlm_draining", "gauge", (), "1 while the node is about to leave, else 0."),
    Series("fleetlm_loop_lag_seconds", "gauge", (), "By how much the last tick of the event loop was late."),
    Series("fleetlm_loop_late_seconds_total", "counter", (), "By how much all its ticks were late."),
    Series("fleetlm_resident_memory_bytes", "gauge", (), "Memory of the operating-system process."),
    Series("fleetlm_cpu_seconds_total", "counter", (), "CPU time of the operating-system process."),
    # Peers.
    Series("fleetlm_peers", "gauge", ("state",), "Other nodes in the table, by state."),
    Series("fleetlm_peer_lag_seconds", "gauge", _PEER, "By how much the peer's event loop was late."),
    Series("fleetlm_sent_messages_total", "counter", _PEER, "Messages sent to a peer."),
    Series("fleetlm_received_messages_total", "counter", _PEER, "Messages that came from a peer."),
    Series("fleetlm_sent_bytes_total", "counter", _PEER, "Bytes sent to a peer, in frames."),
    Series("fleetlm_received_bytes_total", "counter", _PEER, "Bytes that came from a peer."),
    Series("fleetlm_unread_bytes", "gauge", _PEER, "Bytes that a peer has not taken yet."),
    Series("fleetlm_window_full_seconds_total", "counter", _PEER, "Time in which senders waited for a peer."),
    Series("fleetlm_waiting_senders", "gauge", _PEER, "Senders that wait for room at a peer now."),
    Series("fleetlm_reconnects_total", "counter", _REASON, "Nodes connected again, by reason."),
    Series("fleetlm_sessions_ended_total", "counter", _REASON, "Ends of sessions with other nodes."),
    # Requests.
    Series("fleetlm_call_seconds", "histogram", _OUTCOME, "Calls of this node, until their outcome."),
    Series("fleetlm_failed_calls_total", "counter", _OUTCOME, "Calls that did not end well, each counted."),
    Series("fleetlm_open_calls", "gauge", (), "Calls and streams of this node without an outcome."),
    Series("fleetlm_open_requests", "gauge", (), "Calls and streams of peers that are open here."),
    Series(
        "fleetlm_handler_seconds",
        "histogram",
        ("actor", "handler"),
        "Runs of handlers, with their waits.",
    ),
    Series("fleetlm_handler_failures_total", "counter", ("actor", "handler"), "Exceptions of handlers."),
    Series("fleetlm_queue_seconds", "histogram", ("actor",), "From the arrival of a call to its handler."),
    # Processes and messages.
    Series("fleetlm_processes", "gauge", (), "Processes of this node."),
    Series("fleetlm_processes_spawned_total", "counter", (), "Processes that this node has started."),
    Series("fleetlm_mailbox_messages", "gauge", (), "Messages that wait in the mailboxes of all processes."),
    Series("fleetlm_mailbox_messages_max", "gauge", (), "Messages that wait in the fullest mailbox."),
    Series(
        "fleetlm_undelivered_messages_total", "counter", (), "As dropped for no_process, since the start."
    ),
    Series("fleetlm_unreadable_messages_total", "counter", (), "As dropped for unreadable, since the start."),
    Series("fleetlm_dropped_messages_total", "counter", _REASON, "Messages that no process has seen."),
    Series("fleetlm_child_restarts_total", "counter", (), "Children that supervisors have restarted."),
    Series("fleetlm_supervisors_gave_up_total", "counter", (), "Supervisors whose children ended too often."),
    # Tables.
    Series("fleetlm_table_entries", "gauge", ("table",), "Sizes of the tables of this node."),
    Series("fleetlm_group_members", "gauge", ("group",), "Memberships of a process group, on all nodes."),
    # Keyed entities, of the kinds that this node hosts.
    Series("fleetlm_entities", "gauge", _KIND, "Entities that live on this node."),
    Series("fleetlm_entity_kept_bytes", "gauge", _KIND, "Bytes of the saved states that this node keeps."),
    Series("fleetlm_entity_shards", "gauge", _KIND, "Shards that this node owns."),
    Series("fleetlm_entity_shards_unowned", "gauge", _KIND, "Shards that no node owns, as this one sees it."),
    Series("fleetlm_entity_shards_moving", "gauge", _KIND, "Shards that are being handed over."),
    Series("fleetlm_entity_quorum", "gauge", _KIND, "1 if a majority is seen, else 0; only with a quorum."),
    Series("fleetlm_entities_activated_total", "counter", _KIND, "Entities that were made."),
    Series("fleetlm_entities_fenced_total", "counter", _KIND, "Entities that were ended by fencing."),
    Series("fleetlm_entity_store_failures_total", "counter", _KIND, "Operations of its store that failed."),
    Series("fleetlm_entity_handoffs_total", "counter", ("kind", "end"), "Handoffs of shards, by their end."),
    # DNS.
    Series("fleetlm_dns_outcome", "gauge", _OUTCOME, "1 for the outcome of the last lookup, else 0."),
    Series("fleetlm_dns_age_seconds", "gauge", (), "Since the last lookup ended."),
    Series("fleetlm_dns_addresses", "gauge", (), "Addresses in the last answer."),
    Series("fleetlm_dns_lookups_total", "counter", (), "Lookups that have ended."),
    # The measuring itself.
    Series("fleetlm_telemetry_lost_events_total", "counter", (), "Events that observers were too slow for."),
    Series("fleetlm_scrape_stale", "gauge", (), "1 if the node did not answer in time, so that all is old."),
    Series("fleetlm_scrape_seconds", "gauge", (), "What this scrape took of the event loop."),
)
"""All series, in the order in which they are shown."""
