"""What manifests promise: nothing lost, nobody in two sets."""

import datetime as dt
import json
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

from speech.corpus.manifest import (
    ManifestError,
    Utterance,
    age_band,
    assign_splits,
    audio_location,
    parse_date,
    quarter_of,
    quarter_title,
    read_manifest,
    split_of_speaker,
    write_manifest,
)

DAY = dt.date(2024, 5, 17)


def utterance(identity: str = "u1", speaker: str = "s1", **changes: object) -> Utterance:
    values: dict[str, object] = {
        "id": identity,
        "audio": f"audio/{identity}.flac",
        "duration_s": 1.25,
        "text": 'Grüße, "quoted"\tand more',
        "speaker": speaker,
        "language": "de",
        "domain": "call-centre",
        "recorded_at": DAY,
        **changes,
    }
    return Utterance(**values)  # type: ignore[arg-type]


class TestManifest:
    def test_what_is_written_is_read_back(self, tmp_path: Path) -> None:
        """A manifest is the only record between two steps; a field that does not survive is lost for good."""
        rows = [
            utterance(
                "a", attributes={"gender": "female", "age": "31"}, split="dev", digest="0" * 64, offset_s=2.5, channel=1
            ),
            utterance("b", duration_s=None),
        ]
        assert write_manifest(tmp_path / "m.jsonl", rows) == 2
        assert list(read_manifest(tmp_path / "m.jsonl")) == rows

    def test_quality_is_read_back(self, tmp_path: Path) -> None:
        """Quality gates run on the manifest, long after the audio was measured."""
        import numpy as np

        from speech.quality import measure

        quality = measure(np.sin(np.arange(16_000) / 10).astype(np.float32))
        write_manifest(tmp_path / "m.jsonl", [utterance(quality=quality)])
        assert next(read_manifest(tmp_path / "m.jsonl")).quality == quality

    def test_equal_rows_give_equal_bytes(self, tmp_path: Path) -> None:
        """Data versions are digests of bytes: the order of a dict must not look like new data."""
        write_manifest(tmp_path / "1", [utterance(attributes={"a": "1", "b": "2"})])
        write_manifest(tmp_path / "2", [utterance(attributes={"b": "2", "a": "1"})])
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_nemo_finds_its_keys(self, tmp_path: Path) -> None:
        """Training hands the file to NeMo as it is."""
        row = utterance().to_json()
        assert {"audio_filepath", "duration", "text", "offset"} <= set(row)

    def test_failed_write_keeps_the_old_manifest(self, tmp_path: Path) -> None:
        """A run that dies half-way must not leave half a corpus that looks like a whole one."""
        path = tmp_path / "m.jsonl"
        write_manifest(path, [utterance("old")])
        with pytest.raises(ManifestError, match="twice"):
            write_manifest(path, [utterance("new"), utterance("new")])
        with pytest.raises(ManifestError, match="JSON"):
            write_manifest(path, [utterance("new", duration_s=float("nan"))])
        assert [row.id for row in read_manifest(path)] == ["old"]
        assert os.listdir(tmp_path) == ["m.jsonl"]

    @pytest.mark.parametrize(
        ("line", "reason"),
        [
            (b"{", "not JSON"),
            (b"[1]", "not a JSON object"),
            (b"{}", "id is missing"),
            (b"\xff", "not UTF-8"),
            (json.dumps({**utterance().to_json(), "duration": -1}).encode(), "duration"),
            (json.dumps({**utterance().to_json(), "split": "training"}).encode(), "split"),
            (json.dumps({**utterance().to_json(), "recorded_at": "May"}).encode(), "not a date"),
            (json.dumps({**utterance().to_json(), "text": 5}).encode(), "text is not text"),
        ],
    )
    def test_bad_row_is_named(self, tmp_path: Path, line: bytes, reason: str) -> None:
        """Our own manifests hold no bad rows; one that does was damaged, and somebody has to find the place."""
        path = tmp_path / "m.jsonl"
        write_manifest(path, [utterance()])
        path.write_bytes(path.read_bytes() + line + b"\n")
        with pytest.raises(ManifestError, match=reason) as caught:
            list(read_manifest(path))
        assert (caught.value.path, caught.value.row) == (str(path), 2)
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)

    def test_missing_manifest_is_an_error(self, tmp_path: Path) -> None:
        """An empty corpus and a missing one are different things."""
        with pytest.raises(ManifestError, match="is missing"):
            list(read_manifest(tmp_path / "none.jsonl"))

    def test_audio_is_found_from_the_manifest(self, tmp_path: Path) -> None:
        """A published folder can be moved as a whole, so relative paths start at the manifest."""
        manifest = tmp_path / "m.jsonl"
        assert audio_location(utterance("a"), manifest) == str(tmp_path / "audio/a.flac")
        assert audio_location(utterance(audio="/x/a.wav"), manifest) == "/x/a.wav"
        assert audio_location(utterance(audio="s3://bucket/a.wav"), manifest) == "s3://bucket/a.wav"


