"""The intent model of a language as an asset: taken into use when it passed, and never before."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = "anna peter david maria paul lisa tom eva max ida".split()
OTHERS = "good day|nice sun|oh well|so what|what now|see you|i see|me too"
ROWS = [
    *({"text": f"{verb} {name}", "intent": verb} for verb in ("pay", "call", "greet") for name in NAMES),
    *({"text": text, "intent": ""} for text in OTHERS.split("|")),
]


@pytest.fixture
def materialised(deployment, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, Any]]]:  # type: ignore[no-untyped-def]
    """Materialises `intent_model` from rows, under settings of its gates; gives the result and the workspace."""
    import dagster as dg

    from deployment.settings import Settings
    from evaluation.intents import IntentGateSettings
    from speech_assets.definitions import build
    from speech_assets.defs.resources import Workspace
    from training.intents import IntentSettings

    (tmp_path / "dagster").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance:

        def run(rows: list[dict[str, str]] | None, language: str = "en", **gates: Any) -> tuple[Any, Any]:
            path = tmp_path / "calls.jsonl"
            path.write_text("\n".join(map(json.dumps, rows or ())))
            settings = Settings.load().model_copy(
                update={
                    "home": str(tmp_path / "home"),
                    "languages": ("en", "sw"),
                    "intents": IntentSettings(sentences={language: str(path)} if rows is not None else {}),
                    "intent_gates": IntentGateSettings(**{"ways": 4, "unknown_ways": 1, **gates}),
                }
            )
            result = dg.materialize(
                [build(settings).get_assets_def("intent_model")],
                instance=instance,
                partition_key=language,
                resources={"workspace": Workspace(settings)},
                raise_on_error=False,
            )
            return result, Workspace(settings)

        yield run


def passed(result: Any) -> bool:
    (check,) = result.get_asset_check_evaluations()
    return bool(check.passed)


def test_a_model_that_passed_is_in_use_and_one_that_is_refused_leaves_it_there(materialised: Any) -> None:
    from deployment.registry.intent_champions import intent_champion
    from evaluation.gates import GateRefused
    from evaluation.intents import load_intent_verdict

    result, workspace = materialised(ROWS)
    assert result.success
    assert passed(result)
    first = intent_champion(workspace.store, "en")
    assert first is not None
    assert first.intent(["pay", "anna"])[0] == "pay"
    result, _ = materialised(ROWS[:-3], ways=500)
    assert not passed(result)
    metadata = result.asset_materializations_for_node("intent_model")[0].metadata
    refused = metadata["model_digest"].value
    assert refused != first.digest
    assert not load_intent_verdict(workspace.objects, refused).passed
    now = intent_champion(workspace.store, "en")
    assert now is not None
    assert now.digest == first.digest
    workspace.objects.put(f"verdicts/{first.digest}.json", b"{}")
    with pytest.raises(GateRefused):
        intent_champion(workspace.store, "en")


def test_a_language_without_sentences_has_no_model_and_fails_nothing(materialised: Any) -> None:
    from deployment.registry.intent_champions import intent_champion

    result, workspace = materialised(None, language="sw")
    assert result.success
    assert passed(result)
    assert intent_champion(workspace.store, "sw") is None


def test_sentences_that_cannot_be_used_fail_the_run_with_the_line(materialised: Any) -> None:
    result, _ = materialised([*ROWS[:3], {"text": "pay", "intent": "pay", "slots": {"amount": "$4"}}])
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "sentence 4" in failure.step_failure_data.user_failure_data.description
    result, _ = materialised(ROWS[:10])
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "two intents" in failure.step_failure_data.user_failure_data.description


def test_a_model_whose_bytes_are_others_is_not_used(materialised: Any) -> None:
    from deployment.registry.intent_champions import intent_champion
    from speech.understanding.intents import IntentModelError

    _, workspace = materialised(ROWS)
    champion = intent_champion(workspace.store, "en")
    assert champion is not None
    workspace.objects.put(f"intent_models/{champion.digest}.npz", b"other")
    with pytest.raises(IntentModelError, match="are others"):
        intent_champion(workspace.store, "en")
