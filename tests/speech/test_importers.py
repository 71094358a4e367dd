"""What importers promise: every row comes out, good or with its reason, and nothing is run."""

import datetime as dt
import gzip
import json
import os
from collections import Counter
from pathlib import Path

import pytest

from speech.corpus.importers import (
    IMPORTERS,
    Defaults,
    Imported,
    import_common_voice,
    import_kaldi,
    import_lhotse,
    import_nemo,
    import_table,
)
from speech.corpus.manifest import ManifestError, RejectedRow, Utterance, assign_splits, quarter_of, write_manifest
from tests.speech.test_manifest import utterance

DAY = dt.date(2024, 5, 17)
DEFAULTS = Defaults(language="en", domain="reading", recorded_at=DAY, speaker="somebody")


def sound(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"audio is not opened by importers")


def sorted_out(rows: object) -> tuple[list[Utterance], list[RejectedRow]]:
    everything: list[Imported] = list(rows)  # type: ignore[call-overload]
    return (
        [row for row in everything if isinstance(row, Utterance)],
        [row for row in everything if isinstance(row, RejectedRow)],
    )


class TestKaldi:
    @pytest.fixture
    def directory(self, tmp_path: Path) -> Path:
        sound(tmp_path, "audio/a.flac", "audio/b c.flac")
        (tmp_path / "wav.scp").write_text("u1 audio/a.flac\nu2 audio/b c.flac\n")
        (tmp_path / "text").write_text("u1 HELLO THERE\nu2 BYE\n")
        (tmp_path / "utt2spk").write_text("u1 s1\nu2 s2\n")
        (tmp_path / "spk2gender").write_text("s1 m\ns2 f\n")
        (tmp_path / "spk2age").write_text("s1 17\ns2 43\n")
        return tmp_path

    def test_attributes_of_the_speaker_reach_the_utterance(self, directory: Path) -> None:
        """Scores are sliced by them."""
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert bad == []
        assert good[0].attributes == {"gender": "male", "age": "17", "age_band": "13-17"}
        assert good[1].attributes == {"gender": "female", "age": "43", "age_band": "30-44"}
        assert good[1].audio == str(directory / "audio/b c.flac")
        assert (good[0].text, good[0].domain, good[0].recorded_at) == ("HELLO THERE", "reading", DAY)

    @pytest.mark.parametrize("entry", ["touch {p} |", "| cat", "-", "touch {p}|", "feats.ark:1234"])
    def test_commands_are_never_run(self, directory: Path, entry: str) -> None:
        """A corpus from elsewhere must not be able to run anything here."""
        (directory / "wav.scp").write_text(f"u1 {entry.format(p=directory / 'pwned')}\nu2 audio/b c.flac\n")
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [row.id for row in good] == ["u2"]
        assert [row.id for row in bad] == ["u1"]
        assert not (directory / "pwned").exists()

    def test_segments_carry_their_times(self, directory: Path) -> None:
        """One long recording with many transcripts: the times say which part is meant."""
        (directory / "wav.scp").write_text("r1 audio/a.flac\n")
        (directory / "segments").write_text("u1 r1 1.5 3.75\nu2 r1 4 -1\nu3 r1 9 8\nu4 nowhere 0 1\nu5 r1\n")
        (directory / "text").write_text("u1 HELLO\nu2 BYE\nu3 A\nu4 B\nu5 C\nu6 D\n")
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [(row.id, row.offset_s, row.duration_s) for row in good] == [("u1", 1.5, 2.25), ("u2", 4.0, None)]
        assert [row.id for row in bad] == ["u3", "u4", "u5", "u6"]

    def test_every_row_comes_out(self, directory: Path) -> None:
        """In = out + rejected: a row that is silently dropped is a hole nobody looks for."""
        (directory / "wav.scp").write_bytes(
            b"\xef\xbb\xbfu1 audio/a.flac\r\nu1 audio/a.flac\r\nu2 audio/gone.flac\r\nu3 audio/a.flac\r\nlonely\r\n"
            b"u\xff audio/a.flac\r\n\r\nu5 audio\x00/a.flac\r\n"
        )
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [row.id for row in good] == ["u1"]
        reasons = {row.row: row.reason for row in bad}
        assert set(reasons) == {2, 3, 4, 5, 6, 8}
        assert "twice" in reasons[2]
        assert "no audio file" in reasons[3]
        assert "no transcript" in reasons[4]
        assert "not UTF-8" in reasons[6]
        assert "NUL" in reasons[8]

    def test_transcript_without_audio_is_reported(self, directory: Path) -> None:
        """Half of a pair is a fault of the export."""
        (directory / "text").write_text("u1 HELLO\nu2 BYE\nu9 LOST\n")
        _, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [(row.id, row.row) for row in bad] == [("u9", 3)]

    def test_what_is_no_kaldi_directory_is_an_error(self, tmp_path: Path) -> None:
        """A mistyped path is not an empty corpus."""
        with pytest.raises(ManifestError, match=r"wav\.scp"):
            list(import_kaldi(tmp_path, DEFAULTS))
        with pytest.raises(ManifestError, match="not a folder"):
            list(import_kaldi(tmp_path / "none", DEFAULTS))

    def test_real_kaldi_directory_comes_in_whole(self) -> None:
        """speechocean762: 1,200 utterances of 60 speakers, every one with audio, age and gender."""
        root = os.environ.get("SOUNDSTAGE_REAL_DATA")
        if not root:
            pytest.skip("SOUNDSTAGE_REAL_DATA is not set")
        good, bad = sorted_out(import_kaldi(Path(root) / "speechocean762", DEFAULTS))
        assert bad == []
        assert len(good) == 1200
        assert len({row.speaker for row in good}) == 60
        assert all({"gender", "age", "age_band"} <= set(row.attributes) for row in good)
        splits = Counter({row.speaker: row.split for row in assign_splits(good)}.values())
        assert min(splits["dev"], splits["test"]) >= 2


