"""What people's own sources bring, through the real assets: every row is somewhere, and none is in the wrong place."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployment.settings import Source
from speech.audio.decode import Waveform, encode_flac
from speech.corpus.manifest import read_manifest, split_of_speaker
from speech.corpus.normalize import MANIFEST

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
        settings = Settings.load().model_copy(update={"home": tmp_path / "store", "sources": tuple(sources)})
        with dg.DagsterInstance.ephemeral() as instance:
            result = (
                build({"workspace": Workspace(settings)})
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
            encode_flac(Waveform(generator.normal(0, 0.1, 16_000).astype(np.float32)), folder / name)
    (folder / "transcripts.tsv").write_text("\n".join((header, *rows)) + "\n")
    return Source(kind="table", path=str(folder), **fields)


def counts(result: Any) -> dict[str, int]:
    found: dict[str, int] = json.loads(
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
    assert counts(result) == {"read": 1, "kept": 0, "other_partitions": 0, "no_partition": 0, "rejected": 1}
    assert "there is no language" in reasons(result)[0]
    headline = next(e for e in result.get_asset_check_evaluations() if e.check_name == "every_row_accounted_for")
    assert "1 were refused: 1 rows: there is no language" in headline.description


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


def test_rows_that_no_partition_takes_are_counted(ingest: Any, tmp_path: Path) -> None:
    """Nothing is dropped silently: not what is too old, nor what is in a language that nobody configured."""
    source = table(
        tmp_path / "a",
        [
            "a.flac\tgood morning\tanna\t2024-02-01\ten",
            "b.flac\tgood morning\tanna\t1999-02-01\ten",
            "c.flac\tbonjour\tanna\t2024-02-01\tfr",
            "d.flac\tguten morgen\tanna\t2024-02-01\tde",
        ],
        header=f"{HEADER}\tlanguage",
    )
    assert counts(ingest([source])) == {
        "read": 4,
        "kept": 1,
        "other_partitions": 1,
        "no_partition": 2,
        "rejected": 0,
    }


def test_a_source_that_is_not_there_is_one_sentence(ingest: Any, tmp_path: Path) -> None:
    result = ingest([Source(kind="kaldi", path=str(tmp_path / "nowhere"), language="en")])
    assert not result.success
    failure = next(event for event in result.all_events if event.is_step_failure)
    assert "nowhere: is not a folder" in failure.step_failure_data.user_failure_data.description


def test_a_delivery_of_unreadable_rows_does_not_pass_for_its_readable_rest(ingest: Any, tmp_path: Path) -> None:
    rows = [f"{n}.flac\tgood morning number {n}\tspeaker-{n}\t2024-02-01" for n in range(5)]
    source = table(
        tmp_path / "a", [*rows, *(f"gone-{n}.wav\thello\tanna\t2024-02-01" for n in range(45))], language="en"
    )
    result = ingest([source], "recordings", "normalized_audio", "utterances")
    check = next(e for e in result.get_asset_check_evaluations() if e.check_name == "rejected_share")
    assert not check.passed
    assert float(check.metadata["observed"].value) == pytest.approx(0.9)


def test_a_source_cannot_move_a_speaker_from_one_set_to_another(ingest: Any, tmp_path: Path) -> None:
    """By speaker means by speaker: a column `split` would put anna into test in spring and into train in autumn."""
    speakers = [f"speaker-{number}" for number in range(12)]
    rows = [f"{s}.flac\tgood morning {s}\t{s}\t2024-02-01\ttest" for s in speakers]
    source = table(tmp_path / "a", rows, header=f"{HEADER}\tsplit", language="en")
    result = ingest([source], "recordings", "normalized_audio", "utterances")
    placed = {row.speaker: row.split for row in rows_of(result, "utterances").values()}
    assert placed == {speaker: split_of_speaker(speaker, 0.1, 0.2) for speaker in speakers}
