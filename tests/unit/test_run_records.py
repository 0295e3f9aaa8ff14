"""Records of runs are read once each, and only when they are whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.system.run_records import RunRecords

if TYPE_CHECKING:
    from pathlib import Path


def test_what_has_come_since_is_read_and_a_torn_line_when_it_is_whole(tmp_path: Path) -> None:
    records = RunRecords(tmp_path)
    assert [*records.new()] == []
    one, two = tmp_path / "a-1.jsonl", tmp_path / "b-2.jsonl"
    one.write_bytes(b'["asked"]\n["ok"]\n["to')
    two.write_bytes(b'["run"]\n')
    (tmp_path / "a-1.ready").touch()
    assert [*records.new()] == [("a-1", ["asked"]), ("a-1", ["ok"]), ("b-2", ["run"])]
    assert [*records.new()] == []
    with one.open("ab") as file:
        file.write(b'rn"]\n["later')
    assert [*records.new()] == [("a-1", ["torn"])]
    assert [*RunRecords(tmp_path).new()][2:] == [("a-1", ["torn"]), ("b-2", ["run"])]
