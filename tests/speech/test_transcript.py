"""What a transcript promises: nothing lost in JSON, and subtitle files that players accept."""

import json
import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from speech.quality import Quality
from speech.transcript import Intent, Segment, Transcript, TranscriptError, Word
from speech.understanding.conversation import measured


def words(text: str, start_s: float = 0.0, speaker: str | None = None, each_s: float = 0.5) -> tuple[Word, ...]:
    return tuple(
        Word(word, start_s + n * each_s, start_s + (n + 1) * each_s, 0.9, speaker)
        for n, word in enumerate(text.split())
    )


def transcript(*segments: Segment) -> Transcript:
    return Transcript(
        language="en",
        segments=segments,
        confidence=0.9,
        source_digest="d" * 64,
        duration_s=10.0,
        models={"asr": "en 3", "speaker": "1"},
        language_confidence=0.99,
    )


AGENT = Segment(
    words("please pay forty two dollars"),
    0.0,
    2.5,
    speaker="agent one",
    written="Please pay $42.",
    intent=Intent("pay", 0.8, {"amount": "$42"}),
)
CALLER = Segment(words("yes <b> & no", start_s=3.0), 3.0, 5.0, speaker="caller")


STORED = Path(__file__).with_name("schema_1") / "transcript.json"
QUALITY = Quality(10.0, -23.0, -3.0, 31.0, 0.0, 0.2, 3_400.0)


def test_every_field_crosses_json() -> None:
    """What one stage fills the next must find."""
    word = Word("forty", 0.0, 0.5, 0.9, speaker="a", channel=1, written="$42", redacted="PHONE")
    full = replace(
        transcript(Segment((word,), 0.0, 0.5, "a", 0.8, "$42", Intent("pay", 0.7, {"amount": "42"}), "de", 1)),
        **{"id": "t-2", "version": 2, "supersedes": "t-1", "source_key": "incoming/a.wav", "code_version": "0.1.0"},
        model_digests={"recognition": "e" * 64},
        degraded=("speakers",),
        quality=QUALITY,
        conversation=measured(transcript(AGENT, CALLER).segments, 10.0),
    )
    for kind, record in ((Transcript, full), (Segment, full.segments[0]), (Word, word)):
        unset = [part.name for part in fields(kind) if getattr(record, part.name) == part.default]
        assert unset in ([], ["schema_version"])
    assert Transcript.from_json(json.loads(json.dumps(full.to_json()))) == full


def test_a_transcript_of_schema_1_is_read_and_says_all_that_it_said() -> None:
    """Transcripts are kept for years, and programs go on reading what they read before."""
    stored = json.loads(STORED.read_bytes())
    now = Transcript.from_json(stored)
    assert (now.schema_version, now.version, now.id) == (2, 1, None)
    assert now.model_digests == {"recognition": stored["models"]["bundle"]}
    assert now.segments[0].intent == Intent("dial", 0.8, {"number": "712"})
    assert [word.speaker for word in now.words] == ["caller", "agent", "agent"]

    def kept(before: Any, after: Any) -> bool:
        if isinstance(before, dict):
            return all(kept(value, after[key]) for key, value in before.items())
        if isinstance(before, list):
            return all(kept(*pair) for pair in zip(before, after, strict=True))
        return bool(before == after)

    assert kept({**stored, "schema_version": 2}, now.to_json())
    assert Transcript.from_json(now.to_json()) == now


def test_json_holds_everything() -> None:
    """Review and streaming pass transcripts on as JSON; what it drops nobody gets back."""
    original = transcript(AGENT, CALLER, Segment((), 6.0, 7.0))
    assert Transcript.from_json(json.loads(json.dumps(original.to_json()))) == original
    assert original.text == "please pay forty two dollars yes <b> & no"
    assert {word.speaker for word in original.words} == {"agent one", "caller"}


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"schema_version": 3},
        {"schema_version": 2},
        {"schema_version": 1},
        {**transcript().to_json(), "schema_version": "2"},
        {**transcript().to_json(), "version": "2"},
        {**transcript().to_json(), "confidence": float("nan")},
        {**transcript().to_json(), "segments": [{"words": []}]},
        {"schema_version": 1, "segments": 3, "language": "en"},
        [],
        None,
    ],
)
def test_foreign_document_is_refused(row: object) -> None:
    """A newer schema read by older code would lose corrections without a word."""
    with pytest.raises(TranscriptError):
        Transcript.from_json(row)  # type: ignore[arg-type]


