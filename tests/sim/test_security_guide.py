"""The programs in docs/security.md do what the page says."""

from __future__ import annotations

import re

import pytest

from fleetlm import Actor, NotAllowed, handler
from fleetlm.setting_parsers import RIGHTS
from tests.sim.fleet import Fleet, simulated
from tests.support.guides import ROOT

PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")


class Signer(Actor):
    """Signs for this node's own processes; every node may verify."""

    @handler
    async def verify(self, text: str, signature: str) -> bool:
        return signature == await self.sign(text)

    @handler(local=True)
    async def sign(self, text: str) -> str:
        return f"signed by {self.node.name}: {text}"


@simulated
async def test_every_node_may_verify_and_one_may_sign(fleet: Fleet) -> None:
    a, b = await fleet.mesh(2)
    here = await b.start_actor(Signer, name="signer")
    there = a.ref(Signer, "signer", b.name)
    signature = await here.call(Signer.sign, "x")
    assert await there.call(Signer.verify, "x", signature)
    assert not await there.call(Signer.verify, "x", "forged")
    with pytest.raises(NotAllowed, match=r"Signer\.sign is for its own node only"):
        await there.call(Signer.sign, "x")


def test_the_page_lists_every_right() -> None:
    table = PAGE[PAGE.index("| right |") : PAGE.index("Nothing needs a right")]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(RIGHTS)
