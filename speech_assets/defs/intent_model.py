"""Intent models: what speakers of a language want, learnt from labelled sentences, judged, and taken into use.

A model is kept by its digest and its verdict beside it, whatever it says; only one that passed is taken into use
(`deployment/registry/intent_champions.py`), and one that is refused leaves the former one in use. A language without
labelled sentences has no model, and its transcripts have no intents.
"""

from pathlib import Path

import dagster as dg

from deployment.registry.intent_champions import name_intent_champion, put_intent_model
from evaluation.intents import IntentVerdict, judge, save_intent_verdict
from speech.corpus.intents import (
    LabelledSentence,
    SentencesError,
    edition,
    embedded_languages,
    embedded_sentences,
    read_sentences,
    split,
)
from speech.scripts import primary_language
from speech.store.outputs import write_json
from speech_assets.defs.evaluation import gate_table
from speech_assets.defs.metadata import markdown_table
from speech_assets.defs.partitions import CPU_POOL, Grid
from speech_assets.defs.resources import Workspace, version_of
from speech_assets.defs.retries import retried_when_unreachable
from training.intents import IntentSettings, IntentTrainingError, train

RECORD = "intent_model.json"


def definitions(grid: Grid) -> dg.Definitions:
    """The intent model of each language, as an asset with its check."""
    settings = grid.settings
    return dg.Definitions(
        assets=[
            dg.asset(
                partitions_def=grid.languages,
                group_name="models",
                kinds={"scikitlearn"},
                code_version=version_of(edition(), settings.intents, settings.intent_gates),
                pool=CPU_POOL,
                check_specs=[
                    dg.AssetCheckSpec(
                        "gates_passed",
                        asset="intent_model",
                        partitions_def=grid.languages,
                        blocking=True,
                        description="Every gate of `[intent_gates]`, on ways to say it that were not learnt; the "
                        "verdict is stored and read again by whoever takes the model into use.",
                    )
                ],
            )(intent_model)
        ]
    )


@retried_when_unreachable
def intent_model(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What tells the intents of a language and their slots; taken into use if it passes its gates."""
    language, settings = context.partition_key, workspace.settings
    try:
        sentences = sentences_of(language, settings.intents)
        model = train(sentences, language, settings.intents) if sentences else None
    except (SentencesError, IntentTrainingError) as refused:
        raise dg.Failure(str(refused), allow_retries=False) from refused
    digest, judged = "", None
    if model is not None:
        digest = put_intent_model(workspace.objects, model)
        judged = judge(model, digest, split(sentences)[1], settings.intent_gates)
        save_intent_verdict(judged, workspace.objects)
        if judged.passed:
            name_intent_champion(workspace.store, language, digest)
    with workspace.store.replace("intent_model", language) as staging:
        write_json(staging.path / RECORD, {"digest": digest, "sentences": len(sentences)})
    return dg.MaterializeResult(
        metadata={"sentences": len(sentences), "model_digest": digest, **(_told(judged) if judged else {})},
        data_version=dg.DataVersion(staging.published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="gates_passed",
                passed=judged is None or judged.passed,
                description=_outcome(language, judged),
            )
        ],
    )


def sentences_of(language: str, settings: IntentSettings) -> list[LabelledSentence]:
    """The labelled sentences of a language: of its file, or embedded ones; none where it has neither.

    Raises:
        SentencesError: the file cannot be used.
    """
    if language in settings.sentences:
        return read_sentences(Path(settings.sentences[language]).expanduser(), language)
    primary = primary_language(language) or ""
    return embedded_sentences(primary) if primary in embedded_languages() else []


def _told(judged: IntentVerdict) -> dict[str, dg.MetadataValue | float]:
    scores = judged.scores
    return {
        "intent_accuracy": round(scores.accuracy.estimate, 4),
        "noisy_intent_accuracy": round(scores.noisy_accuracy.estimate, 4),
        "out_of_scope": round(scores.out_of_scope.estimate, 4),
        "accuracy_without_context": round(scores.alone, 4),
        "slots_right": round(scores.slots, 4),
        "calibration_error": round(scores.calibration, 4),
        "gates": gate_table(judged.gates),
        "misunderstood": markdown_table(("said", "taken for"), sorted(scores.confused.items())),
    }


def _outcome(language: str, judged: IntentVerdict | None) -> str:
    if judged is None:
        return f"no labelled sentences in '{language}': name a file of them in `[intents] sentences` to have intents"
    failed = " ".join(gate.explanation for gate in judged.gates if not gate.passed)
    return f"refused, the former model stays in use: {failed}" if failed else "all gates passed, taken into use"
