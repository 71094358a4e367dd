"""Whose turn it is to release a language, without locks and without comparing the clocks of two machines.

A document names the holder; who takes the turn replaces the document as it was read, so two cannot both have it. The
holder beats: it writes an object of its own again and again. Who waits takes over once the beat has stood still for
long, as far as it could look. So a roll-out that was killed is followed within seconds, and one that only slept may
find that it lost its turn: by its next beat, and at the latest by the release document, which it can no longer replace
(`ReleaseFolder.set_language`).

Who waits says for which bundle, so that the roll-out under way can give way (`Turn.waiting`). A note that was left
behind by a process that died does not change any more, and counts for nothing.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from speech.store.objects import LostRace, Missing, Objects, Stored, StoreError
from speech.store.outputs import parse_json
from speech.store.records import Document

POLL_S = 0.2
BEAT_S = 1.0
DEAD_S = 8.0  # a beat that stands still for so long is that of a process which has ended, or sleeps
FREE = json.dumps({"holder": ""}).encode()


class ReleaseBusy(Exception):
    """Another roll-out of the language is under way and did not end in time."""


@dataclass
class Turn:
    """The right to release a language, or the wait for it.

    Attributes:
        beat_s, dead_s: how often the holder beats, and how long its beat stands still before others take over.
        lost: whether another roll-out has taken over.
    """

    objects: Objects
    language: str
    digest: str = ""
    beat_s: float = BEAT_S
    dead_s: float = field(default_factory=lambda: DEAD_S)
    lost: bool = False
    _name: str = field(default_factory=lambda: secrets.token_hex(8))
    _heard: bytes | None = None  # the note of who waits, as it was seen first

    @contextmanager
    def taken(self, wait_s: float) -> Iterator["Turn"]:
        """Hold the turn until the block ends.

        Raises:
            ReleaseBusy: another roll-out did not end within `wait_s`.
        """
        ended = threading.Event()
        try:
            mine = self._take(wait_s)
            beating = threading.Thread(target=self._beat, args=(mine.tag, ended), name="turn", daemon=True)
            beating.start()
            try:
                yield self
            finally:
                ended.set()
                beating.join()
                with suppress(LostRace, OSError):  # whoever waits takes over from a beat that stands still
                    self._holder.replace(FREE, mine)
        finally:
            with suppress(OSError):
                self.objects.delete([self._key(self._name)])

    def waiting(self) -> str | None:
        """Digest of the bundle whose roll-out waits; None: none does, or not for long enough to be sure."""
        try:
            said = self.objects.read(self._key("waiting")).data
        except Missing:
            self._heard = None
            return None
        if self._heard in (None, said):
            self._heard = said
            return None
        with suppress(ValueError, KeyError, TypeError):
            return str(parse_json(said)["digest"])
        return None

    def _take(self, wait_s: float) -> Stored:
        deadline = time.monotonic() + wait_s
        quiet_s, looked, seen = 0.0, time.monotonic(), None
        while True:
            now = self._holder.read()
            holder = _holder(now)
            said = (holder, self._beat_of(holder)) if holder else None
            elapsed, looked = time.monotonic() - looked, time.monotonic()
            quiet_s = quiet_s + min(elapsed, 2 * POLL_S) if said == seen else 0.0  # what nobody could see is no silence
            seen = said
            if holder is None or quiet_s > self.dead_s:
                with suppress(LostRace):
                    self._write_beat(0)
                    mine = self._holder.replace(json.dumps({"holder": self._name}).encode(), now)
                    self.objects.delete([self._key("waiting"), *([self._key(holder)] if holder else [])])
                    return mine
                continue
            if time.monotonic() >= deadline:
                raise ReleaseBusy(
                    f"another release of '{self.language}' is under way: wait until it has ended, then release again"
                )
            note = {"digest": self.digest, "said": secrets.token_hex(8)}
            self.objects.put(self._key("waiting"), json.dumps(note).encode())
            time.sleep(POLL_S)

    def _beat(self, tag: str, ended: threading.Event) -> None:
        beats = 0
        while not ended.wait(self.beat_s):
            with suppress(OSError, StoreError):
                now = self._holder.read()
                if now is None or now.tag != tag:
                    self.lost = True
                    return
                self._write_beat(beats := beats + 1)

    @property
    def _holder(self) -> Document:
        return Document(self.objects, f"release/turns/{self.language}.json")

    def _key(self, name: str) -> str:
        return f"release/turns/{self.language}.{name}"

    def _write_beat(self, number: int) -> None:
        self.objects.put(self._key(self._name), b"%d" % number)

    def _beat_of(self, holder: str) -> bytes | None:
        with suppress(Missing):
            return self.objects.read(self._key(holder)).data
        return None


def _holder(stored: Stored | None) -> str | None:
    """Who has the turn; None: nobody. What cannot be read is a holder whose beat stands still."""
    if stored is None:
        return None
    with suppress(ValueError, KeyError, TypeError):
        return str(parse_json(stored.data)["holder"]) or None
    return "unknown"
