"""All targets, by name."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import (
    pair_target,
    replica_targets,
    state_targets,
    text_targets,
    vote_targets,
    wire_targets,
)

TARGETS: dict[str, Callable[[bytes], None]] = {
    "frames": wire_targets.fuzz_frames,
    "codec": wire_targets.fuzz_codec,
    "operations": wire_targets.fuzz_operations,
    "carriers": wire_targets.fuzz_carriers,
    "chunks": wire_targets.fuzz_chunks,
    "messages": wire_targets.fuzz_messages,
    "tables": state_targets.fuzz_tables,
    "rows": replica_targets.fuzz_rows,
    "members": replica_targets.fuzz_members,
    "shards": replica_targets.fuzz_shards,
    "votes": vote_targets.fuzz_votes,
    "links": state_targets.fuzz_links,
    "overview": state_targets.fuzz_overview,
    "kernel": state_targets.fuzz_kernel,
    "pair": pair_target.fuzz_pair,
    "names": text_targets.fuzz_names,
    "settings": text_targets.fuzz_settings,
    "files": text_targets.fuzz_files,
    "dns": text_targets.fuzz_dns,
    "console": text_targets.fuzz_console,
}