class TestTable:
    def table(self, folder: Path, content: str | bytes, name: str = "transcripts.tsv") -> Path:
        sound(folder, "a.wav", "b.wav", "sub/a.wav")
        data = content.encode() if isinstance(content, str) else content
        (folder / name).write_bytes(data)
        return folder / name

    def test_any_usual_column_name_is_understood(self, tmp_path: Path) -> None:
        """Nobody renames columns to try a tool."""
        self.table(
            tmp_path, "client_id\tFile\tSentence\tLocale\tDate\tSex\tage\nx\ta.wav\thi\ten-US\t2024-08-01\tF\t12\n"
        )
        (row,), bad = sorted_out(import_table(tmp_path, Defaults("de")))
        assert bad == []
        assert (row.id, row.speaker, row.text, row.language) == ("a", "x", "hi", "en")
        assert quarter_of(row.recorded_at) == "2024-07"
        assert row.attributes == {"gender": "female", "age": "12", "age_band": "0-12", "locale": "en-US"}

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ("gone.wav\thi\t2024-01-01", "no audio file"),
            ("a.wav\t\t2024-01-01", "no transcript"),
            ("\thi\t2024-01-01", "no audio path"),
            ("a.wav\thi", "2 columns where the header has 3"),
            ("a.wav\thi\t2024-01-01\tmore", "4 columns where the header has 3"),
            ("a.wav\thi\t05/06/2024", "not a date"),
            ("a.wav\thi\t2024-02-30", "not a date"),
            ("a.wav\thi\t0024-02-20", "before there were recordings"),
            ("b.wav\thi\t2024-01-01", "twice"),
            ("rm -rf x |\thi\t2024-01-01", "never run"),
            ("~/a.wav\thi\t2024-01-01", "no audio file"),
            ("$HOME/a.wav\thi\t2024-01-01", "no audio file"),
        ],
    )
    def test_bad_row_is_rejected_and_the_others_come_in(self, tmp_path: Path, row: str, reason: str) -> None:
        """One broken line in a quarter of a million must cost one line."""
        path = self.table(tmp_path, f"path\ttext\trecorded_at\nb.wav\tfirst\t2024-01-01\n{row}\nsub/a.wav\tlast\t\n")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert [row.text for row in good] == ["first", "last"]
        assert [(row.source, row.row) for row in bad] == [(str(path), 3)]
        assert reason in bad[0].reason

    def test_same_name_in_two_folders_is_two_utterances(self, tmp_path: Path) -> None:
        """Folders per speaker repeat their file names."""
        path = self.table(tmp_path, "path\ttext\na.wav\tone\nsub/a.wav\ttwo\n")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert bad == []
        assert [row.id for row in good] == ["a", "sub-a"]

    def test_ids_are_safe_as_file_names(self, tmp_path: Path) -> None:
        """Later steps write <id>.flac; an id must not climb out of their folder."""
        path = self.table(tmp_path, f"id\tpath\ttext\n../../etc/x\ta.wav\thi\n{'é' * 300}\tb.wav\tho\n")
        good, _ = sorted_out(import_table(path, DEFAULTS))
        assert good[0].id == "etc-x"
        assert len(good[1].id.encode()) <= 180

    def test_missing_speaker_or_date_is_said_per_row(self, tmp_path: Path) -> None:
        """Guessing one speaker for all would put everything into one set."""
        path = self.table(tmp_path, "path\ttext\na.wav\thi\n")
        _, bad = sorted_out(import_table(path, Defaults("en", recorded_at=DAY)))
        assert "no speaker" in bad[0].reason
        _, bad = sorted_out(import_table(path, Defaults("en", speaker="x")))
        assert "no recording date" in bad[0].reason

    def test_windows_files_are_read(self, tmp_path: Path) -> None:
        """BOM, CRLF and semicolons are what spreadsheets write."""
        path = self.table(tmp_path, b'\xef\xbb\xbfpath;text\r\na.wav;"hi; you"\r\n', "metadata.csv")
        (row,), bad = sorted_out(import_table(path, DEFAULTS))
        assert bad == []
        assert row.text == "hi; you"

    def test_quoted_line_break_is_one_row(self, tmp_path: Path) -> None:
        """CSV allows it, and spreadsheets produce it."""
        path = self.table(tmp_path, 'path,text\na.wav,"one\ntwo ""three"""\nb.wav,plain\n', "metadata.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert bad == []
        assert [row.text for row in good] == ['one\ntwo "three"', "plain"]

    def test_open_quote_costs_one_row(self, tmp_path: Path) -> None:
        """A stray quote must not swallow the rest of the file."""
        rows = "".join(f"sub/{n}.wav,text\n" for n in range(50))
        sound(tmp_path, *(f"sub/{n}.wav" for n in range(50)))
        path = self.table(tmp_path, f'path,text\na.wav,"never closed\n{rows}', "metadata.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert len(good) == 50
        assert [(row.row, row.reason) for row in bad] == [(2, "a quote is opened and not closed")]

    def test_quotes_in_tsv_are_text(self, tmp_path: Path) -> None:
        """TSV has no quoting; an apostrophe or inch mark must not join rows."""
        path = self.table(tmp_path, 'path\ttext\na.wav\t"open\nb.wav\t"he said ""hi"""\n')
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert bad == []
        assert [row.text for row in good] == ['"open', 'he said "hi"']

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "no column path"),
            (b"path\tspeaker\n", "no column text"),
            (b"path\tfile\ttext\n", "path and file for the same thing"),
            ("path\ttext\n".encode("utf-16"), "UTF-16"),
        ],
    )
    def test_unusable_table_is_an_error(self, tmp_path: Path, content: bytes, reason: str) -> None:
        """Where no row can be read there is nothing to quarantine, only something to fix."""
        with pytest.raises(ManifestError, match=reason):
            list(import_table(self.table(tmp_path, content), DEFAULTS))

    def test_folder_without_table_is_an_error(self, tmp_path: Path) -> None:
        """The message says which names are looked for."""
        with pytest.raises(ManifestError, match=r"transcripts\.tsv"):
            list(import_table(tmp_path, DEFAULTS))

    def test_import_streams(self, tmp_path: Path) -> None:
        """The first utterance comes before the file ends: a fault at the end is met only there."""
        path = self.table(tmp_path, "path\ttext\na.wav\thi\nb.wav\n")
        rows = import_table(path, DEFAULTS)
        assert isinstance(next(rows), Utterance)
        assert isinstance(next(rows), RejectedRow)


