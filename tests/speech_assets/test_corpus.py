"""The corpus assets: counted, repeatable, and closed to what is corrupt."""

import json
from collections import Counter
from pathlib import Path

import pytest

CORPUS = ("recordings", "normalized_audio", "utterances")


def checks(result) -> dict[str, bool]:  # type: ignore[no-untyped-def]
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


@pytest.fixture(scope="session")
def first_quarter(deployment):  # type: ignore[no-untyped-def]
    result = deployment.materialize(*CORPUS, partition="en|2024-01")
    assert result.success, [e.event_specific_data for e in result.all_events if e.is_failure]
    return result


def digests(result) -> dict[str, str]:  # type: ignore[no-untyped-def]
    return {
        event.asset_key.to_user_string(): event.materialization.tags["dagster/data_version"]
        for event in result.get_asset_materialization_events()
    }


def test_every_recording_is_kept_or_quarantined_with_a_reason(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    from speech.corpus.manifest import read_manifest
    from speech.corpus.normalize import MANIFEST, read_quarantine
    from speech.store.outputs import DataStore

    store = DataStore(deployment.home)
    before = 0
    for asset in CORPUS:
        folder = store.current(asset, "2024-01", "en").path
        kept, quarantined = len(list(read_manifest(folder / MANIFEST))), read_quarantine(folder)
        if asset != "recordings":
            assert before == kept + len(quarantined)
        before = kept
        assert all(row.reason and row.code for row in quarantined)
    broken = read_quarantine(store.current("normalized_audio", "2024-01", "en").path)
    assert len(broken) >= 3, "the embedded corpus holds broken files, and each must be found"
    assert checks(first_quarter)["in_equals_out_plus_quarantined"]
    assert checks(first_quarter)["no_utterance_lost"]


def test_a_partition_materialised_twice_has_identical_digests(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    import shutil

    shutil.rmtree(deployment.home / "sources")  # synthesised anew, too
    again = deployment.materialize(*CORPUS, partition="en|2024-01")
    assert digests(again) == digests(first_quarter)
    assert set(digests(again)) == {*CORPUS, "training_data"}, "which is written with the utterances"


def test_no_speaker_is_in_two_sets_in_any_quarter(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    from speech.corpus.manifest import read_manifest
    from speech.corpus.normalize import MANIFEST
    from speech.store.outputs import DataStore

    assert deployment.materialize(*CORPUS, partition="en|2024-04").success
    store = DataStore(deployment.home)
    places: dict[str, set[str | None]] = {}
    quarters: Counter[str] = Counter()
    for quarter in ("2024-01", "2024-04"):
        rows = list(read_manifest(store.current("utterances", quarter, "en").path / MANIFEST))
        quarters.update({row.speaker for row in rows})
        for row in rows:
            places.setdefault(row.speaker, set()).add(row.split)
    assert all(len(sets) == 1 for sets in places.values())
    assert max(quarters.values()) == 2, "speakers must recur, or the promise is not tested"
    assert {next(iter(sets)) for sets in places.values()} == {"train", "dev", "test"}


def test_shifted_transcripts_are_refused_and_nothing_trains_on_them(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    """The corrupt quarter fails a blocking check, and training refuses it even when launched by hand."""
    result = deployment.materialize(*CORPUS, partition="en|2024-07")
    failed = [name for name, passed in checks(result).items() if not passed]
    assert failed
    manual = deployment.materialize("finetuned_model", partition="en|2024-07")
    assert not manual.success
    failures = [e for e in manual.all_events if e.is_step_failure]
    assert "did not pass" in failures[0].step_failure_data.user_failure_data.description


def test_own_sources_over_the_embedded_corpus_s_benchmark_are_warned_of(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    """Whoever adds recordings to the demo's data store would have real models judged on synthetic speech."""
    import dagster as dg

    from deployment.settings import Settings
    from speech.corpus.sources import Source
    from speech_assets.definitions import build

    def warned(**changes: object) -> list[dg.AssetCheckEvaluation]:
        result = (
            build(Settings.load().model_copy(update=changes))
            .resolve_implicit_global_asset_job_def()
            .execute_in_process(
                asset_selection=[dg.AssetKey("benchmark_set")], partition_key="en", instance=deployment.instance
            )
        )
        return [e for e in result.get_asset_check_evaluations() if not e.passed]

    assert warned() == []
    [warning] = warned(sources=(Source(kind="kaldi", path="calls"),))
    assert warning.severity is dg.AssetCheckSeverity.WARN
    assert "make forget" in (warning.description or "")


def test_the_stored_validation_names_what_failed(deployment, first_quarter) -> None:  # type: ignore[no-untyped-def]
    from evaluation.corpus.validation import VALIDATION_NAME
    from speech.store.outputs import DataStore

    folder: Path = DataStore(deployment.home).current("utterances", "2024-01", "en").path
    validation = json.loads((folder / VALIDATION_NAME).read_text())
    assert validation["passed"] is True
