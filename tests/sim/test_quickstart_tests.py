"""README's two tests, as the suite's own; tests/unit/test_guides.py compares their text with README's."""

from __future__ import annotations

from examples.quickstart.tests.test_leader import test_the_standby_takes_over
from examples.quickstart.tests.test_partition import test_a_partition_and_a_crash_are_noticed

__all__ = ["test_a_partition_and_a_crash_are_noticed", "test_the_standby_takes_over"]
