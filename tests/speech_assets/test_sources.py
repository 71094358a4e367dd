"""What people's own sources bring, through the real assets: every row is somewhere, and none is in the wrong place."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from speech.audio.decode import decode, write_flac_chunks
from speech.corpus.manifest import read_manifest, split_of_speaker
from speech.corpus.normalize import MANIFEST, read_quarantine
from speech.corpus.sources import Source
from speech_assets.cli import app

QUARTER, LANGUAGE = "2024-01", "en"
HEADER = "path\ttext\tspeaker\trecorded_at"


@pytest.fixture
def ingest(deployment: Any, tmp_path: Path) -> Callable[..., Any]:
    """Materialise assets over sources of one's own, in a data store of one's own."""
    import dagster as dg

    from deployment.settings import Settings
    from speech_assets.definitions import build
    from speech_assets.defs.resources import Workspace

    def run(sources: Sequence[Source], *assets: str) -> Any:
        settings = Settings.load().model_copy(update={"home": str(tmp_path / "store"), "sources": tuple(sources)})
        with dg.DagsterInstance.ephemeral() as instance:
            result = (
                build(settings)
                .resolve_implicit_global_asset_job_def()
                .execute_in_process(
                    asset_selection=[dg.AssetKey(asset) for asset in assets or ("recordings",)],
                    partition_key=f"{LANGUAGE}|{QUARTER}",
                    instance=instance,
                    raise_on_error=False,
                )
            )
        result.store = Workspace(settings).store
        return result

    return run


def table(folder: Path, rows: Sequence[str], header: str = HEADER, **fields: Any) -> Source:
    """A source of the kind `table` with a second of sound for each file that its rows name."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(1)
    for row in rows:
        name = row.split("\t")[0]
        if name.endswith(".flac"):
            write_flac_chunks([generator.normal(0, 0.1, 16_000).astype(np.float32)], folder / name)
    (folder / "transcripts.tsv").write_text("\n".join((header, *rows)) + "\n")
    return Source(kind="table", path=str(folder), **fields)


def counts(result: Any) -> dict[str, float]:
    found: dict[str, float] = json.loads(
        (result.store.current("recordings", QUARTER, LANGUAGE).path / "counts.json").read_text()
    )
    return found


def rows_of(result: Any, asset: str = "recordings") -> dict[str, Any]:
    manifest = result.store.current(asset, QUARTER, LANGUAGE).path / MANIFEST
    return {row.id: row for row in read_manifest(manifest)}


def reasons(result: Any) -> list[str]:
    quarantine = result.store.current("recordings", QUARTER, LANGUAGE).path / "quarantine.jsonl"
    return [json.loads(line)["reason"] for line in quarantine.read_text().splitlines()]


def test_a_row_that_names_no_language_is_not_put_into_every_one(ingest: Any, tmp_path: Path) -> None:
    """With two languages configured, a German sentence would otherwise be learnt as English as well."""
    result = ingest([table(tmp_path / "a", ["a.flac\tguten morgen\tanna\t2024-02-01"])])
    assert (counts(result)["read"], counts(result)["kept"], counts(result)["rejected"]) == (1, 0, 1)
    assert "there is no language" in reasons(result)[0]
    headline = next(e for e in result.get_asset_check_evaluations() if e.check_name == "every_row_accounted_for")
    assert "1 were refused: 1 row: there is no language" in headline.description


def test_a_source_names_what_its_rows_do_not_say(ingest: Any, tmp_path: Path) -> None:
    source = table(
        tmp_path / "a",
        ["a.flac\tgood morning"],
        header="path\ttext",
        language="en",
        speaker="anna",
        recorded_at="2024-02-01",
    )
    (row,) = rows_of(ingest([source])).values()
    assert (row.language, row.speaker, row.recorded_at.isoformat()) == ("en", "anna", "2024-02-01")


