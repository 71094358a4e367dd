"""From rows to normalised utterances: each row is kept or quarantined with its reason, whatever it holds."""

import datetime as dt
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.audio.decode import decode, write_flac_chunks
from speech.corpus.manifest import Utterance, read_manifest
from speech.corpus.normalize import MANIFEST, SOURCE_DIGEST, Sorted, normalize_audio, read_quarantine, select_utterances
from speech.text import normalize


def row(name: str, audio: Path | str, **changes: object) -> Utterance:
    plain = Utterance(
        id=name,
        audio=str(audio),
        duration_s=None,
        text="hello",
        speaker="s",
        language="en",
        domain="unknown",
        recorded_at=dt.date(2024, 1, 15),
        digest="source",
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def tone(path: Path, seconds: float, hz: float = 440.0) -> Path:
    time = np.arange(round(seconds * 16_000)) / 16_000
    write_flac_chunks([(0.3 * np.sin(2 * np.pi * hz * time)).astype(np.float32)], path)
    return path


def test_every_real_file_is_decoded_or_quarantined_with_a_reason(tmp_path: Path) -> None:
    """Broken, lying and foreign files are normal input: nothing is lost and nothing crashes."""
    data = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not data:
        pytest.skip("SOUNDSTAGE_REAL_DATA is not set")
    files = sorted(p for p in (Path(data) / "formats").rglob("*") if p.is_file() and p.suffix != ".md")
    rows = [row(f"file-{number:03d}", path) for number, path in enumerate(files)]
    outcome = normalize_audio(rows, tmp_path)
    assert len(rows) == len(outcome.kept) + len(outcome.quarantined)
    assert len(outcome.kept) > 80
    assert len(outcome.quarantined) > 30
    assert all(bad.code and bad.reason for bad in outcome.quarantined)
    for kept in outcome.kept:
        assert decode(tmp_path / kept.audio).duration_s == pytest.approx(kept.duration_s, abs=1e-3)
        assert kept.quality is not None


def test_segments_of_one_file_are_cut_where_they_lie(tmp_path: Path) -> None:
    source = tmp_path / "long.flac"
    time = np.arange(40 * 16_000) / 16_000
    write_flac_chunks([(0.3 * np.sin(2 * np.pi * np.where(time < 31, 300, 900) * time)).astype(np.float32)], source)
    rows = [
        row("before", source, offset_s=1.0, duration_s=2.0),
        row("across", source, offset_s=29.5, duration_s=3.0),  # over the boundary of two decoded chunks
        row("after", source, offset_s=33.0, duration_s=1.5),
        row("rounded", source, offset_s=38.0, duration_s=2.05),  # ends 50 ms after the file: annotation tools round
        row("outside", source, offset_s=39.0, duration_s=5.0),
    ]
    outcome = normalize_audio(rows, tmp_path)
    assert {kept.id: round(kept.duration_s or 0, 2) for kept in outcome.kept} == {
        "before": 2.0,
        "across": 3.0,
        "after": 1.5,
        "rounded": 2.0,
    }
    assert [bad.code for bad in outcome.quarantined] == ["segment-outside"]
    after = next(kept for kept in outcome.kept if kept.id == "after")
    spectrum = np.abs(np.fft.rfft(decode(tmp_path / after.audio).samples))
    assert np.argmax(spectrum) / (after.duration_s or 1) == pytest.approx(900, abs=2)


def test_a_lone_segment_at_the_beginning_is_cut_too(tmp_path: Path) -> None:
    """Five seconds of transcript must not be learnt against a minute of audio."""
    rows = [
        row("part", tone(tmp_path / "minute.flac", 60.0), duration_s=5.0),
        row("whole", tone(tmp_path / "whole.flac", 2.0)),
        row("rounded", tone(tmp_path / "rounded.flac", 2.004), duration_s=2.0),  # a duration, not a cut
        row("lying", tone(tmp_path / "lying.flac", 2.0), duration_s=9.0),
    ]
    outcome = normalize_audio(rows, tmp_path)
    assert {kept.id: kept.duration_s for kept in outcome.kept} == {"part": 5.0, "whole": 2.0, "rounded": 2.004}
    assert [(bad.id, bad.code) for bad in outcome.quarantined] == [("lying", "segment-outside")]


def test_a_segment_without_a_sample_costs_no_other(tmp_path: Path) -> None:
    source = tone(tmp_path / "long.flac", 12.0)
    rows = [
        row("first", source, offset_s=0.0, duration_s=5.0),
        row("nothing", source, offset_s=10.0, duration_s=0.00002),
        row("last", source, offset_s=6.0, duration_s=3.0),
    ]
    outcome = normalize_audio(rows, tmp_path)
    assert [kept.id for kept in outcome.kept] == ["first", "last"]
    assert [(bad.id, bad.code) for bad in outcome.quarantined] == [("nothing", "segment-empty")]


def test_a_file_that_turns_out_truncated_leaves_no_audio_of_its_segments(tmp_path: Path) -> None:
    """That a file breaks off shows at its end, when its first segments are written: audio without a row is nobody's."""
    source = tone(tmp_path / "long.flac", 100.0)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 3 // 4])
    rows = [
        row("early", source, offset_s=1.0, duration_s=2.0),
        row("late", source, offset_s=90.0, duration_s=2.0),
        row("sound", tone(tmp_path / "sound.flac", 1.0)),
    ]
    outcome = normalize_audio(rows, tmp_path / "out")
    assert {bad.id for bad in outcome.quarantined} == {"early", "late"}
    assert [kept.id for kept in outcome.kept] == ["sound"]
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out" / "audio").iterdir()}
    assert written == {kept.audio for kept in outcome.kept}


def stereo(path: Path, seconds: float, *hz: float) -> Path:
    time = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(path, np.stack([0.3 * np.sin(2 * np.pi * f * time) for f in hz], 1), 16_000)
    return path


def pitch(path: Path) -> float:
    samples = decode(path).samples
    return float(np.argmax(np.abs(np.fft.rfft(samples))) * 16_000 / len(samples))


def test_an_utterance_holds_its_own_channel_and_no_other(tmp_path: Path) -> None:
    """Of a call the parties speak at the same time: mixed, each transcript would be learnt against both."""
    call = stereo(tmp_path / "call.wav", 4.0, 400, 1000)
    rows = [
        row("agent", call, channel=0, duration_s=4.0),
        row("agent-2", call, channel=0, offset_s=2.0, duration_s=1.0),
        row("caller", call, channel=1, offset_s=0.5, duration_s=2.0),
        row("both", call, offset_s=1.0, duration_s=1.0),
    ]
    outcome = normalize_audio(rows, tmp_path)
    assert outcome.quarantined == ()
    found = {kept.id: (kept.channel, kept.duration_s, round(pitch(tmp_path / kept.audio))) for kept in outcome.kept}
    assert found.pop("both")[:2] == (None, 1.0)
    assert found == {"agent": (None, 4.0, 400), "agent-2": (None, 1.0, 400), "caller": (None, 2.0, 1000)}


def test_where_one_channel_is_not_there_none_of_the_file_is_cut(tmp_path: Path) -> None:
    """Whoever counts from 1 means the first party by 1: as it stands, half the rows would hold the other's words."""
    call = stereo(tmp_path / "call.wav", 2.0, 400, 1000)
    rows = [row("agent", call, channel=1), row("caller", call, channel=2), row("both", call)]
    outcome = normalize_audio(rows, tmp_path)
    assert [kept.id for kept in outcome.kept] == ["both"]
    assert [(bad.id, bad.code) for bad in outcome.quarantined] == [
        ("agent", "no-such-channel"),
        ("caller", "no-such-channel"),
    ]


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("b", tone(tmp_path / "b.flac", 1.0)), row("a", tone(tmp_path / "a.flac", 2.0, 500))]
    for folder, order in (("one", rows), ("two", rows[::-1])):
        (tmp_path / folder).mkdir()
        normalize_audio(order, tmp_path / folder).write(tmp_path / folder)
    assert (tmp_path / "one" / MANIFEST).read_bytes() == (tmp_path / "two" / MANIFEST).read_bytes()


