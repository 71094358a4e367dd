"""Every version of a recording's transcript: kept for ever, numbered, and which of them is in force.

A version is a record that never changes, below the id of its recording (the beginning of the digest of its bytes): so
whatever an upload is called and whenever it came again, its bytes find their transcript. An hour that is transcribed
again adds a version only where it says something else than the last one that models wrote; other models alone, or other
code, are none. What people wrote stays in force whatever models say afterwards: their later versions wait beside it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from evaluation.scoring import Edit, align
from speech.plain import from_lines, to_lines
from speech.store.objects import LostRace, Objects, StoreError
from speech.store.records import Records
from speech.transcript import Transcript

PLACE = "versions"  # in the data store
RECORDING_CHARS = 32  # of a digest, which name a recording
NUMBERED = ("id", "version", "supersedes")  # which version it is, and not what it says
MADE_BY = (
    "models",
    "model_digests",
    "code_version",
    "settings",
    "quality",
)  # by whom and of what, and not what it says
EDITS_SHOWN, WER_DIGITS = 8, 4
FEW_WORDS = 4  # of fewer, most are soon gone


@dataclass(frozen=True, kw_only=True)
class Version:
    """A transcript as it was kept."""

    hour: str  # in which its recording arrived first
    by: str | None  # who corrected it; None: models wrote it
    transcript: Transcript


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a version of a transcript says otherwise than the one before it."""

    recording: str
    before: str  # id of the version
    after: str
    waits: bool  # what people wrote stays in force
    words_added: int
    words_removed: int
    words_replaced: int
    words_before: int
    wer: float | None  # edits over the words before; None: there were none
    confidence_before: float
    confidence_after: float
    models_before: dict[str, str]
    models_after: dict[str, str]
    edits: tuple[str, ...]  # the first of them, as people read them; none where personal data is taken out

    @property
    def collapsed(self) -> bool:
        """Whether most of what was heard before is gone: a model that is lost writes little."""
        words = self.words_before - self.words_removed + self.words_added
        return self.words_before >= FEW_WORDS and words < self.words_before / 2


@dataclass(frozen=True, kw_only=True)
class InForce:
    """Which version of a recording's transcript counts."""

    recording: str
    name: str  # of its upload
    transcript: str  # id of the version
    by: str | None  # who corrected it; None: models wrote it
    published: bool  # it is sure enough, or people wrote it
    waits: str | None  # id of a later version of models, where people wrote the one in force

    @classmethod
    def of(cls, versions: "Sequence[Version]", name: str, sure: bool) -> "InForce":
        """Of all versions of a transcript; `sure`: what models wrote is published."""
        counts, last, began_from = in_force(versions), last_by_models(versions), corrected(versions)
        assert counts is not None  # there are versions
        assert last is not None  # models wrote the first
        return cls(
            recording=recording_of(counts.transcript),
            name=name,
            transcript=str(counts.transcript.id),
            by=counts.by,
            published=sure or counts.by is not None,
            waits=str(last.transcript.id) if began_from is not None and last != began_from else None,
        )


def id_of(recording: str, version: int) -> str:
    """The id of a version of a recording's transcript."""
    return f"{recording}-{version}"


def recording_of(transcript: Transcript) -> str:
    """The id of the recording that a transcript is of."""
    return transcript.source_digest[:RECORDING_CHARS]


def what_it_says(transcript: Transcript) -> dict[str, object]:
    """A transcript without its number and its makers: versions that are equal in this are one."""
    return {name: value for name, value in transcript.to_json().items() if name not in (*NUMBERED, *MADE_BY)}


