"""What importers promise: every row comes out, good or with its reason, and nothing is run."""

import datetime as dt
import gzip
import json
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speech.corpus.importers import IMPORTERS, Defaults, Imported
from speech.corpus.importers.kaldi import import_kaldi
from speech.corpus.importers.lhotse import import_lhotse
from speech.corpus.importers.nemo import import_nemo
from speech.corpus.importers.tables import import_common_voice, import_table
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


def test_a_refused_row_says_where_it_belongs_as_far_as_it_is_known(tmp_path: Path) -> None:
    """So that it costs no other language and no other quarter."""
    known = Defaults(language="en-US", recorded_at=DAY, speaker="somebody")
    (tmp_path / "t.tsv").write_text(
        "path\ttext\tdate\tlang\na.wav\t\t2024-10-01\tGerman\nb.wav\t\t\t\ntorn\nc.wav\t\t?\t?\n"
    )
    lines = [{"audio": "a.wav", "date": "2024-10-01", "lang": "de"}, {"audio": "a.wav"}, {"date": "?", "lang": "?"}]
    (tmp_path / "n.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    (tmp_path / "wav.scp").write_text("a sox a.wav |\nb b.wav |\nc |\n")
    (tmp_path / "text").write_text("a HELLO\n")
    (tmp_path / "utt2lang").write_text("a de\nc ?\n")
    (tmp_path / "utt2date").write_text("a 2024-10-01\nc ?\n")
    (tmp_path / "recordings.jsonl").write_text("")
    spoken = [
        {"id": "a", "language": "de", "custom": {"recorded_at": "2024-10-01"}, "recording_id": "r"},
        {"id": "b", "recording_id": "r"},
        {"id": "c", "language": "?", "custom": {"recorded_at": "?"}, "recording_id": "r"},
    ]
    (tmp_path / "supervisions.jsonl").write_text("\n".join(json.dumps(line) for line in spoken))
    own, of_source, unknown = ("2024-10", "de"), ("2024-04", "en"), ("", "")
    for rows, expected in (
        (import_table(tmp_path / "t.tsv", known), [own, of_source, of_source, unknown]),
        (import_nemo(tmp_path / "n.jsonl", known), [own, of_source, unknown]),
        (import_kaldi(tmp_path, known), [own, of_source, unknown]),
        (import_lhotse(tmp_path / "supervisions.jsonl", known), [own, of_source, unknown]),
        (import_table(tmp_path / "t.tsv", Defaults()), [own, unknown, unknown, unknown]),
    ):
        good, bad = sorted_out(rows)
        assert (good, [(row.quarter, row.language) for row in bad]) == ([], expected)


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

    def test_the_channel_column_of_segments_reaches_the_utterance(self, directory: Path) -> None:
        """Kaldi's own tool counts it from 0 and takes nothing else."""
        (directory / "wav.scp").write_text("r1 audio/a.flac\n")
        (directory / "segments").write_text("u1 r1 0 2 0\nu2 r1 0.5 -1 1\nu3 r1 0 2 -1\n")
        (directory / "text").write_text("u1 HELLO\nu2 BYE\nu3 NO\n")
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [(row.id, row.channel, row.duration_s) for row in good] == [("u1", 0, 2.0), ("u2", 1, None)]
        assert [row.id for row in bad] == ["u3"]

    @pytest.mark.parametrize(
        ("first", "second"), [("A", "B"), ("1", "2"), ("0", "1")], ids=["letters", "from one", "from zero"]
    )
    def test_a_recording_is_the_side_that_reco2file_and_channel_says(
        self, directory: Path, first: str, second: str
    ) -> None:
        """Of a stereo file its channel; a file with one channel was cut before, whichever side it is."""
        soundfile.write(directory / "audio/call.wav", np.zeros((800, 2)), 8_000)
        soundfile.write(directory / "audio/side.wav", np.zeros(800), 8_000)
        (directory / "wav.scp").write_text("r-A audio/call.wav\nr-B audio/call.wav\nother-B audio/side.wav\n")
        (directory / "reco2file_and_channel").write_text(f"r-A r {first}\nr-B r {second}\nother-B other {second}\n")
        (directory / "segments").write_text("u1 r-A 0 0.1\nu2 r-B 0 0.1\nu3 other-B 0 0.1\n")
        (directory / "text").write_text("u1 HELLO\nu2 BYE\nu3 YES\n")
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert bad == []
        assert [(row.id, row.channel) for row in good] == [("u1", 0), ("u2", 1), ("u3", None)]

    def test_paths_may_be_relative_to_where_the_recipe_runs(self, directory: Path) -> None:
        """Kaldi's scripts write them so: wav.scp is in data/train, and its paths begin at the recipe's folder."""
        (directory / "wav.scp").write_text("u1 corpus/a.flac\nu2 /elsewhere/b.flac\n")
        elsewhere = DEFAULTS.model_copy(update={"audio_root": str(directory.parent)})
        good, _ = sorted_out(import_kaldi(directory, elsewhere))
        assert [row.audio for row in good] == [str(directory.parent / "corpus/a.flac"), "/elsewhere/b.flac"]

    def test_every_row_comes_out(self, directory: Path) -> None:
        """In = out + rejected: a row that is silently dropped is a hole nobody looks for."""
        (directory / "wav.scp").write_bytes(
            b"\xef\xbb\xbfu1 audio/a.flac\r\nu1 audio/a.flac\r\nu2 audio/gone.flac\r\nu3 audio/a.flac\r\nlonely\r\n"
            b"u\xff audio/a.flac\r\n\r\nu5 audio\x00/a.flac\r\n"
        )
        good, bad = sorted_out(import_kaldi(directory, DEFAULTS))
        assert [row.id for row in good] == ["u1", "u2"]
        reasons = {row.row: row.reason for row in bad}
        assert set(reasons) == {2, 4, 5, 6, 8}
        assert "twice" in reasons[2]
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
        (row,), bad = sorted_out(import_table(tmp_path, Defaults(language="de")))
        assert bad == []
        assert (row.id, row.speaker, row.text, row.language) == ("a", "x", "hi", "en")
        assert quarter_of(row.recorded_at) == "2024-07"
        assert row.attributes == {"gender": "female", "age": "12", "age_band": "0-12", "locale": "en-US"}

    @pytest.mark.parametrize(
        ("row", "reason"),
        [
            ("a.wav\t\t2024-01-01", "no transcript"),
            ("\thi\t2024-01-01", "no audio path"),
            ("a.wav\thi", "2 columns where the header has 3"),
            ("a.wav\thi\t2024-01-01\tmore", "4 columns where the header has 3"),
            ("a.wav\thi\t05/06/2024", "not a date"),
            ("a.wav\thi\t2024-02-30", "not a date"),
            ("a.wav\thi\t0024-02-20", "before there were recordings"),
            ("b.wav\thi\t2024-01-01", "twice"),
            ("rm -rf x |\thi\t2024-01-01", "never run"),
        ],
    )
    def test_bad_row_is_rejected_and_the_others_come_in(self, tmp_path: Path, row: str, reason: str) -> None:
        """One broken line in a quarter of a million must cost one line."""
        path = self.table(tmp_path, f"path\ttext\trecorded_at\nb.wav\tfirst\t2024-01-01\n{row}\nsub/a.wav\tlast\t\n")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert [row.text for row in good] == ["first", "last"]
        assert [(row.source, row.row) for row in bad] == [(str(path), 3)]
        assert reason in bad[0].reason

    @pytest.mark.parametrize(
        ("header", "row", "times"),
        [
            ("start,end", "0.5,1.5", (0.5, 1.0)),
            ("begin_time,end_time", "0.5,1.5", (0.5, 1.0)),
            ("offset,duration", "0.5,1.0", (0.5, 1.0)),
            ("start_ms,end_ms", "500,1500", (0.5, 1.0)),
            ("start,duration[ms]", "0.5,1000", (0.5, 1.0)),
            ("start (s),end (s)", "0.5,1.5", (0.5, 1.0)),
            ("start,end,duration", "0.5,1.5,1.004", (0.5, 1.0)),
            ("end", "1.5", (0.0, 1.5)),
            ("start,end", "500,1500", (500.0, 1000.0)),  # thousandths are never guessed
            ("start,end", ",", (0.0, None)),
            ("Start Time,End Time", "0.5,1.5", (0.5, 1.0)),
            ("startTime,endTime", "0.5,1.5", (0.5, 1.0)),
            ("start-time,stop-time", "0.5,1.5", (0.5, 1.0)),
            ("start_sec,end_secs", "0.5,1.5", (0.5, 1.0)),
            ("start_seconds,duration_sec", "0.5,1.0", (0.5, 1.0)),
            ("Start (sec),Duration (sec)", "0.5,1.0", (0.5, 1.0)),
            ("start [sec],end (seconds)", "0.5,1.5", (0.5, 1.0)),
            ("start_time_s,end_time_in_seconds", "0.5,1.5", (0.5, 1.0)),
            ("start ms,end_msec", "500,1500", (0.5, 1.0)),
            ("start (milliseconds),Duration Millis", "500,1000", (0.5, 1.0)),
            ("startTimeMs,endTimeMs", "500,1500", (0.5, 1.0)),
            ("segment_start,utt_end", "0.5,1.5", (0.5, 1.0)),
            ("audio_offset,segment_duration_ms", "0.5,1000", (0.5, 1.0)),
            ("tmin,tmax", "0.5,1.5", (0.5, 1.0)),
            ("start_date,end_reason", "2024-05-31,hung up", (0.0, None)),
            ("offset_type,duration_category", "none,short", (0.0, None)),
            ("audio_duration,startup,ending,_end", "7,a,b,c", (0.0, None)),
        ],
    )
    def test_times_are_read_from_any_two_columns(
        self, tmp_path: Path, header: str, row: str, times: tuple[float, float | None]
    ) -> None:
        path = self.table(tmp_path, f"path,text,{header}\na.wav,hi,{row}\n", "metadata.csv")
        (found,), bad = sorted_out(import_table(path, DEFAULTS))
        assert (bad, (found.offset_s, found.duration_s)) == ([], times)

    @pytest.mark.parametrize(
        "name",
        ["startSample", "Start Frame", "start (samples)", "end_us", "Duration (min)", "durationHours", "stop [µs]",
         "segment_start_frames", "begin_hms", "start_timestamp", "end-offset"],
    )  # fmt: skip
    def test_a_time_that_cannot_be_read_is_not_passed_over(self, tmp_path: Path, name: str) -> None:
        """Whole recordings would be learnt as the one sentence that was said somewhere in them."""
        with pytest.raises(ManifestError, match=re.escape(f"'{name}' is a time in a unit that is not read")):
            list(import_table(self.table(tmp_path, f"path,text,{name}\na.wav,hi,1\n", "metadata.csv"), DEFAULTS))

    def test_a_column_goes_by_any_spelling_of_its_name(self, tmp_path: Path) -> None:
        header = "Audio File,Transcript,Speaker ID,Recorded At,spk-Age,ageBand"
        path = self.table(tmp_path, f"{header}\na.wav,hi,anna,2024-02-01,1,30-44\n", "metadata.csv")
        (found,), bad = sorted_out(import_table(path, DEFAULTS))
        assert (bad, found.speaker, found.recorded_at) == ([], "anna", dt.date(2024, 2, 1))
        assert found.attributes == {"age_band": "30-44"}

    @pytest.mark.parametrize(
        ("header", "row", "reason"),
        [
            ("start,end", "2,1", "ends at 1 s, which is not after its start at 2 s"),
            ("start,end,duration", "0,1,7.5", "1 s apart, but the duration is 7.5 s"),
            ("start,start_ms", "1,1000", "in seconds and in milliseconds"),
            ("start,end", "00:01,00:02", "is not a number of seconds"),
            ("start,end", "0,-1", "is not a number of seconds"),
            ("start,end", '"3,25","4,5"', "offset '3,25' is not a number: write decimals after a point, as 3.25, and"),
            ("start_ms,end", '"1,500",2', "offset_ms '1,500' is not a number: write decimals after a point"),
            ("channel", "both", "is none: write its number counted from 0, or A, B, left or right"),
            ("channel", "-1", "is none"),
        ],
    )
    def test_times_and_channels_that_do_not_fit_are_refused(
        self, tmp_path: Path, header: str, row: str, reason: str
    ) -> None:
        path = self.table(tmp_path, f"path,text,{header}\na.wav,hi,{row}\n", "metadata.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert good == []
        assert reason in bad[0].reason

    def test_a_channel_goes_by_number_letter_or_side(self, tmp_path: Path) -> None:
        """Two rows of one file are two utterances by their channels."""
        rows = "".join(f"a.wav,hi,{name}\n" for name in ("0", "B", "right", "1.0", ""))
        good, bad = sorted_out(import_table(self.table(tmp_path, f"path,text,channel\n{rows}", "m.csv"), DEFAULTS))
        assert [(row.id, row.channel) for row in good] == [("a@0", 0), ("a@1", 1), ("a", None)]
        assert [row.row for row in bad] == [4, 5]

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

    def test_two_ids_that_make_one_file_name_are_two_utterances(self, tmp_path: Path) -> None:
        """Refused as repetitions, all rows of the second speaker would be lost."""
        path = self.table(tmp_path, "id\tpath\ttext\ns/1\ta.wav\thi\ns-1\tb.wav\tho\ns-1\tb.wav\tho\n")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert [(row.id.split("-")[:2], row.text) for row in good] == [(["s", "1"], "hi"), (["s", "1"], "ho")]
        assert good[0].id != good[1].id
        assert [row.reason for row in bad] == ["id 's-1' comes twice; the first row counts"]

    def test_a_table_may_part_its_cells_by_bars(self, tmp_path: Path) -> None:
        """So speech synthesis keeps its corpora, without quoting."""
        path = self.table(tmp_path, 'audio_file|text|speaker_name\na.wav|hi, "you|x\nb.wav|"ho" he said|x\n', "m.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert (bad, [row.text for row in good]) == ([], ['hi, "you', '"ho" he said'])

    def test_a_table_may_name_its_delimiter_for_excel(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "sep=;\r\npath;text\r\na.wav;hi\r\n", "m.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert (bad, [(row.id, row.text) for row in good]) == ([], [("a", "hi")])

    def test_missing_speaker_or_date_is_said_per_row(self, tmp_path: Path) -> None:
        """Guessing one speaker for all would put everything into one set."""
        path = self.table(tmp_path, "path\ttext\na.wav\thi\n")
        _, bad = sorted_out(import_table(path, Defaults(language="en", recorded_at=DAY)))
        assert "no speaker" in bad[0].reason
        _, bad = sorted_out(import_table(path, Defaults(language="en", speaker="x")))
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

    def test_a_quoted_line_break_of_a_tsv_is_in_one_row(self, tmp_path: Path) -> None:
        """Half a transcript under the whole audio is a fault that nobody hears of."""
        path = self.table(
            tmp_path,
            'path\tspeaker\ttext\na.wav\ts\t"first line of it\n\nand the ""second"""\nb.wav\ts\tplain\n'
            'sub/a.wav\t"two\nlines"\tmiddle\n',
        )
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert bad == []
        assert [row.text for row in good] == ['first line of it\n\nand the "second"', "plain", "middle"]
        assert good[2].speaker == "two\nlines"

    def test_a_line_break_of_a_tsv_that_cannot_be_told_from_a_row_is_refused(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, 'path\ttext\na.wav\t"first line\nand the second\nb.wav\tplain\n')
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert [row.text for row in good] == ["plain"]
        assert [(row.row, row.reason) for row in bad] == [
            (2, "a quote is opened and not closed"),
            (3, "the row has 1 columns where the header has 2"),
        ]

    @pytest.mark.parametrize("name", ["m.csv", "m.csv.gz", "m.tsv"])
    def test_lines_of_an_old_macintosh_are_rows(self, tmp_path: Path, name: str) -> None:
        """They end in a carriage return, which the csv module stumbles over."""
        content = b"path,text,speaker\ra.wav,hello,s\rb.wav,bye,s\r"
        content = content.replace(b",", b"\t") if name.endswith("tsv") else content
        path = self.table(tmp_path, gzip.compress(content, mtime=0) if name.endswith("gz") else content, name)
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert (bad, [row.text for row in good]) == ([], ["hello", "bye"])

    def test_a_stray_carriage_return_or_an_endless_cell_costs_its_own_row(self, tmp_path: Path) -> None:
        rows = ['a.wav,"hi" a\rb', 'b.wav,"' + "x" * 200_000 + '"', "sub/a.wav,good\rmorning"]
        path = self.table(tmp_path, "path,text\r\n" + "\r\n".join(rows) + "\r\n", "m.csv")
        good, bad = sorted_out(import_table(path, DEFAULTS))
        assert [row.text for row in good] == ["good\rmorning"]
        assert [row.row for row in bad] == [2, 3]
        assert all("cannot be read as CSV" in row.reason for row in bad)

    @pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
    def test_what_spreadsheets_call_unicode_text_is_read(self, tmp_path: Path, encoding: str) -> None:
        """The first bytes say which encoding it is; nothing is guessed."""
        mark = "" if encoding in ("utf-16", "utf-8-sig") else "\ufeff"
        content = f"{mark}path\ttext\r\na.wav\tgrüße\u2028euch\r\n".encode(encoding)
        (row,), bad = sorted_out(import_table(self.table(tmp_path, content), DEFAULTS))
        assert (bad, row.text) == ([], "grüße\u2028euch")

    def test_windows_1252_is_not_guessed(self, tmp_path: Path) -> None:
        """Lines of plain letters are the same in each encoding; of the others each reading is a guess."""
        content = "path;text\na.wav;hello\nb.wav;grüße\n".encode("cp1252")
        good, bad = sorted_out(import_table(self.table(tmp_path, content, "m.csv"), DEFAULTS))
        assert [row.text for row in good] == ["hello"]
        assert [(row.row, row.reason) for row in bad] == [
            (3, "the line is not UTF-8: save the file anew in that encoding")
        ]

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "names no column path; the first row must name the columns: there is none"),
            (b"path\tspeaker\n", "no column text"),
            (b"a.wav,hello\n", "names no column path; the first row must name the columns: 'a.wav,hello'"),
            (b"path\tfile\ttext\n", "path and file for the same thing"),
            ("path\ttext\n".encode("utf-16")[:-1], "UTF-16"),
            (b"path\ttext\x00\n", "NUL"),
            (b'path,"text\n', "quote is opened and not closed"),
            (b'path,text,"' + b"x" * 200_000 + b'"\n', "cannot be read as CSV"),
            (b"path\ttext\tstart_samples\n", "give seconds as start or milliseconds as start_ms"),
            (b"path\ttext\tstart\tbegin_time\n", "start and begin_time for the same thing"),
        ],
    )
    def test_unusable_table_is_an_error(self, tmp_path: Path, content: bytes, reason: str) -> None:
        """Where no row can be read there is nothing to quarantine, only something to fix."""
        with pytest.raises(ManifestError, match=reason):
            list(import_table(self.table(tmp_path, content), DEFAULTS))

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (
                b"PK\x03\x04\x14\0\x06\0" + bytes(22) + b"[Content_Types].xml",
                "is an Excel workbook; save its sheet as CSV",
            ),
            (b"PK\x03\x04\x14\0\0\0\0" + bytes(21) + b"docProps/app.xml", "is an Excel workbook; save its sheet"),
            (b"PK\x03\x04\x14\0\x06\0" + bytes(22) + b"transcripts.csv", "is a ZIP archive; unpack it"),
            (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel workbook; save its sheet as CSV"),
            (b"PAR1\x15\x04\x15\x0c", "is a Parquet file; write its rows as CSV or JSON lines"),
            (gzip.compress(b"path\ttext\n", mtime=0), "is compressed with gzip; let its name end in .gz"),
            (b"RIFF\x24\0\0\0WAVEfmt ", "is audio; give the manifest of transcripts"),
        ],
    )
    def test_a_file_that_is_no_text_is_called_what_it_is(self, tmp_path: Path, content: bytes, reason: str) -> None:
        for name, importer in (("metadata.csv", import_table), ("metadata.jsonl", import_nemo)):
            with pytest.raises(ManifestError, match=re.escape(reason)):
                list(importer(self.table(tmp_path, content, name), DEFAULTS))

    def test_text_that_begins_like_such_a_file_is_text(self, tmp_path: Path) -> None:
        (row,), bad = sorted_out(import_table(self.table(tmp_path, "PAR1\tpath\ttext\nx\ta.wav\thi\n"), DEFAULTS))
        assert (bad, row.text) == ([], "hi")

    def test_folder_without_table_is_an_error(self, tmp_path: Path) -> None:
        """The message says which names are looked for, or how what is there is read."""
        with pytest.raises(ManifestError, match=r"transcripts\.tsv"):
            list(import_table(tmp_path, DEFAULTS))
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "transcription": "hi"}\n')
        with pytest.raises(ManifestError, match=r"metadata\.jsonl is read as kind nemo"):
            list(import_table(tmp_path, DEFAULTS))
        (row,), bad = sorted_out(import_nemo(tmp_path / "metadata.jsonl", DEFAULTS))
        assert (bad, row.id, row.text) == ([], "a", "hi")

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
        )
        (row,), bad = sorted_out(import_common_voice(tmp_path / "validated.tsv", DEFAULTS))
        assert (row.speaker, row.language, row.domain, row.id) == ("abc", "de", "reading", "cv_1")
        assert row.attributes == {"gender": "female", "age_band": "18-29"}
        assert (bad, row.audio) == ([], str(tmp_path / "clips/cv_1.mp3"))

    def test_common_voice_of_other_releases(self, tmp_path: Path) -> None:
        """The first name their files without an extension; of spontaneous speech other columns are there."""
        sound(tmp_path, "old/clips/0a1b.mp3", "new/audios/s1.mp3")
        (tmp_path / "old/train.tsv").write_text("client_id\tpath\tsentence\nabc\t0a1b\tHello.\n")
        (tmp_path / "new/ss-corpus-en.tsv").write_text(
            "client_id\taudio_id\taudio_file\tduration_ms\tprompt\ttranscription\tlanguage\tsplit\n"
            'abc\t1\ts1.mp3\t12500\tTell me\tWell, "yes\tten\ttrain\n'
        )
        (row,), _ = sorted_out(import_common_voice(tmp_path / "old/train.tsv", DEFAULTS))
        assert row.audio == str(tmp_path / "old/clips/0a1b.mp3")
        (row,), _ = sorted_out(import_common_voice(tmp_path / "new/ss-corpus-en.tsv", DEFAULTS))
        assert (row.audio, row.duration_s, row.text) == (str(tmp_path / "new/audios/s1.mp3"), 12.5, 'Well, "yes')
        assert (row.language, row.split) == ("ten", "train")

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

    def test_two_names_of_one_column_must_not_differ(self, tmp_path: Path) -> None:
        """The order of the keys would decide which transcript is learnt."""
        lines = [
            '{"audio_filepath": "a.wav", "text": "right", "transcript": "other"}',
            '{"audio_filepath": "b.wav", "transcript": "same", "text": "same"}',
            '{"audio_filepath": "c.wav", "text": "there", "sentence": null, "transcript": ""}',
        ]
        (tmp_path / "m.json").write_text("\n".join(lines))
        good, bad = sorted_out(import_nemo(tmp_path / "m.json", DEFAULTS))
        assert [row.text for row in good] == ["same", "there"]
        assert [(row.row, row.reason) for row in bad] == [
            (1, "text and transcript are names for the same thing and differ; keep one")
        ]

    def test_a_time_that_rounding_left_below_zero_is_zero(self, tmp_path: Path) -> None:
        """Times of segments are differences, and 0.1 + 0.2 - 0.3 is not 0."""
        rows = [f'{{"audio_filepath": "{start}.wav", "text": "hi", "offset": {start}}}' for start in (-1e-7, -0.5)]
        (tmp_path / "m.json").write_text("\n".join(rows))
        (row,), bad = sorted_out(import_nemo(tmp_path / "m.json", DEFAULTS))
        assert (row.offset_s, [refused.row for refused in bad]) == (0.0, [2])

    def test_own_manifest_comes_back_complete_through_nemo(self, tmp_path: Path) -> None:
        """A corpus prepared by one installation can be the source of another."""
        sound(tmp_path, "audio/u1.flac")
        row = utterance(attributes={"accent": "scottish", "station": "7"}, split="test", digest="d" * 64)
        write_manifest(tmp_path / "m.jsonl", [row])
        (back,), _ = sorted_out(import_nemo(tmp_path / "m.jsonl", DEFAULTS))
        assert {**back.to_json(), "audio_filepath": row.audio} == row.to_json()

    def test_lhotse(self, tmp_path: Path) -> None:
        """Recordings that would be run are refused, and a channel is counted inside its file."""

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

        kinds = [("r1", "file", [0]), ("r2", "command", [0]), ("r3", "file", [2, 3]), ("r4", "file", [0, 1, 2])]
        with gzip.open(tmp_path / "x_recordings_all.jsonl.gz", "wt") as out:
            out.write("\n".join(recording(*kind) for kind in kinds))
        (tmp_path / "x_supervisions_all.jsonl").write_text(
            "\n".join(
                [
                    supervision(0, "r1", custom={"domain": "calls", "date": "2024-02-03"}, gender="F"),
                    supervision(1, "r2"),
                    supervision(2, "r3", channel=3),
                    supervision(5, "r3", channel=[2, 3]),
                    supervision(6, "r3", channel=0),
                    supervision(7, "r4", channel=[0, 2]),
                    supervision(3, "r9"),
                    supervision(4, "r1", duration=-2),
                ]
            )
        )
        (row, *others), bad = sorted_out(import_lhotse(tmp_path, DEFAULTS))
        assert [(other.id, other.channel) for other in (row, *others)] == [("s0", 0), ("s2", 1), ("s5", None)]
        assert (row.language, row.domain, row.recorded_at) == ("en", "calls", dt.date(2024, 2, 3))
        assert row.attributes == {"gender": "female"}
        assert [rejected.id for rejected in bad] == ["s1", "s6", "s7", "s3", "s4"]

    def test_lhotse_itself_writes_what_is_read(self, tmp_path: Path) -> None:
        """The real library is the format's definition."""
        import lhotse

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
        cuts = lhotse.CutSet.from_manifests(recordings, supervisions)
        cuts.to_file(tmp_path / "cuts.jsonl.gz")
        assert list(import_lhotse(tmp_path / "cuts.jsonl.gz", DEFAULTS)) == [row]

    def test_a_lhotse_cut_is_a_stretch_of_its_recording(self, tmp_path: Path) -> None:
        """A supervision's times count from its cut; taken for the recording's they would be another sentence's."""

        def cut(kind: str, *supervisions: object, **more: object) -> str:
            recording = {"id": "r", "sources": [{"type": "file", "channels": [0, 1], "source": "a.wav"}]}
            return json.dumps(
                {"type": kind, "id": "c", "start": 10.0, "recording": recording, **more}
                | {"supervisions": supervisions}
            )

        said = {"id": "s", "start": 0.5, "duration": 1.0, "channel": 1, "text": "hi", "speaker": "x"}
        (tmp_path / "cuts.jsonl").write_text(
            "\n".join(
                [
                    cut("MonoCut", said, {**said, "id": "t", "start": -0.25}),
                    cut("MultiCut", {**said, "id": "m", "channel": [0, 1]}),
                    cut("MixedCut", said),
                    cut("MonoCut"),
                    cut("MonoCut", said, recording=None),
                ]
            )
        )
        good, bad = sorted_out(import_lhotse(tmp_path, DEFAULTS))
        assert [(row.id, row.offset_s, row.duration_s, row.channel) for row in good] == [
            ("s", 10.5, 1.0, 1),
            ("t", 9.75, 1.0, 1),
            ("m", 10.5, 1.0, None),
        ]
        assert [row.row for row in bad] == [3, 4, 5]

    def test_damaged_gzip_is_an_error_with_its_file(self, tmp_path: Path) -> None:
        """An upload that broke off must not look like a short corpus."""
        whole = gzip.compress(b'{"audio_filepath": "a.wav"}\n' * 10_000, mtime=0)
        (tmp_path / "m.jsonl.gz").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ManifestError, match="cannot be read"):
            list(import_nemo(tmp_path / "m.jsonl.gz", DEFAULTS))

    def test_every_importer_has_a_name_for_the_settings(self) -> None:
        """Sources choose their importer by these names."""
        assert set(IMPORTERS) == {"kaldi", "table", "nemo", "lhotse", "common_voice"}