def test_an_id_of_two_sources_costs_one_row_and_not_the_quarter(ingest: Any, tmp_path: Path) -> None:
    first = table(tmp_path / "a", ["a.flac\tgood morning\tanna\t2024-02-01"], language="en")
    second = table(
        tmp_path / "b",
        ["a.flac\tgood evening\tben\t2024-02-01", "b.flac\tgood night\tben\t2024-02-01"],
        language="en",
    )
    result = ingest([first, second])
    assert {identity: row.text for identity, row in rows_of(result).items()} == {"a": "good morning", "b": "good night"}
    assert "also in another source" in reasons(result)[0]
    (refused,) = read_quarantine(result.store.current("recordings", QUARTER, LANGUAGE).path)
    assert refused.source == f"{tmp_path}/b/transcripts.tsv, row 2"


def test_a_refused_row_is_named_in_its_table(ingest: Any, tmp_path: Path) -> None:
    """Whoever is to mend it opens the table, which may have a million rows."""
    rows = ["a.flac\tone\tanna\t2024-02-01", "b.wav\ttwo\tanna\t2024-02-01", "c.flac\t\tanna\t2024-02-01"]
    result = ingest([table(tmp_path / "a", rows, language="en")])
    refused = read_quarantine(result.store.current("recordings", QUARTER, LANGUAGE).path)
    assert [(row.source, row.reason.split(":")[0]) for row in refused] == [
        (f"{tmp_path}/a/transcripts.tsv, row 3", f"there is no audio file {tmp_path}/a/b.wav"),
        (f"{tmp_path}/a/transcripts.tsv, row 4", "there is no transcript"),
    ]


def test_rows_that_no_partition_takes_are_counted(ingest: Any, tmp_path: Path) -> None:
    """Nothing is dropped silently: not what is too old or yet to come, nor what nobody configured."""
    source = table(
        tmp_path / "a",
        [
            "a.flac\tgood morning\tanna\t2024-02-01\ten",
            "b.flac\tgood morning\tanna\t1999-02-01\ten",
            "c.flac\tbonjour\tanna\t2024-02-01\tfr",
            "d.flac\tguten morgen\tanna\t2024-02-01\tde",
            "e.flac\tgood morning\tanna\t2235-02-01\ten",
        ],
        header=f"{HEADER}\tlanguage",
    )
    result = ingest([source])
    assert counts(result) == {
        "read": 5,
        "kept": 1,
        "other_partitions": 1,
        "no_partition": 3,
        "rejected": 0,
        "unusable": 0,
        "unread_share": 0.0,
    }
    (made,) = result.asset_materializations_for_node("recordings")
    assert "2235 Q1 has not begun: correct the dates at the source" in made.metadata["in_no_partition"].value


def test_a_source_that_is_not_there_is_one_sentence(ingest: Any, tmp_path: Path) -> None:
    result = ingest([Source(kind="kaldi", path=str(tmp_path / "nowhere"), language="en")])
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "nowhere: is not a folder" in failure.step_failure_data.user_failure_data.description


def test_audio_that_is_not_there_is_one_sentence_and_may_still_come(ingest: Any, tmp_path: Path) -> None:
    """A folder named wrongly is one mistake, not thousands; and what it misses may be copied after the manifest."""
    rows = [f"calls/{n}.wav\tgood morning\tanna\t2024-02-01" for n in range(1_200)]
    other_quarter = ["calls/old.wav\tgood morning\tanna\t2024-08-01"]
    source = table(tmp_path / "a", [*rows, *other_quarter], language="en")
    result = ingest([source])
    headline = next(e for e in result.get_asset_check_evaluations() if e.check_name == "every_row_accounted_for")
    assert f"1,200 rows: there is no audio file; the first is {tmp_path}/a/calls/0.wav: if paths are relative to " in (
        headline.description or ""
    )
    assert "set audio_root" in (headline.description or "")
    assert (counts(result)["unusable"], counts(result)["other_partitions"]) == (1_200, 1)

    sound = [np.random.default_rng(1).normal(0, 0.1, 16_000).astype(np.float32)]
    (tmp_path / "a/calls").mkdir()
    write_flac_chunks(sound, tmp_path / "a/calls/0.wav")
    assert list(rows_of(ingest([source]))) == ["calls-0"]
    (tmp_path / "b/calls").mkdir(parents=True)
    write_flac_chunks(sound, tmp_path / "b/calls/7.wav")
    elsewhere = source.model_copy(update={"audio_root": str(tmp_path / "b")})
    assert [row.audio for row in rows_of(ingest([elsewhere])).values()] == [str(tmp_path / "b/calls/7.wav")]


