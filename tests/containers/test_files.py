"""Checks of the files in docker/; they need no engine."""

from __future__ import annotations

import pytest

from tests.containers.cluster import BASE_IMAGE, SHIPPED

COMPOSE = SHIPPED.read_text(encoding="utf-8")
DOCKERFILE = (SHIPPED.parent / "Dockerfile").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "line",
    [
        "DNS_CLUSTER_QUERY: ${DNS_CLUSTER_QUERY:-worker}",
        "DNS_CLUSTER_NODE_BASENAME: ${DNS_CLUSTER_NODE_BASENAME:-fleetlm}",
        "DNS_POLL_INTERVAL_MS: ${DNS_POLL_INTERVAL_MS:-5000}",
    ],
)
def test_the_three_variables_are_placeholders(line: str) -> None:
    assert [text.strip() for text in COMPOSE.splitlines()].count(line) == 1


def test_no_port_is_published() -> None:
    assert "ports:" not in COMPOSE


def test_the_image_uses_one_base_only() -> None:
    lines = [line.split() for line in DOCKERFILE.splitlines() if line.strip()]
    stages = [words[1:] for words in lines if words[0] == "FROM"]
    own = {words[2] for words in stages}
    assert {words[0] for words in stages} - own == {"${BASE_IMAGE}"}
    (base,) = [words[1] for words in lines if words[0] == "ARG"]
    assert base.partition("@")[0] == f"BASE_IMAGE={BASE_IMAGE}"
    assert not any("syntax=" in word for words in lines for word in words)
    assert not any(word.startswith(("http://", "https://")) for words in lines for word in words)


def test_the_container_runs_without_root_and_can_be_stopped() -> None:
    lines = DOCKERFILE.splitlines()
    assert "USER fleetlm" in lines
    assert "STOPSIGNAL SIGTERM" in lines
    assert any(line.startswith("HEALTHCHECK") for line in lines)
