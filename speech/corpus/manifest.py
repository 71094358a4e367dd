"""Utterances and the manifests that hold them, the quarters that they belong to, and their split by speaker.

A manifest is a JSON-lines file that NVIDIA NeMo can read as it is (``audio_filepath``, ``duration``, ``text``,
``offset``), with our own keys beside those. Manifests pass between steps instead of audio: by reference, never by
value.
"""

import datetime as dt
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec

from speech.corpus.rows import (
    SPLITS,
    BadLine,
    ManifestError,
    PathLike,
    as_channel,
    as_quality,
    as_seconds,
    as_split,
    as_text_mapping,
    is_uri,
    numbered_objects,
    parse_date,
    reason_of,
    required_field,
    text_field,
)
from speech.quality import Quality
from speech.store.outputs import replacing

UNKNOWN_DOMAIN = "unknown"
QUARTER_KEY = re.compile(r"([0-9]{4})-(01|04|07|10)")  # its first month
LANGUAGE_TAG = re.compile(r"[a-z]{2,3}")  # BCP-47 primary
AGE_BANDS = ((0, 12), (13, 17), (18, 29), (30, 44), (45, 59), (60, None))  # years, inclusive


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech and what was said in it."""

    id: str  # unique in its partition, and safe as a file name
    audio: str  # path (absolute, or relative to the manifest's folder), URI, or `store://` and a key of the data store
    duration_s: float | None  # None until measured
    text: str  # reference transcript in the written form it was delivered in
    speaker: str
    language: str  # BCP-47 primary tag: "en"
    domain: str  # "call-centre", "assistant", ...; "unknown" when not given
    recorded_at: dt.date  # decides the quarter
    digest: str = ""  # sha256 of the audio content the row came from; "" until known
    offset_s: float = 0.0  # where the utterance starts inside the file
    channel: int | None = None  # of the file, counted from 0; None: it has one, or the transcript is of all of them
    split: str | None = None  # "train" | "dev" | "test"
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)  # "gender", "age_band", "accent", ...
    quality: Quality | None = field(default=None, hash=False)
    row: int = field(default=0, compare=False)  # of the file that an importer read it from, from 1; kept in no manifest

    def to_json(self) -> dict[str, Any]:
        """The row as JSON-ready values; keys that NeMo knows carry NeMo's names."""
        row: dict[str, Any] = {
            "id": self.id,
            "audio_filepath": self.audio,
            "duration": self.duration_s,
            "text": self.text,
            "offset": self.offset_s,
            "speaker": self.speaker,
            "language": self.language,
            "domain": self.domain,
            "recorded_at": self.recorded_at.isoformat(),
            "digest": self.digest,
            "split": self.split,
            "attributes": dict(sorted(self.attributes.items())),
        }
        if self.channel is not None:
            row["channel"] = self.channel
        if self.quality is not None:
            row["quality"] = asdict(self.quality)
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> "Utterance":
        """The utterance that :meth:`to_json` wrote. Raises ValueError for a row that is not one."""
        duration = row.get("duration")
        return cls(
            id=required_field(row, "id"),
            audio=required_field(row, "audio_filepath"),
            duration_s=None if duration is None else as_seconds(duration, "duration"),
            text=text_field(row, "text"),
            speaker=required_field(row, "speaker"),
            language=required_field(row, "language"),
            domain=text_field(row, "domain") or UNKNOWN_DOMAIN,
            recorded_at=parse_date(required_field(row, "recorded_at")),
            digest=text_field(row, "digest"),
            offset_s=as_seconds(row.get("offset") or 0.0, "offset"),
            channel=as_channel(row.get("channel")),
            split=as_split(row.get("split")),
            attributes=as_text_mapping(row.get("attributes")),
            quality=as_quality(row.get("quality")),
        )


@dataclass(frozen=True)
class RejectedRow:
    """A row that did not become an utterance; it goes to quarantine with its reason."""

    source: str  # the file that the row is in
    row: int  # counted from 1; 0 where the fault is a missing row
    reason: str
    id: str | None = None
    quarter: str = ""  # that it belongs to; "" where it does not say, and may be of any
    language: str = ""  # likewise


def row_line(utterance: Utterance) -> bytes:
    """An utterance as a line of a manifest. Raises TypeError or ValueError for what JSON cannot hold."""
    if not math.isfinite(utterance.offset_s + (utterance.duration_s or 0.0)):
        raise ValueError("a time is not finite")
    return msgspec.json.encode(utterance.to_json()) + b"\n"


def read_manifest(path: PathLike) -> Iterator[Utterance]:
    """The utterances of a manifest, one at a time. Raises ManifestError at the first row that is not one."""
    for number, row in numbered_objects(Path(path)):
        if isinstance(row, BadLine):
            raise ManifestError(path, number, row.reason)
        try:
            yield Utterance.from_json(row)
        except ValueError as error:
            raise ManifestError(path, number, f"is not an utterance: {error}") from error


