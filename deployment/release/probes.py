"""Golden recordings: what a bundle by itself hears in them, and what a replica answers that was asked for it."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deployment.registry.shelf import Shelf
from deployment.release.reports import BUNDLE_HEADER, TIMING_HEADER, WORK_TIMING, ReplicaReport
from speech.audio.decode import AudioError, decode
from speech.bundle import BundleError
from speech.recognition.offline import Recognizer

if TYPE_CHECKING:
    import httpx


class Unfit(Exception):
    """A bundle goes no further; the message is the clause that says why."""


@dataclass(frozen=True)
class ProbeResult:
    """One recording answered by one replica."""

    replica: str
    audio: str
    text: str
    latency_s: float


class Probes:
    """The golden recordings of a roll-out, to be used in a `with` block.

    Args:
        golden: real recordings, which a new bundle must transcribe in place before it gets traffic.
        latency_limit_s: beyond this a first answer is a fault and not a slow machine.
    """

    def __init__(self, language: str, golden: Sequence[Path], latency_limit_s: float) -> None:
        self.language, self.golden, self.latency_limit_s = language, tuple(golden), latency_limit_s
        self.expected: tuple[str, ...] = ()  # what the bundle by itself hears, a text a recording

    def __enter__(self) -> "Probes":
        import httpx

        self._client = httpx.Client(timeout=self.latency_limit_s, trust_env=False)
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def hear(self, shelf: Shelf, digest: str) -> None:
        """Verify a bundle, and hear all recordings with it here."""
        if not self.golden:
            raise Unfit("without golden recordings it cannot be probed")
        try:
            bundle = shelf.load(digest)
            if bundle.language != self.language:
                raise Unfit(f"the bundle is for '{bundle.language}'")
            recognizer = Recognizer(bundle)
        except BundleError as error:
            raise Unfit(str(error)) from error
        self.expected = tuple(recognizer.transcribe(_samples(path)).text for path in self.golden)
        for path, text in zip(self.golden, self.expected, strict=True):
            if not text:
                raise Unfit(f"it hears nothing in {path}")

    def ask(self, replica: ReplicaReport, place: int, digest: str) -> "httpx.Response":
        """A replica's answer to a recording, by a bundle; raises the errors of httpx."""
        with self.golden[place].open("rb") as audio:
            return self._client.post(
                f"{replica.url}/v1/transcribe",
                params={"language": self.language, "format": "json"},
                content=audio,
                headers={BUNDLE_HEADER: digest, "Content-Type": "application/octet-stream"},
            )

    def require(self, replica: ReplicaReport, place: int, text: str) -> None:
        """Raise `Unfit` where a replica heard something else than the bundle by itself."""
        if text != self.expected[place]:
            raise Unfit(
                f"replica {replica.replica} heard '{text}' in {self.golden[place].name}, the bundle by itself "
                f"'{self.expected[place]}'"
            )

    def prove(self, replica: ReplicaReport, place: int, digest: str) -> ProbeResult:
        """Ask a replica, and take nothing else than the right text of the right bundle in time."""
        import httpx

        name = f"replica {replica.replica} at {replica.url}"
        began = time.monotonic()
        try:
            answer = self.ask(replica, place, digest)
            latency_s = time.monotonic() - began
            if answer.status_code != 200:
                said = answer.text[:300]
                raise Unfit(f"{name} answered {answer.status_code} to {self.golden[place].name}: {said}")
            body = answer.json()
            served, text = body["model"]["digest"], body["text"]
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            raise Unfit(f"{name} could not be probed: {type(error).__name__}: {error}") from error
        if served != digest:
            raise Unfit(f"{name} answered with bundle {served[:12]}")
        self.require(replica, place, text)
        if latency_s > self.latency_limit_s:
            raise Unfit(f"{name} took {latency_s:.1f} s, more than {self.latency_limit_s:g} s")
        return ProbeResult(replica.replica, self.golden[place].name, text, round(latency_s, 4))


def work_s(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds of work that a replica says an answer took; waiting, which hits both versions alike, would hide it."""
    said = re.search(rf"\b{WORK_TIMING};dur=([0-9.]+)", headers.get(TIMING_HEADER, ""))
    return float(said.group(1)) / 1000 if said else otherwise


def _samples(path: Path) -> np.ndarray:
    try:
        return decode(path).samples
    except (AudioError, OSError) as error:
        raise Unfit(f"golden recording {path} cannot be used: {error}") from error
