"""The examples of CONTRIBUTING.md, and what it says about this repository."""

from __future__ import annotations

import re
from pathlib import Path

from fleetlm.core.effects import Dial
from fleetlm.testing import Fleet
from tests.house_rules import ROWS, VALUES
from tests.support.kernel_fakes import T, addresses, ip, kernel, quiet

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_a_node_dials_each_address_that_dns_names() -> None:
    node = kernel()
    effects = quiet(node.looked_up(T, addresses(2, 3)))  # without what it reports for the log
    assert effects == [Dial(1, ip(2), 4370), Dial(2, ip(3), 4370)]
    assert node.looked_up(T + 1, addresses(2, 3)) == []  # it dials them already


async def test_both_sides_notice_a_partition(fleet: Fleet) -> None:
    one, two = await fleet.start(2)
    fleet.partition([one])
    await fleet.until(lambda: one.list() == [] and two.list() == [])
    fleet.heal()
    await fleet.mesh()


# ── what CONTRIBUTING.md says ────────────────────────────────────────────────────────────────────


def test_its_examples_stand_here() -> None:
    here = Path(__file__).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    assert [block for block in blocks if block not in here] == []


def test_its_import_table_is_that_of_the_house_rules() -> None:
    [table] = re.findall(r"```text\n(values\n.*?)```", TEXT, re.DOTALL)
    shown = [set(line.split(" · ")) for line in table.splitlines()]
    assert [row for row in shown if row not in [set(rooms) for rooms in ROWS]] == []
    order = [row_number for row in shown for row_number, rooms in enumerate(ROWS) if row == set(rooms)]
    assert order == sorted(order)
    packages = {path.parent.name for path in (ROOT / "fleetlm").glob("*/__init__.py")}
    assert packages <= set().union(*shown)


def test_it_names_the_modules_of_values() -> None:
    assert ", ".join(f"`{name}`" for name in VALUES) in TEXT


def test_the_make_targets_and_files_that_it_names_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = re.findall(r"\bmake ([a-z-]+)", TEXT)
    assert len(named) > 8
    assert set(named) <= targets
    files = re.findall(r"`((?:tests|fleetlm|docs)/[\w./-]+)`", TEXT)
    assert files
    assert [file for file in files if not (ROOT / file).exists()] == []
