"""Two models on the same utterances, each transcribed once; what cannot be read is counted."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.evaluate import evaluate, insertions_on_nonspeech, nonspeech_probes
from evaluation.gates import COMPARISON_GATE, GateSettings, judge
from evaluation.results import Evaluation, EvaluationError, Summary
from speech.audio.decode import write_flac_chunks
from speech.bundle import ModelBundle
from speech.recognition.offline import Recognizer
from tests.evaluation.test_scoring import utterance
from tests.toy_bundle import tones, write_toy_bundle


def test_probes_without_speech_are_the_same_every_time_and_never_clip():
    first, again = dict(nonspeech_probes()), dict(nonspeech_probes())
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.abs(samples).max() <= 1.0 and samples.dtype == np.float32 for samples in first.values())
    loudness = 20 * np.log10(np.sqrt(np.mean(first["pink noise at -40 dBFS"] ** 2)))
    assert loudness == pytest.approx(-40, abs=0.5)


def test_words_made_up_on_noise_are_counted_per_minute():
    """One word on each probe of ten seconds is six a minute; silence alone gives less."""
    assert insertions_on_nonspeech(lambda samples: "uh", "en").words_per_minute == pytest.approx(6.0)
    loud = insertions_on_nonspeech(lambda samples: "uh huh" if np.abs(samples).max() > 0 else "", "en")
    assert loud.by_probe["silence"] == 0.0
    assert loud.words_per_minute == pytest.approx(12 * 12 / 13)


@pytest.fixture(scope="module")
def tone_corpus(tmp_path_factory):
    """Recordings that a toy bundle hears exactly, one reference that is wrong, and one file that is not audio."""
    folder = tmp_path_factory.mktemp("tones")
    bundle = write_toy_bundle(folder / "bundle")
    rows = []
    for number, words in enumerate((["one", "two"], ["three"], ["four", "five", "six"], ["seven", "eight"])):
        samples = tones(words)
        path = folder / f"{number}.flac"
        write_flac_chunks([samples], path)
        rows.append(
            utterance(
                f"u{number}",
                audio=str(path),
                text=" ".join(words),
                duration_s=len(samples) / 16_000,
                speaker=f"s{number % 2}",
            )
        )
    rows[3] = replace(rows[3], text="seven nine")
    broken = folder / "broken.flac"
    broken.write_bytes(b"not audio at all")
    return bundle, rows, utterance("broken", audio=str(broken))


def run(bundle, sets, champion=None, told=lambda said: None):
    return evaluate(
        Recognizer(bundle),
        sets,
        lambda row: row.audio,
        language="en",
        partition="en|2024-04",
        champion=champion,
        dataset_digests={"quarter": "0" * 64},
        bootstrap=100,
        told=told,
    )


def test_an_evaluation_transcribes_each_utterance_once_and_counts_what_it_cannot_read(tone_corpus):
    """In = scored + unreadable; one wrong reference word of eight gives 12.5 %."""
    bundle, rows, broken = tone_corpus
    seen: list[str] = []
    found = run(bundle, {"quarter": [*rows, broken]}, told=seen.append)
    quarter = found.sets["quarter"]
    assert [row.id for row in quarter.rows] == [row.id for row in rows]
    assert quarter.score.wer == pytest.approx(1 / 8)
    assert [unread.id for unread in quarter.unreadable] == ["broken"]
    assert quarter.unreadable[0].reason
    assert quarter.reliability.words == 8
    assert seen[-1] == f"quarter: {bundle.name} 5/5"
    assert found.rtfx > 0


def test_an_evaluation_survives_writing_and_reading_and_has_a_stable_digest(tone_corpus, tmp_path):
    """The speed of the machine is not part of what was found out about the model."""
    bundle, rows, _ = tone_corpus
    found = run(bundle, {"quarter": rows})
    found.save(tmp_path)
    assert Evaluation.load(tmp_path) == found
    summary = Summary.load(tmp_path)
    assert (summary.bundle_digest, summary.evaluation_digest) == (found.bundle_digest, found.digest)
    assert summary.scores == {"quarter": found.sets["quarter"].score}
    assert run(bundle, {"quarter": rows}).digest == found.digest
    assert replace(found, rtfx=1.0).digest == found.digest
    assert replace(found, language="de").digest != found.digest


def test_the_champion_is_scored_on_the_same_utterances(tone_corpus, tmp_path):
    bundle, rows, _ = tone_corpus
    other = write_toy_bundle(tmp_path / "other", name="champion")
    found = run(bundle, {"benchmark": rows}, champion=Recognizer(other))
    rival = found.sets["benchmark"].champion
    assert [row.id for row in rival.rows] == [row.id for row in rows]
    assert rival.difference.estimate == 0.0
    assert (found.champion_name, found.champion_digest) == ("champion", other.digest)


def test_segments_of_one_long_file_are_cut_out_of_it(tone_corpus, tmp_path):
    bundle, _, _ = tone_corpus
    first, second = tones(["one", "two"]), tones(["five"])
    path = tmp_path / "long.flac"
    write_flac_chunks([np.concatenate([first, second])], path)
    cut = len(first) / 16_000
    rows = [
        utterance("a", audio=str(path), text="one two", duration_s=cut),
        utterance("b", audio=str(path), text="five", duration_s=len(second) / 16_000, offset_s=cut),
        utterance("c", audio=str(path), text="nothing", duration_s=1.0, offset_s=500.0),
    ]
    quarter = run(bundle, {"quarter": rows}).sets["quarter"]
    assert [row.hypothesis for row in quarter.rows] == ["one two", "five"]
    assert [unread.id for unread in quarter.unreadable] == ["c"]


def test_another_schema_or_a_torn_file_is_an_error_that_says_so(tone_corpus, tmp_path):
    bundle, rows, _ = tone_corpus
    content = run(bundle, {"quarter": rows}).to_dict()
    with pytest.raises(ValueError, match="schema_version: "):
        Evaluation.from_dict({**content, "schema_version": 0})
    with pytest.raises(ValueError, match="sets"):
        Evaluation.from_dict({**content, "sets": 3})
    for kind, name in ((Evaluation, "evaluation.json"), (Summary, "summary.json")):
        with pytest.raises(EvaluationError, match="no evaluation"):
            kind.load(tmp_path)
        for content in ("{", "[" * 100_000):
            (tmp_path / name).write_text(content)
            with pytest.raises(EvaluationError, match="not readable"):
                kind.load(tmp_path)
        for content in ("[]", "{}"):
            (tmp_path / name).write_text(content)
            with pytest.raises(EvaluationError, match="evaluate again"):
                kind.load(tmp_path)


class Stumbling:
    """A recogniser that cannot stand recordings of some lengths, as one that runs into its own limits."""

    def __init__(self, bundle: ModelBundle, seconds: set[float]) -> None:
        self.bundle, self.recognizer = bundle, Recognizer(bundle)
        self.seconds = seconds

    def transcribe_batch(self, batch):
        if any(round(len(samples) / 16_000, 3) in self.seconds for samples in batch):
            raise RuntimeError("the network ran into its limit")
        return self.recognizer.transcribe_batch(batch)


def stumbling(bundle: ModelBundle, *rows) -> Stumbling:
    return Stumbling(bundle, {round(row.duration_s, 3) for row in rows})


def test_an_utterance_that_fails_for_one_model_is_counted_there_and_left_out_of_the_comparison(tone_corpus, tmp_path):
    """Else the pairs would shift by one, and a difference between two equal models would be made up."""
    bundle, rows, _ = tone_corpus
    other = write_toy_bundle(tmp_path / "other", name="other")
    rows = [rows[1], rows[3], rows[2]]  # in order: one word, one error of two words, three words
    found = run(bundle, {"benchmark": rows}, champion=stumbling(other, rows[0])).sets["benchmark"]
    assert [row.id for row in found.rows] == [row.id for row in rows]
    assert found.unreadable == ()
    assert [row.id for row in found.champion.rows] == [row.id for row in rows[1:]]
    assert [(failed.id, failed.reason) for failed in found.champion.unreadable] == [
        (rows[0].id, "the model failed on it: the network ran into its limit")
    ]
    assert found.champion.difference.words == 5
    assert found.champion.difference.estimate == 0.0


def test_a_candidate_that_fails_on_an_utterance_is_refused_for_it(tone_corpus, tmp_path):
    """A model that breaks down on what is hard must not win by having heard only what is easy."""
    bundle, rows, _ = tone_corpus
    other = write_toy_bundle(tmp_path / "other", name="other")
    candidate = stumbling(bundle, rows[2])
    found = evaluate(
        candidate,
        {"quarter": rows, "benchmark": rows},
        lambda row: row.audio,
        language="en",
        partition="en|2024-04",
        champion=Recognizer(other),
        dataset_digests={"quarter": "0" * 64},
        bootstrap=100,
    )
    benchmark = found.sets["benchmark"]
    assert [failed.id for failed in benchmark.unreadable] == [rows[2].id]
    assert len(benchmark.champion.rows) == len(rows)
    assert benchmark.champion.difference.words == 5
    gates = judge(found, GateSettings()).gates
    refused = [gate for gate in gates if gate.unit == "share undecoded" and not gate.passed]
    assert {gate.test_set for gate in refused} == {"quarter", "benchmark"}
    against = next(gate for gate in gates if gate.name == COMPARISON_GATE)
    assert "3 of 4 utterances, which both heard" in against.explanation
