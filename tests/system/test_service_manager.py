"""`fleetlm start` and `fleetlm.run` tell a service manager, as real processes, on a socket like systemd's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.patience import allowed_s
from tests.support.service_managers import FakeManager

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import asyncio, pathlib, sys
import fleetlm

async def main(node):
    node.add_check("model", pathlib.Path("loaded").exists)
    await node.wait_stopped()

if __name__ == "__main__":
    fleetlm.run(main)
"""
COMMANDS = {
    "start": [sys.executable, "-m", "fleetlm", "start", "program:main"],
    "run": [sys.executable, "program.py"],
}
LIMIT_S = 15.0


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeManager]:
    if request.param == "abstract" and sys.platform != "linux":
        pytest.skip("only Linux has abstract sockets")
    address = tmp_path / "notify" if request.param == "path" else f"@fleetlm-system-{os.getpid()}"
    with FakeManager(address) as listening:
        yield listening


@pytest.mark.parametrize("way", COMMANDS)
def test_a_program_is_ready_when_its_check_passes_and_says_that_it_stops(
    way: str, manager: FakeManager, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    env = {name: text for name, text in os.environ.items() if not name.startswith(("FLEETLM_", "DNS_"))}
    env |= {"NOTIFY_SOCKET": manager.address, "FLEETLM_REMOTE": "off"}
    limit_s = allowed_s(LIMIT_S)
    with subprocess.Popen(COMMANDS[way], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True) as process:
        try:
            status = manager.wait_for("STATUS", limit_s)["STATUS"]
            assert "is not ready: the check model says no" in status
            assert manager.names() == []
            (tmp_path / "loaded").touch()
            assert "is ready" in manager.wait_for("READY", limit_s)["STATUS"]
            process.send_signal(signal.SIGTERM)
            assert int(manager.wait_for("STOPPING", limit_s)["EXTEND_TIMEOUT_USEC"]) > 1_000_000
            _, said = process.communicate(timeout=limit_s)
        finally:
            process.kill()
    assert process.returncode == 0, said
    assert manager.names() == ["READY", "STOPPING"]
