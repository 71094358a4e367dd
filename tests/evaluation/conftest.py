"""Evaluations built from chosen texts, so that every figure in them is known."""

from collections.abc import Callable

import pytest

from evaluation.calibration import reliability
from evaluation.results import ChampionResult, Evaluation, NonSpeech, Scored, SetResult
from evaluation.scoring import count_edits, paired_difference, score, slice_scores

BUNDLE = "a" * 64
CHAMPION = "c" * 64


def rows_with(wrong_of_ten: int, speakers: int = 10, utterances: int = 10) -> list[Scored]:
    """Utterances of ten words, of which the last `wrong_of_ten` are substituted: WER is known exactly."""
    words = ["please", "transfer", "my", "account", "balance", "to", "the", "savings", "number", "four"]
    rows = []
    for speaker in range(speakers):
        for number in range(utterances):
            heard = words[: 10 - wrong_of_ten] + ["x"] * wrong_of_ten
            row = Scored(
                id=f"{speaker}-{number}",
                reference=" ".join(words),
                hypothesis=" ".join(heard),
                confidence=0.9,
                duration_s=3.6,
                speaker=f"speaker {speaker}",
                domain="calls" if speaker % 2 else "reading",
                slices={
                    "domain": "calls" if speaker % 2 else "reading",
                    "gender": "female" if speaker % 4 < 2 else "male",
                },
                snr_db=5.0 + speaker * 3,
            )
            rows.append(row)
    return rows


def result_of(rows: list[Scored], champion: list[Scored] | None = None) -> SetResult:
    """A test set's figures, as `evaluate` makes them."""
    rival = None
    if champion is not None:
        rival = ChampionResult(
            score(champion, "en"),
            slice_scores(champion, count_edits(champion, "en")),
            tuple(champion),
            paired_difference(count_edits(rows, "en"), count_edits(champion, "en")),
        )
    sure = [0.95] * 90 + [0.3] * 10
    return SetResult(
        score(rows, "en"),
        slice_scores(rows, count_edits(rows, "en")),
        tuple(rows),
        reliability(sure, [True] * 92 + [False] * 8),
        rival,
    )


@pytest.fixture(scope="session")
def make_evaluation() -> Callable[..., Evaluation]:
    """Builds an evaluation that passes every default gate unless told otherwise."""

    def make(
        quarter: list[Scored] | None = None,
        benchmark: list[Scored] | None = None,
        champion: list[Scored] | None = None,
        **changes,
    ) -> Evaluation:
        rival = champion
        given = {
            "bundle_digest": BUNDLE,
            "model_name": "en-2024-Q2",
            "language": "en",
            "partition": "en|2024-04",
            "dataset_digests": {"quarter": "1" * 64, "benchmark": "2" * 64},
            "sets": {
                "quarter": result_of(quarter or rows_with(0)),
                "benchmark": result_of(benchmark or rows_with(0), rival),
            },
            "champion_digest": CHAMPION if rival else None,
            "champion_name": "en-2024-Q1" if rival else None,
            "nonspeech": NonSpeech(0.0, 2.0, {"silence": 0.0}),
            "parity": {"utterances": 20, "equal": 1.0},
            "rtfx": 50.0,
        }
        return Evaluation(**{**given, **changes})

    return make
