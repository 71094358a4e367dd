"""A broken quarter is stopped before anything is trained on it, and a good one is let through."""

import datetime as dt
import os
import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from evaluation.corpus.drift import stability_index
from evaluation.corpus.expectations import CorpusSettings, validate
from evaluation.corpus.profile import CorpusProfile, profile_corpus
from speech.audio.decode import write_flac_chunks
from speech.corpus.importers import IMPORTERS, Defaults
from speech.corpus.manifest import Utterance, assign_splits
from speech.quality import Quality

WORDS = [
    "please",
    "transfer",
    "my",
    "account",
    "balance",
    "to",
    "the",
    "savings",
    "number",
    "and",
    "call",
    "me",
    "back",
]


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("audio") / "speech.flac"
    write_flac_chunks([np.zeros(1_600, np.float32)], path)
    return str(path)


@pytest.fixture(scope="module")
def corpus(recording):
    """A clean quarter: 400 utterances of 25 speakers, each with a pace of its own."""
    generator = random.Random(4)
    rows = []
    for number in range(400):
        speaker = number % 25
        text = " ".join(generator.choices(WORDS, k=generator.randint(2, 14)))
        duration_s = len(text) / (11 + speaker % 5) * generator.uniform(0.85, 1.15) + 0.4
        telephone = speaker % 3 == 0
        rows.append(
            Utterance(
                id=f"u{number:04d}",
                audio=recording,
                duration_s=duration_s,
                text=text,
                speaker=f"s{speaker}",
                language="en",
                domain="calls" if telephone else "assistant",
                recorded_at=dt.date(2024, 5, 1 + number % 28),
                digest=f"{number:064x}",
                quality=Quality(
                    duration_s, -22.0, -3.0, generator.gauss(20, 6), 0.0, 0.1, 3_900.0 if telephone else 7_800.0
                ),
            )
        )
    return assign_splits(rows)


@pytest.fixture
def check(tmp_path):
    def run(rows, previous=None, rejected=None, settings=None, unreadable_share=0.0):
        return validate(
            rows,
            language="en",
            quarter="2024-04",
            rejected=rejected or {},
            unreadable_share=unreadable_share,
            settings=settings or CorpusSettings(),
            previous=previous,
            docs_dir=tmp_path / "docs",
        )

    return run


def failed(validation):
    return {outcome.name for outcome in validation.outcomes if not outcome.passed}


def test_markers_in_transcripts_are_a_finding(corpus, check):
    """A source that marks half of its rows is worth a look, and no reason to stop."""
    marked = [
        replace(row, attributes={"markers": "[noise]"}) if number % 2 else row for number, row in enumerate(corpus)
    ]
    found = check(marked)
    assert failed(found) == {"marker_share"}
    assert found.passed
    assert "marker_share" not in failed(check(corpus))


def test_a_marker_that_is_no_pattern_is_refused_at_once():
    with pytest.raises(ValueError, match="is no regular expression"):
        CorpusSettings(markers=("[noise",))


def shifted(rows):
    texts = [row.text for row in rows]
    return [replace(row, text=text) for row, text in zip(rows, texts[1:] + texts[:1], strict=True)]


def test_a_clean_quarter_passes_everything(corpus, check):
    found = check(corpus)
    assert failed(found) == set()
    assert found.passed


def at(rows, index, **changes):
    return [*rows[:index], replace(rows[index], **changes), *rows[index + 1 :]]