class TestQuarters:
    def test_every_day_has_its_quarter(self) -> None:
        """The recording day alone decides which partition an utterance is in."""
        assert quarter_of(dt.date(2024, 4, 1)) == "2024-04"
        assert quarter_of(dt.date(2024, 6, 30)) == "2024-04"
        assert quarter_of(dt.date(2024, 12, 31)) == "2024-10"
        assert [quarter_title(f"2024-{month}") for month in ("01", "04", "07", "10")] == [
            "2024 Q1", "2024 Q2", "2024 Q3", "2024 Q4",
        ]  # fmt: skip

    def test_other_months_are_no_quarter(self) -> None:
        """A wrong key would silently name a partition that does not exist."""
        with pytest.raises(ValueError, match="not a quarter"):
            quarter_title("2024-05")


class TestSplits:
    def test_speaker_stays_whoever_else_is_there(self) -> None:
        """A test speaker who becomes a training speaker next quarter makes the score a lie."""
        alone = {row.speaker: row.split for n in range(300) for row in assign_splits([utterance("u", f"s{n}")])}
        together = assign_splits([utterance(f"u{n}", f"s{n}") for n in reversed(range(300))])
        assert {row.speaker: row.split for row in together} == alone

    def test_shares_hold_for_many_speakers(self) -> None:
        """Hashing is fair: with many speakers the sets have the sizes that were asked for."""
        counts = Counter(split_of_speaker(f"speaker {n}") for n in range(20_000))
        assert counts["dev"] / 20_000 == pytest.approx(0.1, abs=0.01)
        assert counts["test"] / 20_000 == pytest.approx(0.1, abs=0.01)

    def test_larger_dev_set_takes_no_test_speaker(self) -> None:
        """Changing one share must not spend the other set."""
        for n in range(500):
            if split_of_speaker(f"s{n}") == "test":
                assert split_of_speaker(f"s{n}", dev_share=0.3) == "test"

    def test_known_place_of_these_speakers(self) -> None:
        """Frozen benchmark sets outlive the code: a change of the hash would be a change of every test set."""
        assert [split_of_speaker(f"spk-en-{n:04d}") for n in range(1, 11)] == [
            "train", "train", "train", "test", "train", "train", "test", "train", "test", "train",
        ]  # fmt: skip

    def test_given_split_is_kept_for_the_whole_speaker(self) -> None:
        """Corpora that come with an official split keep it."""
        rows = assign_splits([utterance("a", "x", split="test"), utterance("b", "x")])
        assert [row.split for row in rows] == ["test", "test"]

    def test_speaker_in_two_sets_is_refused(self) -> None:
        """Such a source leaks its test set, and no rule of ours can repair that."""
        with pytest.raises(ManifestError, match="speaker x is in test and in train"):
            assign_splits([utterance("a", "x", split="test"), utterance("b", "x", split="train")])


def test_dates_mean_one_day_or_nothing() -> None:
    """A day that is read the other way round is in the wrong quarter."""
    for text in ("2024-05-31", "2024-05-31T23:59:59Z", "2024/5/31", "31.05.2024", "20240531", "2024-05-31 10:00:00"):
        assert parse_date(text) == dt.date(2024, 5, 31)
    for text in ("31/05/2024", "05/06/2024", "yesterday", "2024", "", "2024-13-01", "1717142400"):
        with pytest.raises(ValueError, match="not a date"):
            parse_date(text)


def test_every_age_has_one_band() -> None:
    """Bands without gaps or overlaps."""
    assert [age_band(years) for years in (0, 12, 12.9, 13, 17, 18, 29, 30, 44, 45, 59, 60, 101)] == [
        "0-12", "0-12", "0-12", "13-17", "13-17", "18-29", "18-29", "30-44", "30-44", "45-59", "45-59", "60+", "60+",
    ]  # fmt: skip
