"""What the embedded corpus promises: the same bytes anywhere, speech that fits its text, faults where announced."""

import dataclasses
import hashlib
import itertools
import subprocess
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from speech.audio.decode import AudioError, decode
from speech.corpus.importers import IMPORTERS, Defaults
from speech.corpus.manifest import Utterance, assign_splits, quarter_of
from speech.corpus.synthetic import (
    BROKEN_KINDS,
    DRIFT_QUARTERS,
    SynthesisError,
    SyntheticQuarter,
    Voicebox,
    drift,
    languages,
    over_telephone,
    quarter_index,
    roster,
    sentences,
    speaker_of,
    write_quarter,
)
from speech.text import normalize, unexpected_characters

ROOT = Path(__file__).parents[2]
MINUTES = 3.0
QUARTERS = [f"{2024 + n // 4}-{1 + n % 4 * 3:02d}" for n in range(12)]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def imported(quarter: SyntheticQuarter) -> list[Utterance]:
    rows = list(IMPORTERS["table"](quarter.folder, Defaults(language=quarter.language)))
    assert all(isinstance(row, Utterance) for row in rows)
    return [row for row in rows if isinstance(row, Utterance)]


def fit_of_text_and_audio(quarter: SyntheticQuarter) -> float:
    """Correlation of the transcripts' lengths with the durations of the sound files."""
    pairs = [
        (len(normalize(row.text, row.language)), decode(row.audio).duration_s)
        for row in imported(quarter)
        if str(Path(row.audio).relative_to(quarter.folder)) not in quarter.broken
    ]
    return float(np.corrcoef(np.array(pairs).T)[0, 1])


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> SyntheticQuarter:
    return write_quarter(tmp_path_factory.mktemp("en") / "q", "2024-04", "en", minutes=MINUTES)


@pytest.fixture(scope="module")
def german(tmp_path_factory: pytest.TempPathFactory) -> SyntheticQuarter:
    return write_quarter(tmp_path_factory.mktemp("de") / "q", "2025-10", "de", minutes=MINUTES)


@pytest.fixture(params=["english", "german"])
def quarter(request: pytest.FixtureRequest) -> SyntheticQuarter:
    written: SyntheticQuarter = request.getfixturevalue(request.param)
    return written


def test_another_process_writes_the_same_bytes(english: SyntheticQuarter, tmp_path: Path) -> None:
    """Data versions are digests: a corpus that differs between runs would retrain every model."""
    arguments = [str(tmp_path / "q"), "2024-04", "en", "--minutes", str(MINUTES)]
    subprocess.run(
        [sys.executable, "-m", "speech_assets.cli", "corpus", *arguments], check=True, capture_output=True, cwd=ROOT
    )
    assert digests(tmp_path / "q") == digests(english.folder)


def test_what_was_said_before_changes_nothing(english: SyntheticQuarter, tmp_path: Path) -> None:
    """espeak-ng remembers; partitions are written in any order and by one process or many."""
    with closing(Voicebox()) as box:
        box.say("something else before", speaker_of("spk-en-0001", "en"))
        again = write_quarter(tmp_path / "q", "2024-04", "en", minutes=MINUTES)
    assert digests(again.folder) == digests(english.folder)
    assert dataclasses.replace(again, folder=english.folder) == english


def test_every_row_is_importable_and_in_its_quarter(quarter: SyntheticQuarter) -> None:
    """The corpus is read by the same importer as anybody's own table."""
    rows = imported(quarter)
    assert len(rows) == quarter.rows
    assert {quarter_of(row.recorded_at) for row in rows} == {quarter.quarter}
    assert {row.language for row in rows} == {quarter.language}
    assert {row.domain for row in rows} == {"call-centre", "assistant"}
    assert {row.attributes["gender"] for row in rows} == {"female", "male"}
    assert not {character for row in rows for character in unexpected_characters(row.text, row.language)}


def test_sound_files_hold_speech(quarter: SyntheticQuarter) -> None:
    """Half a second to six, neither silent nor clipped, in several formats and sample rates."""
    durations, suffixes = [], Counter()
    for row in imported(quarter):
        relative = str(Path(row.audio).relative_to(quarter.folder))
        if relative in quarter.broken:
            continue
        waveform = decode(row.audio)
        durations.append(waveform.duration_s)
        suffixes[Path(row.audio).suffix] += 1
        assert 0.45 < waveform.duration_s < 6.2
        assert 0.03 < np.max(np.abs(waveform.samples)) < 1.05
        assert -42 < 10 * np.log10(np.mean(waveform.samples**2)) < -15
    assert sum(durations) == pytest.approx(quarter.audio_s, rel=0.02)
    assert 1.5 < np.mean(durations) < 3.0
    assert len(suffixes) >= 4


def test_broken_files_are_refused_by_the_decoder(quarter: SyntheticQuarter) -> None:
    """They are there to show quarantine; one that decodes would be trained on."""
    assert set(quarter.broken.values()) == set(BROKEN_KINDS)
    for relative in quarter.broken:
        with pytest.raises(AudioError):
            decode(str(quarter.folder / relative))


def test_text_fits_its_audio(quarter: SyntheticQuarter) -> None:
    """Longer text, longer speech: what an expectation can check without a recogniser."""
    assert fit_of_text_and_audio(quarter) > 0.85


