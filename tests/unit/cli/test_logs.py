"""The log of the command line: what a record becomes, and that writing it never waits."""

from __future__ import annotations

import fcntl
import io
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from fleetlm.cli import logs
from tests.support.patience import allowed_s


def record(text: str, *args: object, **fields: Any) -> logging.LogRecord:
    made = logging.LogRecord("fleetlm.x", logging.WARNING, "f.py", 1, text, args, fields.get("exc_info"))
    made.created, made.msecs = 1_700_000_000.25, 250.0
    return made


class FullPipe:
    """A pipe without any room, as a log collector leaves it that has stopped reading."""

    def __init__(self) -> None:
        self.reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
        os.write(writer, b"x" * 4096)
        self.stream: TextIO = os.fdopen(writer, "w")

    def read_until(self, text: str) -> str:
        """Read from now on, until ``text`` has come, and return everything."""
        got = b""
        while text.encode() not in got:
            got += os.read(self.reader, 65_536)
        return got.decode().removeprefix("x" * 4096)

    def close(self) -> None:
        os.close(self.reader)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[FullPipe]:
    made = FullPipe()
    yield made
    made.close()


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield root
    root.handlers[:] = before[0]
    root.setLevel(before[1])


def test_a_json_record_is_one_object_on_one_line() -> None:
    formatter = logs.JsonFormatter()
    line = formatter.format(record("%d nodes\nand \x1b[2J", 3))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "fleetlm.x",
        "message": "3 nodes\nand \x1b[2J",
        "node": None,
    }


def test_a_json_record_names_the_node_the_process_and_the_traceback() -> None:
    formatter = logs.JsonFormatter()
    formatter.node = "fleetlm@10.0.0.7"
    formatter.find_context = lambda: {"process": "<fleetlm@10.0.0.7 1.7>", "trace_id": "12"}
    try:
        int("wrong")
    except ValueError:
        fields = json.loads(formatter.format(record("failed", exc_info=sys.exc_info())))
    assert fields["node"] == "fleetlm@10.0.0.7"
    assert fields["process"] == "<fleetlm@10.0.0.7 1.7>"
    assert fields["trace_id"] == "12"
    assert fields["exc"].startswith("Traceback")
    assert "ValueError" in fields["exc"]


def test_set_up_writes_json_where_it_is_asked_to(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    log = logs.set_up("info", stream, form="json")
    log.attribute_to(lambda: lambda: {"process": "pid"})
    log.node = "n"
    assert log.node == "n"
    root_logger.info("hello")
    log.close()
    fields = json.loads(stream.getvalue())
    assert (fields["message"], fields["node"], fields["process"]) == ("hello", "n", "pid")


def test_text_records_name_no_process(root_logger: logging.Logger) -> None:
    stream = io.StringIO()
    log = logs.set_up("info", stream)
    log.attribute_to(lambda: pytest.fail("a log of text needs no context"))
    root_logger.info("hello")
    log.close()
    assert stream.getvalue().endswith("hello\n")


def test_a_stream_that_nobody_reads_stops_nothing_and_what_is_dropped_is_counted(
    pipe: FullPipe, root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MAX_QUEUED_CHARS", 10_000)
    log = logs.set_up("info", pipe.stream)
    for number in range(300):
        root_logger.info("line %d of a node that goes on", number)  # A handler that waits hangs here.
    got = pipe.read_until("dropped here, because nothing read them\n")
    log.close()
    lines = [line for line in got.splitlines() if "of a node" in line]
    (said,) = [line for line in got.splitlines() if "dropped here" in line]
    dropped = int(said.split("fleetlm.log: ")[1].split()[0])
    assert dropped > 100
    kept = [int(line.split(" line ")[1].split()[0]) for line in lines]
    assert kept == list(range(len(kept))), "the first ones were kept, in order"
    assert len(kept) + dropped == 300
    assert got.endswith(f"{said}\n"), "the loss is told where it happened"


def test_lines_flow_again_once_the_stream_is_read(pipe: FullPipe, root_logger: logging.Logger) -> None:
    log = logs.set_up("info", pipe.stream)
    root_logger.info("before")
    assert "before" in pipe.read_until("before\n")
    root_logger.info("after")
    got = pipe.read_until("after\n")
    assert "dropped" not in got
    log.close()


def test_closing_waits_for_a_stream_that_nobody_reads_only_so_long(
    pipe: FullPipe, root_logger: logging.Logger
) -> None:
    log = logs.set_up("info", pipe.stream)
    root_logger.info("never read")
    assert not log.output.close(timeout_s=0.01)


def test_a_broken_stream_loses_lines_and_nothing_else(root_logger: logging.Logger) -> None:
    class Full(io.StringIO):
        is_full = True

        def write(self, text: str) -> int:
            if self.is_full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    stream = Full()
    log = logs.set_up("info", stream)
    root_logger.info("lost")
    while log.output._dropped == 0:  # Until the thread has tried.
        threading.Event().wait(0.001)
    stream.is_full = False
    root_logger.info("kept")
    log.close()
    assert "kept" in stream.getvalue()
    assert "1 log line was dropped here" in stream.getvalue()


def test_fleetlm_start_ends_in_time_although_nobody_reads_its_error(pipe: FullPipe) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fleetlm", "start"],
        env={**os.environ, "FLEETLM_NODE_PORT": "0"},
        cwd=Path(__file__).parents[3],
        stderr=pipe.stream,
        timeout=allowed_s(20),
        check=False,
    )
    assert done.returncode == 78


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_writes_its_lines_itself(root_logger: logging.Logger, tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("w", encoding="utf-8") as stream:
        log = logs.set_up("info", stream)
        root_logger.info("from the parent")
        child = os.fork()
        if child == 0:
            root_logger.info("from the child")
            log.close()
            os._exit(0)
        os.waitpid(child, 0)
        log.close()
    lines = path.read_text(encoding="utf-8").splitlines()
    assert sorted(line.rpartition(": ")[2] for line in lines) == ["from the child", "from the parent"]
