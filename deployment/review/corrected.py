"""People's words in place of a model's: another version of a transcript, with times for words that nobody timed.

An answer is placed by its time and channel, not by its segment: it counts whichever model has heard the recording
since. Words that are the same keep their times; words in place of others share the time of those, by how much there is
to say in each; words that the model missed share the silence that they were put into.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

from deployment.batch.branch import ReviewTask
from deployment.batch.stages.recognition import CONFIDENCE_DIGITS, TIME_DIGITS
from deployment.batch.versions import Versions, in_force, recording_of
from deployment.review.answers import Answer, Outcome, by_recording
from speech.scripts import split_words
from speech.text import normalize, spoken_length
from speech.transcript import Segment, Transcript, Word

CERTAIN = 1.0  # the confidence of a word that people have written or heard


def reviewed(
    transcripts: Sequence[Transcript],
    tasks: Sequence[ReviewTask],
    outcomes: Mapping[str, Outcome],
    versions: Versions,
    hour: str,
) -> list[Transcript]:
    """The transcripts of an hour that people have corrected, as they are in force.

    One of which everything is answered that was asked becomes another version, unless it says what the last one says.
    One that waits for an answer again, since somebody took theirs back, stays as it was.

    Args:
        transcripts, tasks: of the hour, as they are now.
        outcomes: what all answers to the hour come to, by task, those of earlier runs of the hour too.
        versions: of all transcripts.
        hour: its key.
    """
    answers, now_asked = by_recording(outcomes), {task.id for task in tasks}
    waiting = {task.transcript for task in tasks if not (task.id in outcomes and outcomes[task.id].settled)}
    found = []
    for transcript in transcripts:
        given = answers.get(transcript.source_digest, [])
        given = sorted(given, key=lambda answer: answer.task.id in now_asked)  # what was asked before counts less
        if any(answer.kind == "text" for answer in given) and transcript.id not in waiting:
            people = ", ".join(sorted({answer.who for answer in given}))
            known = versions.kept(corrected(transcript, given), hour, by=people)
        else:
            known = versions.of(recording_of(transcript))
        now = in_force(known)
        if now is not None and now.by is not None:
            found.append(now.transcript)
    return found


def corrected(transcript: Transcript, answers: Sequence[Answer]) -> Transcript:
    """A transcript with what people wrote in place; what they could not write down stays as the model heard it."""
    segments = list(transcript.segments)
    for answer in answers:
        if answer.kind == "text":
            segments = _placed(segments, answer)
    words = [word for segment in segments for word in segment.words]
    mean = sum(word.confidence for word in words) / len(words) if words else 0.0
    return replace(
        transcript,
        segments=tuple(sorted(segments, key=lambda segment: segment.start_s)),
        confidence=round(mean, CONFIDENCE_DIGITS),
    )


def _placed(segments: Sequence[Segment], answer: Answer) -> list[Segment]:
    """The segments with an answer in place of what was heard in its time."""
    task = answer.task
    heard: list[Word] = []
    kept: list[Segment] = []
    replaced: list[Segment] = []
    for segment in segments:
        inside = [word for word in segment.words if _is_about(task, word.start_s, word.end_s, segment.channel)]
        if not inside and (segment.words or not _is_about(task, segment.start_s, segment.end_s, segment.channel)):
            kept.append(segment)
            continue
        heard += inside
        replaced.append(segment)
        for words in (
            [word for word in segment.words if word not in inside and word.start_s < task.start_s],
            [word for word in segment.words if word not in inside and word.start_s >= task.start_s],
        ):
            if words:  # another model cut the recording elsewhere
                start_s, end_s = words[0].start_s, words[-1].end_s
                kept.append(
                    replace(segment, words=tuple(words), start_s=start_s, end_s=end_s, written=None, intent=None)
                )
    heard.sort(key=lambda word: word.start_s)
    words = timed(answer.text, heard, task)
    if words:
        like = replaced[0] if replaced else Segment((), task.start_s, task.end_s, task.speaker, channel=task.channel)
        made = replace(like, words=tuple(words), start_s=task.start_s, end_s=task.end_s, confidence=None)
        if [word.text for word in words] != [word.text for word in heard]:
            made = replace(made, written=None, intent=None)  # they are of other words
        kept.append(made)
    return kept


def _is_about(task: ReviewTask, start_s: float, end_s: float, channel: int | None) -> bool:
    return task.start_s <= (start_s + end_s) / 2 <= task.end_s and task.channel in (None, channel)


def timed(text: str, heard: Sequence[Word], task: ReviewTask) -> list[Word]:
    """The words of a text with the times of what was heard, where it is the same, and a share of the time else."""
    pieces = [piece for word in heard for piece in _spread(split_words(word.text), word.start_s, word.end_s, word)]
    said, language = split_words(text), task.language
    theirs, ours = ([_compared(word, language) for word in words] for words in ([p.text for p in pieces], said))
    words: list[Word] = []
    for kind, first, last, begin, end in SequenceMatcher(None, theirs, ours, autojunk=False).get_opcodes():
        if kind == "equal":
            for piece, word in zip(pieces[first:last], said[begin:end], strict=True):
                written = piece.written if piece.text == word else None
                words.append(replace(piece, text=word, written=written, confidence=CERTAIN))
        elif begin < end:
            if first < last:
                start_s, end_s = pieces[first].start_s, pieces[last - 1].end_s
            else:
                start_s = pieces[first - 1].end_s if first else task.start_s
                end_s = pieces[last].start_s if last < len(pieces) else task.end_s
            near = pieces[min(first, len(pieces) - 1)].speaker if pieces else None
            words += _spread(said[begin:end], start_s, end_s, Word("", 0, 0, CERTAIN, near, task.channel))
    return words


def _compared(word: str, language: str) -> str:
    """A word as it is compared: without capitals and commas, unless it has nothing else."""
    return normalize(word, language) or word


def _spread(texts: Sequence[str], start_s: float, end_s: float, like: Word) -> list[Word]:
    """Words one after the other from one time to another, each as long as there is to say in it."""
    if len(texts) == 1:
        return [replace(like, text=texts[0], start_s=start_s, end_s=max(start_s, end_s))]
    lengths = [max(1, spoken_length(text)) for text in texts]
    step = max(0.0, end_s - start_s) / max(1, sum(lengths))
    ends = [start_s + step * reach for reach in itertools.accumulate(lengths, initial=0)]
    return [
        replace(like, text=text, start_s=round(begin, TIME_DIGITS), end_s=round(end, TIME_DIGITS), written=None)
        for text, (begin, end) in zip(texts, itertools.pairwise(ends), strict=True)
    ]
