"""What becomes of a transcript: published, or given to people, by how sure it is.

A recording without speech has nothing to be unsure of, and is published as it is: empty. Of the others, those that are
surer than the threshold are published; each segment of the rest that is not surer is asked about. Speech in which no
word was recognised counts as unsure: confidence is told by the words that are there, and a model that is lost writes
none.

Confidence may be wrong, and who hears the unsure alone never learns of it. So a small share of the recordings, drawn by
a hash that each has for ever, is heard whole by people, however sure its transcript is: the control sample.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deployment import transcribe
from speech.store.outputs import write_atomically
from speech.transcript import Segment, Transcript, Word

EDITION = "2"  # counted up when transcripts go other ways
FORMS = ("json", "amazon.json", "srt", "vtt", "ctm", "rttm", "txt")
CLIP_PADDING_S = 0.5  # heard before and after a segment, so that its first and last word are whole
LEARNT_PADDING_S = 0.25  # likewise for training, where no word of a neighbour may be in it


@dataclass(frozen=True, kw_only=True)
class ReviewTask:
    """A segment that people are asked about.

    Its id is the digest of the segment's audio and of the bundle that heard it: another run asks the same question and
    not a second one.
    """

    id: str
    transcript: str
    source_digest: str
    channel: int | None  # that it was heard on, counted from 0; None: all, mixed
    speaker: str | None
    language: str
    start_s: float  # of the segment in its recording
    end_s: float
    learnt_start_s: float  # of what may be learnt of it: with some of the pause around, and of no neighbour
    learnt_end_s: float
    text: str
    words: tuple[Word, ...]
    confidence: float
    why: Literal["low-confidence", "control"]
    clip: str  # its audio: beside the tasks, or by its key in the data store
    clip_start_s: float  # of the clip in the recording


def certainty(transcript: Transcript) -> float:
    """How sure a transcript is, 0 to 1: its words' mean confidence, times the share of its speech that has words."""
    spoken = [(segment.end_s - segment.start_s, bool(segment.words)) for segment in transcript.segments]
    all_s = sum(seconds for seconds, _ in spoken)
    if not all_s:
        return transcript.confidence
    return transcript.confidence * sum(seconds for seconds, has_words in spoken if has_words) / all_s


def is_published(transcript: Transcript, threshold: float) -> bool:
    """Whether a transcript is sure enough to be used as it is."""
    return not transcript.segments or certainty(transcript) > threshold


def asked_about(transcript: Transcript, threshold: float) -> list[Segment]:
    """The segments of an unpublished transcript that people should hear; at least one."""
    unsure = [segment for segment in transcript.segments if segment.score <= threshold]
    return unsure or [min(transcript.segments, key=lambda segment: segment.score)]


def chance(identity: str, purpose: str) -> float:
    """A number from 0 to 1 that an identity has for ever, evenly spread: what is drawn by it is drawn in each run."""
    return int.from_bytes(hashlib.sha256(f"{purpose}\0{identity}".encode()).digest()[:8]) / 2**64


def tasks_of(transcript: Transcript, published: bool, threshold: float, control_share: float) -> list[ReviewTask]:
    """What people are asked about a transcript: what is unsure of an unpublished one, and all of a control sample's."""
    unsure = [] if published else asked_about(transcript, threshold)
    control = chance(transcript.source_digest, "control") < control_share
    tasks = [
        task_of(transcript, segment, "low-confidence" if segment in unsure else "control")
        for segment in transcript.segments
        if control or segment in unsure
    ]
    return list({task.id: task for task in tasks}.values())


def task_of(
    transcript: Transcript, segment: Segment, why: Literal["low-confidence", "control"] = "low-confidence"
) -> ReviewTask:
    """The question about a segment."""
    bundle = transcript.model_digests["recognition"]
    identity = f"{transcript.source_digest}\0{segment.start_s:.3f}\0{segment.end_s:.3f}\0{bundle}"
    if segment.channel is not None:  # people on two channels may speak at the same time
        identity += f"\0{segment.channel}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    learnt_start_s, learnt_end_s = _learnt(transcript, segment)
    return ReviewTask(
        id=name,
        transcript=transcript.id or "",
        source_digest=transcript.source_digest,
        channel=segment.channel,
        speaker=segment.speaker,
        language=segment.language or transcript.language,
        start_s=segment.start_s,
        end_s=segment.end_s,
        learnt_start_s=learnt_start_s,
        learnt_end_s=learnt_end_s,
        text=segment.text,
        words=segment.words,
        confidence=round(segment.score, 4),
        why=why,
        clip=f"clips/{name}.flac",
        clip_start_s=round(max(0.0, segment.start_s - CLIP_PADDING_S), 3),
    )


def _learnt(transcript: Transcript, segment: Segment) -> tuple[float, float]:
    """A segment with the pause around it, as far as half the way to its neighbours, whatever channel they are on."""
    others = [(other.start_s, other.end_s) for other in transcript.segments if other is not segment]
    before = max((end_s for _, end_s in others if end_s <= segment.start_s), default=0.0)
    after = min((start_s for start_s, _ in others if start_s >= segment.end_s), default=transcript.duration_s)
    start_s = max(segment.start_s - LEARNT_PADDING_S, (before + segment.start_s) / 2)
    end_s = min(segment.end_s + LEARNT_PADDING_S, (after + segment.end_s) / 2)
    return round(start_s, 3), round(max(end_s, segment.end_s), 3)


def write_forms(transcripts: Iterable[Transcript], folder: Path) -> None:
    """Write each transcript in every form, in a folder a form."""
    for transcript in transcripts:
        for form in FORMS:
            text = written(transcript, form, str(transcript.id))
            write_atomically(folder / form / f"{transcript.id}.{form}", text)


def written(transcript: Transcript, form: str, name: str) -> str:
    """A transcript in one of `FORMS`; `name` is what CTM and RTTM call the recording."""
    return transcribe.written(transcript, "text" if form == "txt" else form, name)