def test_each_party_of_a_call_is_learnt_by_its_own_channel(ingest: Any, tmp_path: Path) -> None:
    """Through the assets, from a Kaldi directory with the channel in the fifth column of `segments`."""
    time = np.arange(4 * 8_000) / 8_000
    sides = np.stack([0.3 * np.sin(2 * np.pi * hz * time) for hz in (500, 1_200)], 1)
    soundfile.write(tmp_path / "call.wav", sides, 8_000)
    (tmp_path / "wav.scp").write_text("call call.wav\n")
    (tmp_path / "segments").write_text("a-1 call 0.0 3.0 0\nb-1 call 1.0 -1 1\n")
    (tmp_path / "text").write_text("a-1 hello there\nb-1 good morning\n")
    (tmp_path / "utt2spk").write_text("a-1 a\nb-1 b\n")
    source = Source(kind="kaldi", path=str(tmp_path), language="en", recorded_at="2024-02-01")
    result = ingest([source], "recordings", "normalized_audio")
    normalised = result.store.current("normalized_audio", QUARTER, LANGUAGE).path
    heard = {}
    for row in rows_of(result, "normalized_audio").values():
        samples = decode(normalised / row.audio).samples
        heard[row.id] = len(samples) / 16_000, round(np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples))
    assert heard == {"a-1": (3.0, 500), "b-1": (3.0, 1_200)}


def test_a_delivery_of_unreadable_rows_does_not_pass_for_its_readable_rest(ingest: Any, tmp_path: Path) -> None:
    rows = [f"{n}.flac\tgood morning number {n}\tspeaker-{n}\t2024-02-01" for n in range(5)]
    source = table(
        tmp_path / "a", [*rows, *(f"gone-{n}.wav\thello\tanna\t2024-02-01" for n in range(45))], language="en"
    )
    result = ingest([source], "recordings", "normalized_audio", "utterances")
    check = next(e for e in result.get_asset_check_evaluations() if e.check_name == "rejected_share")
    assert not check.passed
    assert float(check.metadata["observed"].value) == pytest.approx(0.9)


def test_rows_that_cannot_be_read_cost_only_the_partitions_that_they_may_be_of(ingest: Any, tmp_path: Path) -> None:
    """A broken table of German calls is no reason to refuse English."""
    good = table(tmp_path / "a", [f"{n}.flac\tgood morning\tanna\t2024-02-01" for n in range(4)], language="en")
    rows = [f"{n}.flac\t\tanna\t2024-02-01" for n in range(90)] + ["90.flac\t\tanna\t1999-02-01", "torn"]
    german = table(tmp_path / "b", rows, language="de")
    result = ingest([good, german])
    assert (counts(result), reasons(result)) == (
        {
            "read": 96,
            "kept": 4,
            "other_partitions": 91,
            "no_partition": 1,
            "rejected": 0,
            "unusable": 0,
            "unread_share": 0.0,
        },
        [],
    )
    (headline,) = result.get_asset_check_evaluations()
    assert headline.passed


