"""A log of any size in Parquet files: written day by day, compacted, asked and verified, every answer checked.

    python benchmarks/size.py write sessions/ --rows 100000000 --days 10    # rows a day; 23 bytes a row on disk
    python benchmarks/size.py compact sessions/
    python benchmarks/size.py ask sessions/
    python benchmarks/size.py verify sessions/
    python benchmarks/size.py compare sessions/ larger/    # warm questions of both in turns: by how much they grow

`write` leaves sessions/questions.jsonl, and sessions/answers.json with what is to be answered; it has a day in memory, some 50
bytes a row. Times are the wall's, or the processor's by name; memory is the most that the process had.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from natcore.who.query import Answer, Store

QUESTIONS, ANSWERS = "questions.jsonl", "answers.json"
OF_A_DAY = 1000
WARM = 50  # questions of each answer
ROUNDS = 5
COLD = 9
_IN_OPEN, _IN_NONBLOCK = 0x20, 0o4000


def told(**values: Any) -> None:
    print(json.dumps(values), flush=True)


@contextmanager
def measured(what: str) -> Iterator[dict[str, Any]]:
    """Print what was found, and what it took."""
    wall, processor = time.perf_counter(), time.process_time()
    values: dict[str, Any] = {}
    yield values
    told(
        what=what, **values, seconds=round(time.perf_counter() - wall, 2),
        processor_seconds=round(time.process_time() - processor, 2), memory_mb=memory_mb(),
    )  # fmt: skip


def memory_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10


def children_seconds() -> float:
    """Processor time of the processes that ended."""
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def taken(spent: list[tuple[float, float]]) -> dict[str, float]:
    """Of questions, each with its seconds of the wall and of the processor."""
    wall, processor = ([seconds * 1e3 for seconds in each] for each in zip(*spent, strict=True))
    return {
        "questions": len(spent), "ms": round(statistics.median(wall), 1), "most_ms": round(max(wall), 1),
        "processor_ms": round(statistics.median(processor), 1),
    }  # fmt: skip


class Opened:
    """The Parquet files in a folder that any process opens, by inotify."""

    def __init__(self, folder: Path) -> None:
        c = ctypes.CDLL(None, use_errno=True)
        self._descriptor = c.inotify_init1(_IN_NONBLOCK)
        if self._descriptor < 0 or c.inotify_add_watch(self._descriptor, os.fsencode(folder), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))

    def names(self) -> set[str]:
        """Return those since the last call."""
        found: set[str] = set()
        while True:
            try:
                data = os.read(self._descriptor, 1 << 16)
            except BlockingIOError:
                return {name for name in found if name.endswith(".parquet")}
            while data:
                end = 16 + int.from_bytes(data[12:16], sys.byteorder)
                found.add(os.fsdecode(data[16:end].rstrip(b"\0")))
                data = data[end:]


def write(folder: Path, rows: int, days: int, *, compacted: bool) -> None:
    from day import Day
    from natcore.sinks import ParquetSink

    folder.mkdir(exist_ok=True)
    end, written = None, 0
    answers: list[tuple[str, str | None]] = []
    with (folder / QUESTIONS).open("w") as file:
        for number in range(days):
            sink = ParquetSink(folder)
            with measured("written") as values:
                day = Day(rows, number + 1, end)
                for batch in day.batches():
                    sink.deliver(batch)
                    written += len(batch)
                values.update(rows=written)
            sink.close()
            for asked, status, host in itertools.islice(day.questions(), OF_A_DAY):
                asked = {**asked, "address": str(IPv4Address(asked["address"])), "at": asked["at"].isoformat()}
                file.write(json.dumps({"id": str(len(answers)), **asked}) + "\n")
                answers.append((status, None if host is None else str(IPv4Address(host))))
            file.flush()
            (folder / ANSWERS).write_text(json.dumps(answers))
            end = day.end
            del day
            if compacted:
                compact(folder)


def compact(folder: Path) -> None:
    from natcore.sinks.compaction import compact as put_together

    with measured("compacted") as values:
        done = put_together(folder)
        values.update(parts=done.parts, files=done.files, rows=done.rows)


def questions_of(folder: Path) -> list[dict[str, Any]]:
    """A thousand questions, of all days alike."""
    found = [json.loads(line) for line in (folder / QUESTIONS).read_text().splitlines()]
    return found[:: len(found) // OF_A_DAY]


def ask(folder: Path) -> None:
    answers = json.loads((folder / ANSWERS).read_text())
    questions = questions_of(folder)
    ask_cold(folder, questions, answers)
    ask_warm(folder, questions, answers)
    ask_many(folder, questions, answers)


def ask_warm(folder: Path, questions: list[dict[str, Any]], answers: list[list[str | None]]) -> None:
    """Each question in rounds of all; warm is its least time of several, since others may use the machine."""
    from natcore.who.query import Store

    store, opened = Store(folder), Opened(folder)
    spent: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    files: dict[str, list[int]] = defaultdict(list)
    for warmth in ("first of its time", *("warm",) * ROUNDS):
        left = dict.fromkeys(("exact", "held-idle", "unused"), WARM)
        for question in questions:
            status, host = answers[int(question["id"])]
            assert status is not None
            if not left[status]:
                continue
            left[status] -= 1
            opened.names()
            answer, *took = answer_to(store, question)
            least = spent[f"{status}, {warmth}"].get(question["id"], took)
            spent[f"{status}, {warmth}"][question["id"]] = min(took[0], least[0]), min(took[1], least[1])
            files[f"{status}, {warmth}"].append(len(opened.names()))
            subscriber = None if answer.subscriber is None else str(answer.subscriber)
            assert [answer.status, subscriber] == [status, host], (question, answer)
    for name, each in sorted(spent.items()):
        told(what=name, **taken(list(each.values())), most_files_opened=max(files[name]))
    told(what="memory of these", memory_mb=memory_mb())


def answer_to(store: Store, question: dict[str, Any]) -> tuple[Answer, float, float]:
    """The answer, and the seconds of the wall and of the processor that it took."""
    from natcore.who.query import who

    arguments = {name: value for name, value in question.items() if name not in ("id", "at")}
    start, processor = time.perf_counter(), time.process_time()
    answer = who(store, **arguments, at=datetime.fromisoformat(question["at"]))
    return answer, time.perf_counter() - start, time.process_time() - processor


def compare(folder: Path, larger: Path) -> None:
    """Warm questions of both in turns, so that whatever else the machine does befalls both; each one's least processor time."""
    from natcore.who.query import Store

    stores = [Store(each) for each in (folder, larger)]
    for status in ("exact", "held-idle", "unused"):
        asked = []
        for each in (folder, larger):
            answers = json.loads((each / ANSWERS).read_text())
            fitting = (question for question in questions_of(each) if answers[int(question["id"])][0] == status)
            asked.append(list(itertools.islice(fitting, WARM)))
        least = [[float("inf")] * len(asked[0]), [float("inf")] * len(asked[1])]
        for _ in range(ROUNDS + 1):
            for place, which in itertools.product(range(WARM), (0, 1)):
                if place < len(asked[which]):
                    question = asked[which][place]
                    answer, _, processor = answer_to(stores[which], question)
                    least[which][place] = min(least[which][place], processor)
                    assert answer.status == status, (question, answer)
        both = [statistics.median(each) * 1e3 for each in least]
        told(what=f"{status}, warm", processor_ms=[round(each, 1) for each in both], growth=round(both[1] / both[0], 2))


