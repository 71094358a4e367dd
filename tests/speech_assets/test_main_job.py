"""A quarter becomes a served model, and nothing that did not pass moves forward whichever way it is launched."""

import json

import pytest

PARTITION = "en|2024-01"


def failure(result) -> str:  # type: ignore[no-untyped-def]
    event = next(e for e in result.all_events if e.is_step_failure)
    data = event.step_failure_data
    return data.user_failure_data.description if data.user_failure_data else data.error_display_string


@pytest.fixture(scope="session")
def candidate(deployment):  # type: ignore[no-untyped-def]
    """The first English quarter up to its registered version, trained for real in processes of its own."""
    corpus = deployment.materialize("recordings", "normalized_audio", "utterances", partition=PARTITION)
    assert corpus.success, failure(corpus)
    base = deployment.materialize("benchmark_set", "base_model", partition="en")
    assert base.success, failure(base)
    result = deployment.materialize(
        "finetuned_model", "model_bundle", "evaluation", "verdict", "registered_model", partition=PARTITION
    )
    assert result.success, failure(result)
    return result


@pytest.fixture
def workspace(deployment):  # type: ignore[no-untyped-def]
    from deployment.settings import Settings
    from speech_assets.defs.resources import Workspace

    return Workspace(Settings.load())


def metadata(result, asset: str) -> dict[str, object]:  # type: ignore[no-untyped-def]
    event = next(e for e in result.get_asset_materialization_events() if e.asset_key.to_user_string() == asset)
    return {key: value.value for key, value in event.materialization.metadata.items()}


def decide(deployment, **config: str):  # type: ignore[no-untyped-def]
    """Launch `promote`, without the release that follows: a model of so few steps may hear nothing in its probes."""
    from deployment.settings import Settings
    from speech_assets.definitions import build

    settings = Settings.load()
    serving = settings.serving.model_copy(update={"auto_release": False})
    return (
        build(settings.model_copy(update={"serving": serving}))
        .resolve_job_def("promote")
        .execute_in_process(
            run_config={"ops": {"decide_promotion": {"config": config}}},
            instance=deployment.instance,
            raise_on_error=False,
        )
    )


def test_the_version_carries_its_lineage(candidate, workspace) -> None:  # type: ignore[no-untyped-def]
    versions = workspace.registry().versions("soundstage-en")
    assert len(versions) == 1
    tags = versions[0].tags
    assert tags["partition"] == PARTITION
    assert tags["verdict"] == "passed"
    assert set(json.loads(tags["dataset_digests"])) >= {"quarter", "benchmark"}
    assert tags["git_revision"]
    assert "challenger" in versions[0].aliases


def test_the_bundle_gives_the_text_of_its_checkpoint(candidate) -> None:  # type: ignore[no-untyped-def]
    assert metadata(candidate, "model_bundle")["parity"] >= 0.99  # type: ignore[operator]


def test_training_again_on_the_same_data_is_not_repeated(deployment, candidate) -> None:  # type: ignore[no-untyped-def]
    again = deployment.materialize("finetuned_model", partition=PARTITION)
    assert again.success
    event = again.get_asset_materialization_events()[0]
    before = next(
        e for e in candidate.get_asset_materialization_events() if e.asset_key.to_user_string() == "finetuned_model"
    )
    assert event.materialization.tags == before.materialization.tags
    assert (
        metadata(again, "finetuned_model")["training_seconds"]
        == metadata(candidate, "finetuned_model")["training_seconds"]
    )


def test_registering_the_same_bundle_twice_is_one_version(deployment, candidate, workspace) -> None:  # type: ignore[no-untyped-def]
    assert deployment.materialize("registered_model", partition=PARTITION).success
    assert len(workspace.registry().versions("soundstage-en")) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"approver": "somebody-else"}, "may not decide"),
        ({"reason": "  "}, "reason"),
        ({"version": "77"}, "77"),
        ({"model": "soundstage-xx"}, "no model"),
    ],
)
def test_a_decision_that_may_not_be_taken_is_refused(deployment, candidate, workspace, change, sentence) -> None:  # type: ignore[no-untyped-def]
    asked = {
        "model": "soundstage-en",
        "version": "1",
        "decision": "approve",
        "approver": "speech-lead",
        "reason": "good",
    }
    result = decide(deployment, **{**asked, **change})
    assert not result.success
    assert sentence in failure(result)
    assert workspace.promotions().current("en") is None


def test_a_verdict_that_fails_stops_registration_and_promotion(deployment, candidate, workspace) -> None:  # type: ignore[no-untyped-def]
    """The default gates refuse a model of a dozen steps, and then nothing downstream moves, launched by hand or not."""
    from evaluation.gates import GateSettings, judge, save_verdict
    from speech_assets.defs.evaluation import load_evaluation

    lenient = judge(load_evaluation(workspace, "2024-01", "en"), workspace.settings.gates)
    strict = judge(load_evaluation(workspace, "2024-01", "en"), GateSettings())
    assert not strict.passed
    save_verdict(strict, workspace.objects)
    try:
        registered = deployment.materialize("registered_model", partition=PARTITION)
        assert not registered.success
        promoted = decide(
            deployment, model="soundstage-en", version="1", decision="approve", approver="speech-lead", reason="anyway"
        )
        assert not promoted.success
        assert workspace.promotions().current("en") is None
    finally:
        save_verdict(lenient, workspace.objects)


def test_a_tampered_bundle_is_not_registered(deployment, candidate, workspace) -> None:  # type: ignore[no-untyped-def]
    network = workspace.bundle("2024-01", "en").path / "network.onnx"
    content = network.read_bytes()
    network.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    try:
        result = deployment.materialize("registered_model", partition=PARTITION)
        assert not result.success
        assert "network.onnx" in failure(result)
    finally:
        network.write_bytes(content)


def test_release_without_a_champion_says_what_to_do(deployment, candidate) -> None:  # type: ignore[no-untyped-def]
    result = deployment.materialize("serving_release", partition="de")
    assert not result.success
    assert "promote" in failure(result)


def test_an_approved_version_is_the_champion(deployment, candidate, workspace) -> None:  # type: ignore[no-untyped-def]
    result = decide(
        deployment,
        model="soundstage-en",
        version="1",
        decision="approve",
        approver="speech-lead",
        reason="all gates passed",
    )
    assert result.success, failure(result)
    decision = workspace.promotions().current("en")
    assert (decision.version, decision.approver) == ("1", "speech-lead")
    assert workspace.registry().champion("soundstage-en").version == "1"