class TestOtherShapes:
    def test_common_voice(self, tmp_path: Path) -> None:
        """Recordings are in clips, ages are decades in words."""
        sound(tmp_path, "clips/cv_1.mp3")
        (tmp_path / "validated.tsv").write_text(
            "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes\tage\tgender\taccents\tlocale\n"
            "abc\tcv_1.mp3\t9\tHallo Welt.\t\t2\ttwenties\tfemale_feminine\t\tde\n"
            "abc\tcv_2.mp3\t9\tHallo Welt.\t\t2\ttwenties\tfemale_feminine\t\tde\n"
        )
        (row,), (lost,) = sorted_out(import_common_voice(tmp_path / "validated.tsv", DEFAULTS))
        assert (row.speaker, row.language, row.domain, row.id) == ("abc", "de", "reading", "cv_1")
        assert row.attributes == {"gender": "female", "age_band": "18-29"}
        assert "cv_2.mp3" in lost.reason

    def test_nemo(self, tmp_path: Path) -> None:
        """Bad lines of any sort are rows like others."""
        sound(tmp_path, "a.wav", "b.wav")
        lines = [
            '{"audio_filepath": "a.wav", "duration": 1.5, "text": "hi", "offset": 0.5, "speaker": 7, "lang": "en"}',
            "not json",
            '{"audio_filepath": "b.wav", "duration": "NaN", "text": "hi"}',
            '{"audio_filepath": ["b.wav"], "text": "hi"}',
            '{"audio_filepath": "b.wav", "duration": 1, "text": "hi\\u0000"}',
            '{"audio_filepath": "b.wav", "duration": 1, "text": "\\ud800"}',
            '{"audio_filepath": "b.wav", "duration": 1, "text": null}',
            '{"audio_filepath": "b.wav", "duration": 1, "text": "ok", "attributes": 3}',
        ]
        (tmp_path / "m.json").write_text("\n".join(lines))
        (row,), bad = sorted_out(import_nemo(tmp_path / "m.json", DEFAULTS))
        assert (row.duration_s, row.offset_s, row.speaker) == (1.5, 0.5, "7")
        assert [rejected.row for rejected in bad] == [2, 3, 4, 5, 6, 7, 8]

    def test_own_manifest_comes_back_complete_through_nemo(self, tmp_path: Path) -> None:
        """A corpus prepared by one installation can be the source of another."""
        sound(tmp_path, "audio/u1.flac")
        row = utterance(attributes={"accent": "scottish", "station": "7"}, split="test", digest="d" * 64)
        write_manifest(tmp_path / "m.jsonl", [row])
        (back,), _ = sorted_out(import_nemo(tmp_path / "m.jsonl", DEFAULTS))
        assert {**back.to_json(), "audio_filepath": row.audio} == row.to_json()

    def test_lhotse(self, tmp_path: Path) -> None:
        """Recordings that would be run, or mix two people's channels, are refused."""
        sound(tmp_path, "a.wav")

        def recording(name: str, kind: str, channels: list[int]) -> str:
            return json.dumps({"id": name, "sources": [{"type": kind, "channels": channels, "source": "a.wav"}]})

        def supervision(number: int, recording_id: str, **more: object) -> str:
            values = {
                "start": number,
                "duration": 2.0,
                "channel": 0,
                "text": "hi",
                "speaker": "x",
                "language": "English",
            }
            return json.dumps({"id": f"s{number}", "recording_id": recording_id, **values, **more})

        kinds = [("r1", "file", [0]), ("r2", "command", [0]), ("r3", "file", [0, 1])]
        with gzip.open(tmp_path / "x_recordings_all.jsonl.gz", "wt") as out:
            out.write("\n".join(recording(*kind) for kind in kinds))
        (tmp_path / "x_supervisions_all.jsonl").write_text(
            "\n".join(
                [
                    supervision(0, "r1", custom={"domain": "calls", "date": "2024-02-03"}, gender="F"),
                    supervision(1, "r2"),
                    supervision(2, "r3"),
                    supervision(3, "r9"),
                    supervision(4, "r1", duration=-2),
                ]
            )
        )
        (row,), bad = sorted_out(import_lhotse(tmp_path, DEFAULTS))
        assert (row.language, row.domain, row.recorded_at) == ("en", "calls", dt.date(2024, 2, 3))
        assert row.attributes == {"gender": "female"}
        assert [rejected.id for rejected in bad] == ["s1", "s2", "s3", "s4"]

    def test_lhotse_itself_writes_what_is_read(self, tmp_path: Path) -> None:
        """The real library is the format's definition."""
        import lhotse
        import numpy as np
        import soundfile

        soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.float32), 16_000)
        recordings = lhotse.RecordingSet.from_recordings([lhotse.Recording.from_file(tmp_path / "a.wav")])
        supervisions = lhotse.SupervisionSet.from_segments(
            [lhotse.SupervisionSegment("s", "a", 0.25, 0.5, text="hi", speaker="x", language="en")]
        )
        recordings.to_file(tmp_path / "t_recordings.jsonl.gz")
        supervisions.to_file(tmp_path / "t_supervisions.jsonl.gz")
        (row,), bad = sorted_out(import_lhotse(tmp_path / "t_supervisions.jsonl.gz", DEFAULTS))
        assert bad == []
        assert (row.offset_s, row.duration_s, row.audio) == (0.25, 0.5, str(tmp_path / "a.wav"))

    def test_damaged_gzip_is_an_error_with_its_file(self, tmp_path: Path) -> None:
        """An upload that broke off must not look like a short corpus."""
        whole = gzip.compress(b'{"audio_filepath": "a.wav"}\n' * 10_000)
        (tmp_path / "m.jsonl.gz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ManifestError, match="cannot be read"):
            list(import_nemo(tmp_path / "m.jsonl.gz", DEFAULTS))

    def test_every_importer_has_a_name_for_the_settings(self) -> None:
        """Sources choose their importer by these names."""
        assert set(IMPORTERS) == {"kaldi", "table", "nemo", "lhotse", "common_voice"}