def write_manifest(path: PathLike, utterances: Iterable[Utterance]) -> int:
    """Write a manifest and return its number of rows.

    The same utterances give the same bytes, and a reader sees the old file or the whole new one, never a part.
    Raises ManifestError for an id that comes twice or a value that JSON or UTF-8 cannot hold.
    """
    seen: set[str] = set()
    with replacing(Path(path)) as out:
        for number, utterance in enumerate(utterances, start=1):
            if utterance.id in seen:
                raise ManifestError(path, number, f"id {utterance.id!r} comes twice; ids must be unique")
            seen.add(utterance.id)
            try:
                out.write(row_line(utterance))
            except (TypeError, ValueError) as error:
                raise ManifestError(path, number, f"cannot be written as JSON: {reason_of(error)}") from error
    return len(seen)


def audio_location(utterance: Utterance, manifest: PathLike) -> str:
    """Where the utterance's audio is, given the manifest that the row was read from: an absolute path or a URI."""
    if is_uri(utterance.audio):
        return utterance.audio
    return str(Path(os.path.abspath(manifest)).parent / utterance.audio)


def hours_of(utterances: Iterable[Utterance]) -> float:
    """Speech in hours, as far as it was measured."""
    return sum(utterance.duration_s or 0.0 for utterance in utterances) / 3600


def quarter_of(date: dt.date) -> str:
    """The key of the quarter that a day belongs to: its first month, as in "2024-04"."""
    return f"{date.year:04d}-{(date.month - 1) // 3 * 3 + 1:02d}"


def quarter_title(quarter: str) -> str:
    """A quarter's key as people read it: "2024-04" is "2024 Q2". Raises ValueError for any other month."""
    found = QUARTER_KEY.fullmatch(quarter)
    if not found:
        raise ValueError(f"{quarter!r} is not a quarter; write its first month, such as 2024-04")
    return f"{found[1]} Q{(int(found[2]) + 2) // 3}"


def split_of_speaker(speaker: str, dev_share: float = 0.1, test_share: float = 0.1) -> str:
    """The set that a speaker belongs to, from the speaker's name alone.

    The name is hashed to a number in [0, 1): the first ``test_share`` of the range is the test set, the last
    ``dev_share`` is the dev set, so that changing one share never moves a speaker of the other set.
    """
    if dev_share < 0 or test_share < 0 or dev_share + test_share > 1:
        raise ValueError(f"shares of {dev_share} dev and {test_share} test do not fit into one corpus")
    digest = hashlib.sha256(f"soundstage\0{speaker}".encode(errors="surrogatepass")).digest()
    position = int.from_bytes(digest[:8]) / 2**64
    if position < test_share:
        return "test"
    return "dev" if position >= 1 - dev_share else "train"


def assign_splits(utterances: Iterable[Utterance], dev_share: float = 0.1, test_share: float = 0.1) -> list[Utterance]:
    """The utterances with a speaker-disjoint split that is the same in every run and every quarter.

    A speaker's set follows from a hash of the name (:func:`split_of_speaker`). It depends on nothing else: not on who
    else is in the data, not on the order, not on which quarter runs first. That matters more than exact shares, because
    a model is fine-tuned on a window of quarters and scored on a benchmark that outlives them; a speaker who was a test
    speaker in spring and is a training speaker in autumn makes the score a lie that nobody sees. The shares therefore
    hold for many speakers, and a small corpus may miss them, even leave a set empty.

    A row that already carries a split keeps it, and pulls its speaker's other rows along. Raises ManifestError where a
    speaker's rows carry different splits.
    """
    rows = list(utterances)
    placed: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        if row.split is None:
            continue
        if row.split not in SPLITS:
            raise ManifestError("", number, f"split {row.split!r} of {row.id} is none of {', '.join(SPLITS)}")
        if placed.setdefault(row.speaker, row.split) != row.split:
            raise ManifestError(
                "",
                number,
                f"speaker {row.speaker} is in {placed[row.speaker]} and in {row.split} ({row.id}); "
                "give all rows of a speaker one split, or none",
            )
    for row in rows:
        if row.speaker not in placed:
            placed[row.speaker] = split_of_speaker(row.speaker, dev_share, test_share)
    return [row if row.split == placed[row.speaker] else replace(row, split=placed[row.speaker]) for row in rows]


def age_band(years: float) -> str:
    """The band that an age falls into, as in "18-29"."""
    for low, high in AGE_BANDS:
        if high is None or years < high + 1:
            return f"{low}+" if high is None else f"{low}-{high}"
    raise AssertionError("the last band is open")
