"""What becomes of a transcript: published, or given to people, by how sure it is.

A recording without speech has nothing to be unsure of, and is published as it is: empty. Of the others, those that are
surer than the threshold are published; each segment of the rest that is not surer is asked about. Speech in which no
word was recognised counts as unsure: confidence is told by the words that are there, and a model that is lost writes
none.
"""

import hashlib
from dataclasses import dataclass
from typing import Literal

from deployment import transcribe
from speech.transcript import Segment, Transcript, Word

EDITION = "1"  # counted up when transcripts go other ways
FORMS = ("json", "srt", "vtt", "ctm", "rttm", "txt")
CLIP_PADDING_S = 0.5  # heard before and after a segment, so that its first and last word are whole


@dataclass(frozen=True, kw_only=True)
class ReviewTask:
    """A segment that people are asked about.

    Its id is the digest of the segment's audio and of the bundle that heard it: another run asks the same question and
    not a second one.
    """

    id: str
    transcript: str
    source_digest: str
    language: str
    start_s: float  # of the segment in its recording
    end_s: float
    text: str
    words: tuple[Word, ...]
    confidence: float
    why: Literal["low-confidence"]
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


def task_of(transcript: Transcript, segment: Segment) -> ReviewTask:
    """The question about a segment."""
    bundle = transcript.model_digests["recognition"]
    identity = f"{transcript.source_digest}\0{segment.start_s:.3f}\0{segment.end_s:.3f}\0{bundle}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:32]
    return ReviewTask(
        id=name,
        transcript=transcript.id or "",
        source_digest=transcript.source_digest,
        language=transcript.language,
        start_s=segment.start_s,
        end_s=segment.end_s,
        text=segment.text,
        words=segment.words,
        confidence=round(segment.score, 4),
        why="low-confidence",
        clip=f"clips/{name}.flac",
        clip_start_s=round(max(0.0, segment.start_s - CLIP_PADDING_S), 3),
    )


def written(transcript: Transcript, form: str, name: str) -> str:
    """A transcript in one of `FORMS`; `name` is what CTM and RTTM call the recording."""
    return transcribe.written(transcript, "text" if form == "txt" else form, name)