def test_corrupt_export_pairs_text_with_other_audio(english: SyntheticQuarter, tmp_path: Path) -> None:
    """Each file is sound and each text is real; only together they are wrong, and only statistics can see it."""
    corrupt = write_quarter(tmp_path / "q", "2024-04", "en", minutes=MINUTES, corrupt=True)
    assert fit_of_text_and_audio(corrupt) < 0.4
    before, after = imported(english), imported(corrupt)
    assert [row.text for row in before[:5]] == [row.text for row in after[:5]]
    assert [row.text for row in before[-6:-1]] == [row.text for row in after[-5:]]
    assert [row.audio.rsplit("/", 1)[1] for row in before] == [row.audio.rsplit("/", 1)[1] for row in after]


def test_every_quarter_has_speakers_to_hold_out() -> None:
    """A quarter without test speakers cannot be judged, and hashing a few names promises nothing."""
    for language, name, speakers in itertools.product(languages(), QUARTERS, (6, 10, 24, 60)):
        cast = roster(name, language, speakers=speakers)
        rows = [Utterance(s.name, "x", None, "x", s.name, language, "x", None) for s in cast]  # type: ignore[arg-type]
        counts = Counter(row.split for row in assign_splits(rows))
        assert len(cast) == speakers
        assert min(counts["dev"], counts["test"], counts["train"]) >= 2


def test_speakers_come_and_go_and_never_come_back() -> None:
    """Neighbouring quarters overlap, so that drift is gradual; the voice of a name never changes."""
    casts = [{speaker.name: speaker for speaker in roster(name, "en")} for name in QUARTERS[:DRIFT_QUARTERS]]
    gone: set[str] = set()
    for earlier, later in itertools.pairwise(casts):
        assert 0.6 <= len(earlier.keys() & later.keys()) / len(later) < 1
        assert all(earlier[name] == later[name] for name in earlier.keys() & later.keys())
        gone |= earlier.keys() - later.keys()
        assert not gone & later.keys()


def test_drift_only_gets_harder() -> None:
    """Eight quarters from clean to hard, so that a model that is not retrained falls behind."""
    steps = [drift(n) for n in range(DRIFT_QUARTERS)]
    for earlier, later in itertools.pairwise(steps):
        assert later.telephone_share > earlier.telephone_share
        assert later.snr_db < earlier.snr_db
        assert later.reverberant_share > earlier.reverberant_share
        assert later.phrases > earlier.phrases
    assert drift(20) == steps[-1]
    assert quarter_index("2025-10") == 7
    with pytest.raises(ValueError, match="not a quarter"):
        quarter_index("2025-11")


@pytest.mark.parametrize("language", languages())
def test_later_quarters_say_new_things(language: str) -> None:
    """A model of the first quarters has never heard these words."""
    early = {word for s in itertools.islice(sentences(language, phrases=0), 4000) for word in s.spoken.split()}
    late = {word for s in itertools.islice(sentences(language), 4000) for word in s.spoken.split()}
    assert len(late - early) >= 7
    assert 50 <= len(early) <= len(late) <= 90


@pytest.mark.parametrize("language", languages())
def test_sentences_rarely_repeat(language: str) -> None:
    """A corpus of a few sentences would be learnt by heart; only short answers to menus come again."""
    said = [sentence.spoken for sentence in itertools.islice(sentences(language), 400)]
    assert len(set(said)) > 0.6 * len(said)


@pytest.mark.parametrize("language", languages())
def test_writing_and_speech_are_one_sentence(language: str) -> None:
    """The scoring form of what is delivered is exactly what was synthesised."""
    for sentence in itertools.islice(sentences(language), 500):
        assert normalize(sentence.written, language) == sentence.spoken
        assert normalize(sentence.spoken, language) == sentence.spoken
        assert all(value in sentence.written for value in sentence.slots.values())


def test_same_order_is_not_written_twice(english: SyntheticQuarter) -> None:
    """Re-running a partition costs nothing when nothing changed."""
    before = english.table.stat().st_mtime_ns
    assert write_quarter(english.folder, "2024-04", "en", minutes=MINUTES) == english
    assert english.table.stat().st_mtime_ns == before


def test_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    """A mistyped folder must not cost somebody's recordings."""
    (tmp_path / "mine.wav").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="not a synthetic quarter"):
        write_quarter(tmp_path, "2024-04", "en", minutes=0.1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.wav"]


def test_telephone_line_has_its_band() -> None:
    """Nothing below 300 Hz and above 3,400 Hz comes through."""
    time = np.arange(16_000) / 8_000
    levels = {}
    for hertz in (100, 1_000, 3_800):
        tone = (0.3 * np.sin(2 * np.pi * hertz * time)).astype(np.float32)
        levels[hertz] = float(np.sqrt(np.mean(over_telephone(tone)[4_000:] ** 2)))
    assert levels[1_000] > 20 * levels[100]
    assert levels[1_000] > 3 * levels[3_800]


def test_unknown_voice_and_language_are_said() -> None:
    """A typo in a vocabulary file is found by its message."""
    with closing(Voicebox()) as box, pytest.raises(SynthesisError, match="no voice nobody"):
        box.say("hello", dataclasses.replace(speaker_of("a", "en"), voice="nobody"))
    with pytest.raises(ValueError, match="no synthetic vocabulary for 'xx'"):
        roster("2024-01", "xx")
    with pytest.raises(ValueError, match="ask for 6"):
        roster("2024-01", "en", speakers=3)