class Versions:
    """The versions of all transcripts in a data store."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def of(self, recording: str) -> tuple[Version, ...]:
        """All versions of a recording's transcript, in order; empty where there is none.

        Raises:
            StoreError: one of them cannot be read.
        """
        records = self._records(recording)
        found = []
        for number, data in enumerate(records.all(), 1):
            try:
                (version,) = from_lines(Version, data)
            except ValueError as error:
                key = f"{self.objects.home}/{records.key(number)}"
                raise StoreError(f"{key} cannot be read ({error}): restore it from its backup") from None
            found.append(version)
        return tuple(found)

    def kept(self, made: Transcript, hour: str, by: str | None = None) -> tuple[Version, ...]:
        """Keep a transcript as the next version of its recording's, unless the last one by its kind says the same.

        Args:
            made: its id, version and what it supersedes are given here.
            hour: in which its recording arrived first.
            by: who wrote it, where people did: its id is then that of the version they corrected; None: models.

        Returns:
            All versions, that one among them.

        Raises:
            StoreError: a version cannot be read.
        """
        recording, says = recording_of(made), what_it_says(made)
        while True:
            known = self.of(recording)
            last = next((v for v in reversed(known) if (v.by is None) == (by is None)), None)
            if last is not None and what_it_says(last.transcript) == says and last.by == by:
                return known
            number, corrected = len(known) + 1, made.id if by is not None else None
            before = last.transcript.id if last is not None else corrected
            numbered = replace(made, id=id_of(recording, number), version=number, supersedes=before)
            version = Version(hour=hour, by=by, transcript=numbered)
            try:
                self._records(recording).append(number, to_lines([version]))
            except LostRace:
                continue  # another run was first: it may have said the same
            return (*known, version)

    def of_each(self, recordings: Iterable[str]) -> list[tuple[Version, ...]]:
        """`of` for many, as many at once as answer soonest."""
        wanted, found = list(recordings), dict[str, tuple[Version, ...]]()
        self.objects.each(lambda recording: found.update({recording: self.of(recording)}), wanted)
        return [found[recording] for recording in wanted]

    def kept_each(self, made: Iterable[Transcript], hour: str) -> list[tuple[Version, ...]]:
        """`kept` for many that models wrote, of a recording each."""
        every, found = list(made), dict[str, tuple[Version, ...]]()
        self.objects.each(lambda one: found.update({recording_of(one): self.kept(one, hour)}), every)
        return [found[recording_of(one)] for one in every]

    def _records(self, recording: str) -> Records:
        return Records(self.objects, f"{PLACE}/{recording}")


def last_by_models(versions: Iterable[Version]) -> Version | None:
    """The last version that models wrote."""
    return next((v for v in reversed(list(versions)) if v.by is None), None)


def corrected(versions: Iterable[Version]) -> Version | None:
    """The version of models that people began from, where what they wrote is in force."""
    known = {version.transcript.id: version for version in versions}
    found = in_force(known.values())
    if found is None or found.by is None:
        return None
    while found is not None and found.by is not None:
        found = known.get(found.transcript.supersedes)
    return found


def change_of(versions: Sequence[Version]) -> Change | None:
    """What the last version of models says otherwise than theirs before it; None where there is no such two.

    Words are counted in the scoring form, in which "42" is "forty two" if that is the nearer reading.
    """
    after = last_by_models(versions)
    before = next((v for v in versions if after is not None and v.transcript.id == after.transcript.supersedes), None)
    if after is None or before is None:
        return None
    was, says = before.transcript, after.transcript
    edits = align(was.text, says.text, says.language)
    kinds = Counter(edit.kind for edit in edits)
    words, began_from = len(edits) - kinds["insert"], corrected(versions)
    other = [edit for edit in edits if edit.kind != "equal"]
    return Change(
        recording=recording_of(says),
        before=str(was.id),
        after=str(says.id),
        waits=began_from is not None and began_from != after,
        words_added=kinds["insert"],
        words_removed=kinds["delete"],
        words_replaced=kinds["substitute"],
        words_before=words,
        wer=round(len(other) / words, WER_DIGITS) if words else None,
        confidence_before=was.confidence,
        confidence_after=says.confidence,
        models_before=dict(was.models),
        models_after=dict(says.models),
        edits=() if says.settings.get("redact") else tuple(map(_shown, other[:EDITS_SHOWN])),
    )


def _shown(edit: Edit) -> str:
    return f"{edit.reference or '-'} > {edit.hypothesis or '-'}"


def shown(versions: Sequence[Version]) -> Version:
    """The version of models that an hour goes on with: their last, or the one that people corrected."""
    found = corrected(versions) or last_by_models(versions)
    assert found is not None  # an hour's versions begin with one of models
    return found


def in_force(versions: Iterable[Version]) -> Version | None:
    """The version that counts: the last that people wrote, else the last that models did."""
    every = list(versions)
    return next((v for v in reversed(every) if v.by is not None), every[-1] if every else None)


def described(versions: Sequence[Version]) -> str:
    """A line a version for people, and under it what it changed."""
    counts = in_force(versions)
    lines = []
    for place, version in enumerate(versions):
        said = version.transcript
        by = f"people ({version.by})" if version.by is not None else said.models.get("recognition", "unknown models")
        mark = " (in force)" if version == counts else ""
        lines.append(
            f"{said.id}{mark}: {said.language}, {len(said.words)} words, confidence {said.confidence:.4f}, by {by}, "
            f"hour {version.hour}"
        )
        change = change_of(versions[: place + 1]) if version.by is None else None
        if change is not None:
            lines.append(
                f"  against {change.before}: {change.words_added} words added, {change.words_removed} removed, "
                f"{change.words_replaced} replaced"
                + (f" (WER {change.wer:.2%})" if change.wer is not None else "")
                + (f": {', '.join(change.edits)}" if change.edits else "")
            )
    return "\n".join(lines)