def test_segment_without_words_has_no_confidence() -> None:
    """Silence must not count as sure."""
    assert Segment((), 0.0, 1.0).score == 0.0
    assert AGENT.score == pytest.approx(0.9)


def test_srt_is_numbered_and_safe() -> None:
    """SubRip has no escapes: a tag in the text would be swallowed by the player."""
    blocks = transcript(AGENT, CALLER).to_srt().strip().split("\n\n")
    assert blocks[0] == "1\n00:00:00,000 --> 00:00:02,500\nPlease pay $42."
    assert blocks[1].startswith("2\n00:00:03,000 --> 00:00:05,000\n")
    assert "<" not in blocks[1]
    arrow = transcript(Segment(words("a --> b"), 0.0, 1.5)).to_srt()
    assert arrow.count("-->") == 1


def test_vtt_names_the_speaker_and_escapes() -> None:
    """WebVTT voice tags are how players show who speaks."""
    text = transcript(AGENT, CALLER).to_vtt()
    assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:00:02.500\n<v agent one>Please pay $42.</v>\n")
    assert "<v caller>yes &lt;b&gt; &amp; no</v>" in text


def test_long_speech_becomes_short_cues() -> None:
    """A subtitle of half a minute cannot be read."""
    monologue = Segment(words("extraordinary " * 100, each_s=0.3), 0.0, 30.0, written="far too long " * 30)
    text = transcript(monologue).to_srt()
    cues = re.findall(r"(\d\d):(\d\d):(\d\d),(\d\d\d) --> (\d\d):(\d\d):(\d\d),(\d\d\d)\n(.*?)\n(?:\n|$)", text, re.S)
    assert len(cues) >= 5
    for cue in cues:
        times = [int(value) for value in cue[:8]]
        seconds = (times[6] - times[2]) + 60 * (times[5] - times[1]) + (times[7] - times[3]) / 1000
        assert 0 < seconds <= 6.0
        assert all(len(line) <= 56 for line in cue[8].split("\n"))
    assert text.count("extraordinary") == 100


def test_cue_never_has_two_speakers() -> None:
    """Words carry their own speaker where turns overlap a segment."""
    mixed = Segment(words("i say", 0.0, "a") + words("you say", 1.0, "b"), 0.0, 2.0)
    assert re.findall(r"<v (\w)>(.*?)</v>", transcript(mixed).to_vtt()) == [("a", "i say"), ("b", "you say")]


def test_hours_are_written_out() -> None:
    """Rounding must not produce 00:59:60."""
    late = Segment((Word("end", 3599.9996, 3599.9999, 1.0),), 3599.9996, 3599.9999)
    assert "01:00:00,000 --> 01:00:00,001" in transcript(late).to_srt()


def test_ctm_and_rttm_have_their_columns() -> None:
    """Scorers split on white space."""
    both = transcript(CALLER, AGENT)
    ctm = [line.split() for line in both.to_ctm("my file").splitlines()]
    assert all(len(line) == 6 for line in ctm)
    right = Segment((Word("yes", 0.0, 0.5, 0.9, channel=1),), 0.0, 0.5)
    assert transcript(right).to_ctm("my file").split()[1] == "2"
    assert ctm[0] == ["my_file", "1", "0.000", "0.500", "please", "0.9000"]
    rttm = [line.split() for line in both.to_rttm("my file").splitlines()]
    assert all(len(line) == 10 for line in rttm)
    assert [(line[3], line[4], line[7]) for line in rttm] == [
        ("0.000", "2.500", "agent_one"),
        ("3.000", "2.000", "caller"),
    ]


