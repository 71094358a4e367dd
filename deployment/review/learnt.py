"""What people wrote, as rows of a corpus: they go the way of every source, and are learnt from the next quarter on.

A row belongs to the quarter in which its task was answered first, and stays there: whoever thinks again changes its
text, and no other quarter has it too. Its audio is named by its key in the data store.

Never in a test set: what people were asked about was chosen for being hard, so a test set that grew by it would tell of
the choice. And nothing of a frozen benchmark is learnt: not a recording that is in it, nor a speaker who is.
"""

from collections.abc import Collection, Iterator

from deployment.batch.branch import ReviewTask
from deployment.review.answers import Answers, outcome_of
from speech.corpus.manifest import Utterance, quarter_of
from speech.corpus.normalize import REVIEWED

DOMAIN = "reviewed"


def learnt(
    answers: Answers, quarter: str, language: str, recordings: Collection[str] = (), speakers: Collection[str] = ()
) -> Iterator[Utterance]:
    """What people wrote that belongs to a quarter and language, by id.

    Args:
        recordings: SHA-256 of the files of the frozen benchmark.
        speakers: of the frozen benchmark, likewise kept out.
    """
    rows = []
    for hour in answers.hours():
        for given in answers.of_hour(hour).values():
            settled, day = outcome_of(given, False).settled, given[0].at.date()
            if settled is None or not settled.text or (quarter_of(day), settled.task.language) != (quarter, language):
                continue
            task = settled.task
            if task.source_digest not in recordings and task.speaker not in speakers:
                rows.append(
                    Utterance(
                        id=f"review-{task.id}",
                        audio=task.clip,
                        duration_s=round(task.learnt_end_s - task.learnt_start_s, 3),
                        text=settled.text,
                        speaker=_speaker(task),
                        language=language,
                        domain=DOMAIN,
                        recorded_at=day,
                        digest=settled.audio_digest,
                        offset_s=round(task.learnt_start_s - task.clip_start_s, 3),
                        split="train",
                        attributes={REVIEWED: task.why},
                    )
                )
    yield from sorted(rows, key=lambda row: row.id)


def _speaker(task: ReviewTask) -> str:
    """Who speaks, as far as it is known: labels are of a recording, so a recording is a person."""
    return f"review-{task.source_digest[:32]}"