def test_rows_that_cannot_be_read_count_as_in_what_they_may_be_of(ingest: Any, tmp_path: Path) -> None:
    """Of a quarter's own rows each counts; of those of any quarter or language this one's share."""
    rows = [
        *(f"{n}.flac\tgood morning\tanna\t2024-02-01\ten" for n in range(4)),
        "own.flac\t\tanna\t2024-02-01\ten",
        "autumn.flac\t\tanna\t2024-10-01\ten",
        "any-quarter.flac\tgood morning\tanna\tsome day\ten",
        "any-language.flac\tgood morning\tanna\t2024-02-01\t",
        "torn",
    ]
    result = ingest([table(tmp_path / "a", rows, header=f"{HEADER}\tlanguage")], "recordings")
    found = counts(result)
    assert found.pop("unread_share") == pytest.approx(1 - (1 - 1 / 9) * (1 - 1 / 6) * (1 - 1 / 7))
    assert found == {"read": 9, "kept": 4, "other_partitions": 1, "no_partition": 0, "rejected": 3, "unusable": 1}
    headline = next(e for e in result.get_asset_check_evaluations() if e.check_name == "every_row_accounted_for")
    assert headline.passed


def test_a_source_cannot_move_a_speaker_from_one_set_to_another(ingest: Any, tmp_path: Path) -> None:
    """By speaker means by speaker: a column `split` would put anna into test in spring and into train in autumn."""
    speakers = [f"speaker-{number}" for number in range(12)]
    rows = [f"{s}.flac\tgood morning {s}\t{s}\t2024-02-01\ttest" for s in speakers]
    source = table(tmp_path / "a", rows, header=f"{HEADER}\tsplit", language="en")
    result = ingest([source], "recordings", "normalized_audio", "utterances")
    placed = {row.speaker: row.split for row in rows_of(result, "utterances").values()}
    assert placed == {speaker: split_of_speaker(speaker, 0.1, 0.2) for speaker in speakers}


def by_hand(source: Source, folder: Path, language: str = "en-US") -> int:
    """The exit code of `soundstage manifest`."""
    with pytest.raises(SystemExit) as ended:
        app(["manifest", str(source.path), str(folder), "--language", language])
    return int(ended.value.code or 0)


def test_a_manifest_made_by_hand_holds_what_the_assets_make_of_the_source(
    ingest: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe that is tried by hand learns from the very rows that the graph would give it."""
    from training.data import read_split

    rows = [f"{n}.flac\tgood morning [noise] number {n}\tspeaker {n}\t2024-02-01" for n in range(24)]
    source = table(tmp_path / "a", [*rows, "x.flac\t[noise]\tanna\t2024-02-01", "gone.wav\thi\tben\t2024-02-01"])
    assert by_hand(source, tmp_path / "by-hand") == 0
    said = capsys.readouterr()
    assert "24 utterances: train " in said.out
    assert "2 rows were refused: " in said.err
    manifest = tmp_path / "by-hand" / MANIFEST

    result = ingest([source.model_copy(update={"language": "en"})], "recordings", "normalized_audio", "utterances")
    made = rows_of(result, "utterances")
    assert {row.id: (row.text, row.split, row.digest, row.duration_s) for row in read_manifest(manifest)} == {
        row.id: (row.text, row.split, row.digest, row.duration_s) for row in made.values()
    }
    refused = {row.id: (row.code, row.source) for row in read_quarantine(manifest.parent)}
    assert refused["gone"] == ("row", f"{tmp_path}/a/transcripts.tsv, row 27")
    assert refused["x"][0] == "no-words"
    learnt = read_split([manifest], "train", "en")
    assert all(Path(row.audio).is_file() for row in learnt.utterances)

    capsys.readouterr()
    assert by_hand(source, tmp_path / "other", "English") == 1
    assert "'English' is not a language: write its tag" in capsys.readouterr().err
    assert by_hand(source, tmp_path / "by-hand") == 1
    assert capsys.readouterr().err == f"error: {tmp_path}/by-hand holds something: give a new or empty folder\n"


def test_a_manifest_without_a_usable_row_is_no_success(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = table(tmp_path / "a", ["gone.wav\thi\tben\t2024-02-01"])
    assert by_hand(source, tmp_path / "by-hand") == 1
    assert "there is no audio file" in capsys.readouterr().err