def test_empty_transcript_is_a_document_too() -> None:
    """A silent recording is transcribed, as nothing."""
    silent = transcript()
    assert (silent.to_srt(), silent.to_vtt(), silent.to_ctm("x"), silent.to_rttm("x")) == ("", "WEBVTT\n", "", "")
    assert Transcript.from_json(silent.to_json()) == silent


def test_amazons_layout_is_that_of_its_documentation() -> None:
    """Who switches reads times and confidences as texts, and puts punctuation behind the word before it."""
    first = Segment(
        (
            Word("sorry", 4.87, 5.02, 0.9991),
            Word("about", 5.1, 5.2, 1.0),
            Word("that", 5.25, 5.64, 0.5, written="that."),
        ),
        4.87,
        5.64,
        speaker="B",
    )
    second = Segment(
        (Word("forty", 8.0, 8.4, 0.8, written="42"), Word("two", 8.4, 9.24, 0.8, written="")), 8, 9.24, "A"
    )
    said = Transcript(language="en", confidence=0.8, duration_s=10.0, source_digest="0" * 64, segments=(first, second))
    document = said.to_amazon("call-1")
    assert {key: document[key] for key in ("jobName", "accountId", "status")} == {
        "jobName": "call-1",
        "accountId": "",
        "status": "COMPLETED",
    }
    results = document["results"]
    assert list(results) == ["transcripts", "speaker_labels", "items", "audio_segments"]
    assert results["transcripts"] == [{"transcript": "sorry about that. 42"}]
    assert results["items"][0] == {
        "id": 0,
        "type": "pronunciation",
        "start_time": "4.87",
        "end_time": "5.02",
        "alternatives": [{"confidence": "0.999", "content": "sorry"}],
        "speaker_label": "spk_0",
    }
    assert results["items"][3] == {
        "id": 3,
        "type": "punctuation",
        "alternatives": [{"confidence": "0.0", "content": "."}],
        "speaker_label": "spk_0",
    }
    assert [(item["alternatives"][0]["content"], item.get("end_time")) for item in results["items"][4:]] == [
        ("42", "9.24")
    ]
    labels = results["speaker_labels"]
    assert labels["speakers"] == 2
    assert labels["segments"][1] == {
        "start_time": "8.0",
        "end_time": "9.24",
        "speaker_label": "spk_1",
        "items": [
            {"start_time": "8.0", "end_time": "8.4", "speaker_label": "spk_1"},
            {"start_time": "8.4", "end_time": "9.24", "speaker_label": "spk_1"},
        ],
    }
    assert results["audio_segments"][1] == {
        "id": 1,
        "transcript": "42",
        "start_time": "8.0",
        "end_time": "9.24",
        "speaker_label": "spk_1",
        "items": [4],
    }


def test_amazons_layout_of_two_channels_of_silence_and_of_a_script_without_spaces() -> None:
    def said(*segments: Segment, **more: object) -> dict[str, Any]:
        plain = {"language": "ja", "confidence": 0.8, "duration_s": 10.0, "source_digest": "0" * 64, **more}
        return Transcript(segments=segments, **plain).to_amazon("call")["results"]  # type: ignore[arg-type]

    silence = said()
    assert silence == {"transcripts": [{"transcript": ""}], "items": [], "audio_segments": []}
    words = [Word(text, n, n + 0.5, 0.9, channel=n) for n, text in enumerate(("電気", "を。"))]
    both = said(*(Segment((word,), word.start_s, word.end_s) for word in words), language_confidence=0.97)
    assert both["transcripts"] == [{"transcript": "電気を。"}]
    assert both["channel_labels"]["number_of_channels"] == 2
    assert [[item["id"] for item in channel["items"]] for channel in both["channel_labels"]["channels"]] == [
        [0],
        [1, 2],
    ]
    assert both["language_identification"] == [{"score": "0.97", "code": "ja"}]
    assert "speaker_labels" not in both