FAULTS = {
    "transcripts shifted by one row": (shifted, {"text_audio_correlation", "transcripts_in_place"}),
    "one delivery of 120 rows shifted": (
        lambda rows: rows[:150] + shifted(rows[150:270]) + rows[270:],
        {"transcripts_in_place"},
    ),
    "an id twice": (lambda rows: at(rows, 1, id=rows[0].id), {"id_unique"}),
    "audio delivered twice": (
        lambda rows: [replace(row, digest=rows[n // 2].digest) for n, row in enumerate(rows)],
        {"duplicate_share"},
    ),
    "an empty transcript": (lambda rows: at(rows, 5, text="..."), {"text_not_empty"}),
    "another script": (
        lambda rows: [replace(row, text="привет " + row.text) if n % 40 == 0 else row for n, row in enumerate(rows)],
        {"text_charset"},
    ),
    "another language's rows": (lambda rows: at(rows, 3, language="de"), {"language"}),
    "another quarter's rows": (lambda rows: at(rows, 3, recorded_at=dt.date(2024, 7, 1)), {"quarter"}),
    "a speaker in two sets": (
        lambda rows: at(rows, 3, split="test" if rows[3].split != "test" else "train"),
        {"speakers_in_several_splits"},
    ),
    "no split": (lambda rows: at(rows, 3, split=None), {"split_present", "speakers_in_several_splits"}),
    "no test set": (lambda rows: [row for row in rows if row.split != "test"], {"splits_filled"}),
    "too long": (lambda rows: at(rows, 9, duration_s=300.0, quality=None), {"duration_range"}),
    "not measured": (lambda rows: at(rows, 9, duration_s=None), {"duration_present"}),
    "audio cut short": (
        lambda rows: [replace(row, duration_s=row.duration_s / 8) for row in rows],
        {"speech_rate", "hours"},
    ),
    "audio gone": (lambda rows: at(rows, 2, audio="/nowhere/x.flac"), {"audio_present"}),
    "three speakers": (lambda rows: [row for row in rows if row.speaker in ("s1", "s2", "s3")], {"speakers"}),
}


@pytest.mark.parametrize("case", FAULTS)
def test_each_fault_of_an_export_is_caught(corpus, check, case):
    """The right expectation fails, so that people read the right reason."""
    spoil, expected = FAULTS[case]
    found = check(spoil(corpus))
    assert expected <= failed(found)
    assert not found.passed
    allowed = {"splits_filled", "hours", "speech_rate", "duration_range"}
    assert failed(found) - expected <= allowed


def test_most_rows_in_quarantine_stop_the_partition(corpus, check):
    assert failed(check(corpus, rejected={"truncated": 60, "not-audio": 40})) == {"rejected_share"}
    assert failed(check(corpus, rejected={"truncated": 10})) == set()
    assert failed(check(corpus, unreadable_share=0.9)) == {"rejected_share"}


def test_what_was_left_out_counts_towards_its_own_limit(corpus, check):
    """Selection takes duplicates and foreign scripts out before the checks look: their shares are of the delivery."""
    assert failed(check(corpus, rejected={"duplicate": 24})) == {"duplicate_share"}
    assert failed(check(corpus, rejected={"duplicate": 12, "contradiction": 12})) == {"duplicate_share"}
    assert failed(check(corpus, rejected={"charset": 24})) == {"text_charset"}
    assert failed(check(corpus, rejected={"duplicate": 1, "charset": 1})) == set()


def test_a_wrong_sample_rate_or_a_file_that_is_no_audio_is_caught(corpus, check, tmp_path):
    import soundfile

    narrow, text = tmp_path / "8k.wav", tmp_path / "text.flac"
    soundfile.write(narrow, np.zeros(800), 8_000)
    text.write_text("no audio")
    for path in (narrow, text):
        assert failed(check(at(corpus, 0, audio=str(path)))) == {"sample_rate"}


def test_a_partition_without_rows_is_refused_for_that_and_for_nothing_else(corpus, check):
    """Advice about duplicates and drift would send people looking for what is not there."""
    for previous in (None, profile_corpus(corpus, language="en", quarter="2024-01")):
        found = check([], previous=previous)
        assert (failed(found), found.failed, found.passed) == ({"rows"}, ("rows",), False)
        others = [outcome for outcome in found.outcomes if outcome.name != "rows"]
        assert {outcome.explanation for outcome in others} == {"Not judged: there is no row."}
        assert "Not judged: there is no row." in found.docs.read_text()
    assert [outcome.name for outcome in found.outcomes] == [outcome.name for outcome in check(corpus).outcomes]


def test_of_a_partition_that_went_to_quarantine_the_reasons_are_counted(check):
    (rows,) = (each for each in check([], rejected={"duration": 2, "charset": 5}).outcomes if each.name == "rows")
    assert rows.explanation == "All 7 rows went to quarantine (5 for charset, 2 for duration): read the reasons there."


def test_single_commands_are_not_refused_for_being_equally_long(corpus, check):
    """Correlation cannot tell there; it says so instead of stopping a good quarter."""
    rows = [replace(row, text="stop now", duration_s=0.7 + n % 7 / 50, quality=None) for n, row in enumerate(corpus)]
    found = check(rows, settings=CorpusSettings(min_hours=0.01))
    assert failed(found) == set()
    outcome = next(outcome for outcome in found.outcomes if outcome.name == "text_audio_correlation")
    assert outcome.explanation.startswith("Not judged")


def test_the_next_quarter_of_the_same_source_does_not_drift(corpus, check):
    half = check(corpus[::2], previous=profile_corpus(corpus[1::2], language="en", quarter="2024-01"))
    assert failed(half) == set()


def test_drift_warns_and_another_source_blocks(corpus, check):
    before = profile_corpus(corpus, language="en", quarter="2024-01")
    noisy = [replace(row, quality=replace(row.quality, snr_db=row.quality.snr_db - 9)) for row in corpus]
    found = check(noisy, previous=before)
    assert failed(found) == {"drift_snr"}
    assert found.passed  # a warning for people
    foreign = [replace(row, text=" ".join(word[::-1] for word in row.text.split())) for row in corpus]
    found = check(foreign, previous=before)
    assert {"drift_vocabulary", "drift_extreme"} <= failed(found)
    assert not found.passed


def test_stability_index_is_zero_for_equal_shapes_and_large_for_others():
    assert stability_index((10, 20, 30), (1_000, 2_000, 3_000)) == pytest.approx(0, abs=0.01)
    assert stability_index((900, 100), (100, 900)) == pytest.approx(0.8 * np.log(9) * 2, rel=0.02)
    assert np.isnan(stability_index((0, 0), (1, 1)))


def test_a_profile_survives_writing_and_reading(corpus):
    profile = profile_corpus(corpus, language="en", quarter="2024-04")
    assert CorpusProfile.from_dict(profile.to_dict()) == profile
    assert profile.hours == pytest.approx(sum(row.duration_s for row in corpus) / 3600)
    with pytest.raises(ValueError, match="language"):
        CorpusProfile.from_dict({})
    with pytest.raises(ValueError, match="schema"):
        CorpusProfile.from_dict({**profile.to_dict(), "schema_version": 0})


def test_data_docs_show_every_outcome_and_refer_to_nothing_outside(corpus, check):
    """Corpora are private: the pages must not ask any server, nor run what a transcript brings along."""
    hostile = "<script>alert(1)</script>"
    rows = at(at(corpus, 0, id=hostile), 1, id=hostile)
    found = check(rows)
    index = found.docs.read_text()
    for outcome in found.outcomes:
        assert outcome.name.replace("_", " ") in index
    for link in re.findall(r'href="([^"#]+)"', index):
        assert (found.docs.parent / link.replace("%20", " ").replace("%2C", ",")).is_file()
    pages = list(found.docs.parent.rglob("*.html"))
    assert len(pages) == 5
    for page in pages:
        html = page.read_text()
        assert "Content-Security-Policy" in html
        assert "<script" not in html.lower()
        assert not re.search(r"(src|href)\s*=\s*['\"]\s*(https?:)?//", html)
    assert sum(path.stat().st_size for path in found.docs.parent.rglob("*") if path.is_file()) < 2_000_000


def test_analytics_stay_off(corpus, check):
    check(corpus[:30])
    assert os.environ["GX_ANALYTICS_ENABLED"] == "false"


def test_real_recordings_pass_and_their_shifted_transcripts_do_not(check):
    """60 real speakers aged 6 to 43, non-native: the hardest clean corpus at hand."""
    data = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not data:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set: real recordings are not at hand")
    import soundfile

    defaults = Defaults(language="en", domain="reading", recorded_at=dt.date(2024, 5, 1))
    rows = []
    for row in IMPORTERS["kaldi"](Path(data) / "speechocean762", defaults):
        assert isinstance(row, Utterance)
        rows.append(replace(row, duration_s=soundfile.info(row.audio).duration, digest=f"{len(rows):064x}"))
    rows = assign_splits(rows)
    settings = CorpusSettings(probed_files=50)
    assert failed(check(rows, settings=settings)) == set()
    assert "text_audio_correlation" in failed(check(shifted(rows), settings=settings))
    assert failed(check(rows[:600] + shifted(rows[600:800]) + rows[800:], settings=settings)) == {
        "transcripts_in_place"
    }


def test_two_quarters_of_a_script_without_spaces_know_each_other_s_words(corpus, tmp_path):
    """With sentences for words, no quarter ever held a word of the one before, and each second one was refused."""
    characters = {word: chr(0x4E00 + 50 * number) + chr(0x5E00 + 50 * number) for number, word in enumerate(WORDS)}
    rows = [replace(row, language="zh", text="".join(characters[word] for word in row.text.split())) for row in corpus]
    before = profile_corpus(rows[::2], language="zh", quarter="2024-01")
    assert set(before.vocabulary) == set("".join(characters.values()))
    found = validate(
        rows[1::2],
        language="zh",
        quarter="2024-04",
        rejected={},
        settings=CorpusSettings(),
        previous=before,
        docs_dir=tmp_path,
    )
    words = next(outcome for outcome in found.outcomes if outcome.name == "drift_vocabulary")
    assert words.observed == 1.0
    assert not {"drift_vocabulary", "drift_extreme"} & failed(found)
