"""Each fuzz target takes its stored inputs, and these with a few bytes changed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fleetlm.entities.majority import _rows as readable
from fleetlm.testing.loop import run
from tests.fuzz import __main__ as command, stored
from tests.fuzz.inputs import Inputs, block
from tests.fuzz.minimise import smallest
from tests.fuzz.seeds import SEEDS
from tests.fuzz.targets import TARGETS
from tests.fuzz.wire_targets import take_batches

CHANGED_INPUTS = 60


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_finds_nothing_in_its_stored_inputs(target: str) -> None:
    for name, data in stored.inputs_of(target).items():
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"input: {name} of {target}: {data[:200]!r}")
            raise


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_finds_nothing_in_changed_inputs(target: str) -> None:
    rng = random.Random(target)
    known = list(stored.inputs_of(target).values())
    for _ in range(CHANGED_INPUTS):
        data = changed(rng, rng.choice(known))
        try:
            TARGETS[target](data)
        except Exception as error:
            error.add_note(f"input: {data!r}")
            raise


def changed(rng: random.Random, data: bytes) -> bytes:
    """The input with one to four bytes changed, put in or cut off."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(4):
            case 0:
                made[at:at] = rng.randbytes(rng.randint(1, 4))
            case 1:
                del made[at : at + rng.randint(1, 4)]
            case _ if at < len(made):
                made[at] = rng.choice((0, 1, 0x80, 0xC1, 0xC7, 0xD9, 0xDD, 0xFF, rng.randrange(256)))
    return bytes(made)


def test_every_target_has_seeds_and_every_folder_a_target() -> None:
    assert SEEDS.keys() == TARGETS.keys()
    for kind in stored.FOLDERS:
        folders = {path.name for path in stored.folder(kind, "").glob("*") if path.is_dir()}
        assert folders <= TARGETS.keys()


def test_without_atheris_the_fuzzer_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["tests.fuzz", "codec"])
    assert command.main() == 1
    assert "pip install" in capsys.readouterr().err


def test_one_input_can_be_run_without_atheris(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "input").write_bytes(b"\xc0")
    monkeypatch.setattr("sys.argv", ["tests.fuzz", "codec", "--input", str(tmp_path / "input")])
    assert command.main() == 0


def test_honest_batches_are_taken() -> None:
    taken = [run(take_batches(data)) for data in SEEDS["messages"]()]
    assert taken.count(True) > len(taken) / 2  # The others answer requests that nobody has made.


def test_a_corpus_is_made_small() -> None:
    useful, useless = b"a@10.0.0.1", b"a@10.0.0.22"
    names = TARGETS["names"]
    assert smallest(names, [], [useless, useful, b""]) != []
    assert smallest(names, [useful], [useless]) == []
    assert useful not in smallest(names, [useless], [useful, b"a@[fd00::1]:4370"])


def test_an_input_is_taken_apart_the_same_way_each_time() -> None:
    source = Inputs(block(b"abc") + b"\x05\x01\x02" + "é".encode() + b"rest")
    assert source.block() == b"abc"
    assert source.number(4) == 1
    assert source.number(1_000) == 0x0102
    assert source.text(2) == "é"
    assert bool(source)
    assert source.rest() == b"rest"
    assert not source
    assert source.number(10) == 0
    assert source.choice("xyz") == "x"
    assert source.block() == b""


def test_an_answer_that_names_a_shard_twice_is_no_answer() -> None:
    """Else one member would count for two, and a shard that is lost would be given up twice."""
    assert readable([[1, 0], [2, 0]]) == [(1, 0), (2, 0)]
    assert readable([[1, 0], [1, 0]]) is None