def test_rows_that_cannot_be_trained_on_are_quarantined_each_for_its_reason(tmp_path: Path) -> None:
    good = row("good", "x.flac", duration_s=1.0, digest="1")
    bad = [
        row("short", "x.flac", duration_s=0.05, digest="2"),
        row("long", "x.flac", duration_s=3_600.0, digest="3"),
        row("wordless", "x.flac", duration_s=1.0, digest="4", text=" ... "),
        row("foreign", "x.flac", duration_s=1.0, digest="5", text="добрый день"),
        row("twin", "x.flac", duration_s=1.0, digest="1"),
    ]
    outcome = select_utterances([good, *bad], "en")
    assert [kept.id for kept in outcome.kept] == ["good"]
    assert {q.id: q.code for q in outcome.quarantined} == {
        "short": "duration",
        "long": "duration",
        "wordless": "no-words",
        "foreign": "charset",
        "twin": "duplicate",
    }


def test_rows_that_say_different_things_of_one_audio_are_all_out() -> None:
    """By the order of their ids the wrong one would be learnt as often as the right one."""
    rows = [
        row("a", "x.flac", duration_s=1.0, digest="1", text="Good morning.", speaker="anna"),
        row("b", "x.flac", duration_s=1.0, digest="1", text="good evening", speaker="anna"),
        row("c", "x.flac", duration_s=1.0, digest="1", text="good morning", speaker="anna"),
        row("d", "x.flac", duration_s=1.0, digest="2", text="see you", speaker="anna"),
        row("e", "x.flac", duration_s=1.0, digest="2", text="See you!", speaker="ben"),
        row("f", "x.flac", duration_s=1.0, digest="3", text="bye", speaker="anna"),
        row("g", "x.flac", duration_s=1.0, digest="3", text="Bye.", speaker="anna"),
        row("h", "x.flac", duration_s=1.0, digest="3", text="...", speaker="anna"),
    ]
    outcome = select_utterances(rows, "en")
    assert [kept.id for kept in outcome.kept] == ["f"]
    assert [(q.id, q.code, q.reason.split(",")[0].split(":")[0]) for q in outcome.quarantined] == [
        ("a", "contradiction", "the same audio is in the partition as 'b' with another transcript"),
        ("b", "contradiction", "the same audio is in the partition as 'a'"),
        ("c", "contradiction", "the same audio is in the partition as 'b' with another transcript"),
        ("d", "contradiction", "the same audio is in the partition as 'e' with another speaker"),
        ("e", "contradiction", "the same audio is in the partition as 'd' with another speaker"),
        ("g", "duplicate", "the same audio is already in the partition as 'f'"),
        ("h", "no-words", outcome.quarantined[-1].reason.split(":")[0]),
    ]
    assert "as 'a', 'c' with another transcript, and which is right is not known" in outcome.quarantined[1].reason
    assert select_utterances(rows[::-1], "en") == outcome


