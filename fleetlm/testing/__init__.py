"""Test kit: everything needed to test a program on fleetlm without a network or a wait.

`DnsServer` is a real name server on loopback whose answers a test scripts.
"""

from __future__ import annotations

from fleetlm.testing.dns import DnsServer

__all__ = ["DnsServer"]