def ask_cold(folder: Path, questions: list[dict[str, Any]], answers: list[list[str | None]]) -> None:
    """A process of its own for each question, as a person asks."""
    opened = Opened(folder)
    spent: list[tuple[float, float]] = []
    files = []
    for question in questions[:: len(questions) // COLD][:COLD]:
        status, host = answers[int(question["id"])]
        endpoint = f"{question['address']}:{question['port']}"
        command = [
            "who",
            endpoint,
            "--protocol",
            str(question["protocol"]),
            "--at",
            question["at"],
            "--log",
            str(folder),
        ]
        start, processor = time.perf_counter(), children_seconds()
        done = subprocess.run([sys.executable, "-m", "natcore.cli.main", *command], capture_output=True, text=True)
        spent.append((time.perf_counter() - start, children_seconds() - processor))
        files.append(len(opened.names()))
        assert done.stdout.startswith(str(status)) and (host or "") in done.stdout, done
    told(
        what="a new process", **taken(spent), most_files_opened=max(files),
        memory_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
    )  # fmt: skip


def ask_many(folder: Path, questions: list[dict[str, Any]], answers: list[list[str | None]]) -> None:
    """One process with all of them, into one evidence file."""
    with tempfile.TemporaryDirectory() as place:
        file, evidence = Path(place, QUESTIONS), Path(place, "evidence.json")
        file.write_text("".join(json.dumps(each) + "\n" for each in questions))
        start, processor = time.perf_counter(), children_seconds()
        command = ["who", "--questions", str(file), "--evidence", str(evidence), "--log", str(folder)]
        done = subprocess.run([sys.executable, "-m", "natcore.cli.main", *command], capture_output=True, text=True)
        spent = (time.perf_counter() - start, children_seconds() - processor)
        assert not done.stderr, done
        given = json.loads(evidence.read_text())["answers"]
        for each in given:
            assert each["answer"]["status"] == answers[int(each["id"])][0], each
        statuses = Counter(str(answers[int(each["id"])][0]) for each in questions)
        told(
            what="all in one process", **statuses, seconds=round(spent[0], 1), processor_seconds=round(spent[1], 1),
            memory_mb=resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10,
        )  # fmt: skip


def verify(folder: Path) -> None:
    from natcore.who.verify import verify as check

    with measured("verified") as values:
        found = check(folder)
        values.update(files=found.files, rows=found.rows, findings=len(found.findings))
        assert found.ok, found.findings[:3]


def main() -> None:
    actions = {"compact": compact, "ask": ask, "verify": verify}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare", *actions))
    parser.add_argument("folder", type=Path)
    parser.add_argument("larger", type=Path, nargs="?", help="to compare")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of a day")
    parser.add_argument("--days", type=int, default=1)
    parser.add_argument("--compact", action="store_true", help="after each day; the folder is a whole log then")
    arguments = parser.parse_args()
    if arguments.action == "write":
        write(arguments.folder, arguments.rows, arguments.days, compacted=arguments.compact)
    elif arguments.action == "compare":
        compare(arguments.folder, arguments.larger)
    else:
        actions[arguments.action](arguments.folder)


if __name__ == "__main__":
    main()