def test_markers_are_taken_out_and_kept_apart() -> None:
    """`[noise]` was not said: as a word it would be learnt."""
    rows = [
        row("marked", "x.flac", duration_s=1.0, digest="1", text="[laughter] yeah <unk> i (2) know (inaudible)"),
        row("nothing", "x.flac", duration_s=1.0, digest="2", text="[noise]"),
        row("plain", "x.flac", duration_s=1.0, digest="3", text="plain (really) words"),
    ]
    outcome = select_utterances(rows, "en")
    assert [(kept.text, kept.attributes.get("markers")) for kept in outcome.kept] == [
        ("yeah i (2) know", "[laughter] <unk> (inaudible)"),
        ("plain (really) words", None),
    ]
    (refused,) = outcome.quarantined
    assert (refused.code, "[noise]" in refused.reason) == ("no-words", True)


@pytest.mark.parametrize(
    ("language", "written", "said", "found"),
    [
        ("en", "[laughter-yeah] i know [laughter]", "yeah i know", "[laughter]"),
        ("en", "{breath} so ( laughs) *coughs* {F uh}", "so laughs f uh", "{breath} *coughs*"),
        ("ja", "［音楽］こんにちは【拍手】（笑）", "こんにちは", "［音楽］ 【拍手】 （笑）"),
        ("ja", "＜ノイズ＞はい", "はい", "＜ノイズ＞"),
        ("ko", "o/ 그래 (KTX)/(케이티엑스) n/", "그래 케이티엑스", "o/ (KTX)/ n/"),
        ("en", "n/a or w/ love (yes)/no", "n a or w love yes no", ""),
    ],
)
def test_markers_of_other_corpora_are_markers(language: str, written: str, said: str, found: str) -> None:
    """Of a word that was said laughing the word stays; of one that is written twice only what was said."""
    (kept,) = select_utterances([row("a", "x.flac", duration_s=1.0, text=written)], language).kept
    assert (normalize(kept.text, language), kept.attributes.get("markers", "")) == (said, found)


def test_an_utterance_that_nobody_transcribed_is_refused() -> None:
    """NIST's STM files say so in words, which would be learnt and scored."""
    rows = [row("a", "x.flac", duration_s=1.0, text="ignore_time_segment_in_scoring")]
    assert [refused.code for refused in select_utterances(rows, "en").quarantined] == ["no-words"]


def test_which_markers_there_are_is_the_corpus_s_to_say() -> None:
    rows = [row("a", "x.flac", duration_s=1.0, digest="1", text="well %uh [the] dog")]
    (kept,) = select_utterances(rows, "en", markers=(r"%\w+",)).kept
    assert (kept.text, kept.attributes["markers"]) == ("well [the] dog", "%uh")
    (kept,) = select_utterances([row("a", "x.flac", duration_s=1.0, text="[the] dog")], "en", markers=()).kept
    assert kept.text == "[the] dog"


def test_a_transcript_that_cannot_be_read_aloud_is_refused_with_its_signs() -> None:
    (refused,) = select_utterances([row("a", "x.flac", duration_s=1.0, text="siehe § 5")], "de").quarantined
    assert (refused.code, "§" in refused.reason) == ("charset", True)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    rows = [row("a", tone(tmp_path / "a.flac", 1.0)), row("gone", tmp_path / "gone.wav")]
    outcome = normalize_audio(rows, tmp_path)
    Sorted(outcome.kept, outcome.quarantined).write(tmp_path)
    (kept,) = read_manifest(tmp_path / MANIFEST)
    assert kept == outcome.kept[0]
    assert kept.attributes[SOURCE_DIGEST] == "source"
    assert read_quarantine(tmp_path) == list(outcome.quarantined)
