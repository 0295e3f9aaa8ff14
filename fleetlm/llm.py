"""Picks for inference workers: where a prompt's prefix was computed before, unless that worker is too loaded.

An inference engine keeps the attention states of what it has computed, so a prompt that begins like a former
one is cheaper at the worker that served it. A `PrefixIndex` learns from the routing of its own node which
workers have seen which prefixes, and scores members by both: how much of the prompt they have seen, and how
loaded they are::

    index = fleetlm.llm.PrefixIndex()
    models = node.groups.ref(Model, "models")

    route = index.route(tokens)
    answer = await models.scored(route).call(Model.complete, tokens)

What is learnt is a guess: the engine may have dropped the states meanwhile. It costs no messages, and needs
nothing of the engine.

Source: SGLang's router (cache-aware load balancing) and llm-d's prefix scorer for the idea; differs: a chain
of hashes of blocks in place of a tree of tokens, and loads are the sum over all nodes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fleetlm.core.member_loads import MemberInfo
    from fleetlm.ids import Pid

BLOCK_TOKENS = 16
"""Tokens of one block, as inference engines count: a prefix is a number of whole blocks."""
MAX_BLOCKS = 200_000
"""Blocks that an index remembers, in some 70 MiB: a thousand conversations of 3,000 tokens. Those that were
used longest ago are forgotten first."""
MAX_WORKERS = 4
"""Workers that an index remembers for one block: the ones that got it last."""


class PrefixIndex:
    """Which workers have seen which prefixes, as the routing of this node tells.

    Args:
        block_tokens: tokens of one block.
        max_blocks: blocks that are remembered.
        beta: how much load weighs against a prefix: with 1.0 a worker that has seen the whole prompt is
            picked until it has twice the mean load.

    Raises:
        ValueError: one of them is not above 0.
    """

    __slots__ = ("_beta", "_block_tokens", "_max_blocks", "_seen")

    def __init__(
        self, block_tokens: int = BLOCK_TOKENS, max_blocks: int = MAX_BLOCKS, beta: float = 1.0
    ) -> None:
        if block_tokens < 1 or max_blocks < 1 or beta <= 0:
            raise ValueError("block_tokens, max_blocks and beta must be above 0")
        self._block_tokens = block_tokens
        self._max_blocks = max_blocks
        self._beta = beta
        self._seen: OrderedDict[bytes, dict[Pid, None]] = OrderedDict()
        """Hash of a prefix → the workers that got it, the latest one last."""

    def __len__(self) -> int:
        """Return the number of blocks that are remembered."""
        return len(self._seen)

    def route(self, prompt: Sequence[int] | str) -> Route:
        """Return a score for one prompt, to be given to `Groups.pick` or `GroupRef.scored`.

        Args:
            prompt: its tokens; or its text, of which four characters count as a token. 10,000 tokens take
                some 2 ms.
        """
        return Route(self, self._hashes(prompt))

    def forget(self, pid: Pid) -> None:
        """Forget what a worker has seen, such as after it has dropped its states. Takes a moment."""
        for prefix in [prefix for prefix, pids in self._seen.items() if pid in pids]:
            del self._seen[prefix][pid]
            if not self._seen[prefix]:
                del self._seen[prefix]

    def note(self, prefixes: Sequence[bytes], pid: Pid) -> None:
        """Note that a worker gets a prompt with these prefixes."""
        # The longest one first, so that it is also the first to be forgotten: without the beginning of a
        # prompt, what is known of its end says nothing.
        for prefix in reversed(prefixes):
            pids = self._seen.setdefault(prefix, {})
            pids.pop(pid, None)
            pids[pid] = None
            if len(pids) > MAX_WORKERS:
                del pids[next(iter(pids))]
            self._seen.move_to_end(prefix)
        while len(self._seen) > self._max_blocks:
            self._seen.popitem(last=False)

    def matched(self, prefixes: Sequence[bytes]) -> dict[Pid, int]:
        """Return for each worker how many blocks from the start of a prompt it has seen.

        Who has seen a block has seen those before it, also where they are so common that other workers have
        taken its place at them (`MAX_WORKERS`).
        """
        matched: dict[Pid, int] = {}
        for count, prefix in enumerate(prefixes, 1):
            pids = self._seen.get(prefix)
            if pids is None:
                break
            for pid in pids:
                matched[pid] = count
        return matched

    def score(self, matched_share: float, info: MemberInfo) -> float:
        """Return the score of a worker that has seen this share of a prompt."""
        if info.mean_load <= 0:
            return matched_share
        return matched_share - self._beta * (info.load - info.mean_load) / info.mean_load

    def _hashes(self, prompt: Sequence[int] | str) -> list[bytes]:
        """Return the hashes of all prefixes of whole blocks; each one continues the one before."""
        size = self._block_tokens * (4 if isinstance(prompt, str) else 1)
        chain = hashlib.blake2b(digest_size=16)
        prefixes = []
        for start in range(0, len(prompt) - size + 1, size):
            block = prompt[start : start + size]
            data = block if isinstance(block, str) else ",".join(map(str, block))
            chain.update(data.encode("utf-8", "surrogatepass") + b"\0")
            prefixes.append(chain.digest())
        return prefixes


class Route:
    """The score of one prompt; made by `PrefixIndex.route`.

    Use a route for one request. The picker tells it which member was picked, so that the next prompt that
    begins like this one goes there; a request that is repeated elsewhere is learnt there too.
    """

    __slots__ = ("_index", "_matched", "_prefixes")

    def __init__(self, index: PrefixIndex, prefixes: list[bytes]) -> None:
        self._index = index
        self._prefixes = prefixes
        self._matched = index.matched(prefixes)

    def __call__(self, info: MemberInfo) -> float:
        """Return the score of a member."""
        share = self._matched.get(info.pid, 0) / len(self._prefixes) if self._prefixes else 0.0
        return self._index.score(share, info)

    def picked(self, pid: Pid) -> None:
        """Note that this member gets the prompt."""
        self._index.note(self._prefixes, pid)
