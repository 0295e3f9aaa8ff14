"""The picture in docs/top.md can be drawn anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("textual")
from tests.support import top_picture

ROOT = Path(__file__).resolve().parents[4]


async def test_the_picture_shows_a_cluster_at_work() -> None:
    svg = await top_picture.draw(await asyncio.to_thread(top_picture.looks))
    assert svg.startswith("<svg")
    for shown in ("generate", "llama", "reply", "mailbox"):
        assert shown in svg


def test_the_picture_that_is_kept_loads_nothing_from_other_hosts() -> None:
    svg = (ROOT / "docs/images/top.svg").read_text(encoding="utf-8")
    assert "generate" in svg
    for loads in ("@font-face", "url(http", "<image", "<script"):
        assert loads not in svg
