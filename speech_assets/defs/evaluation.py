"""Evaluation: candidate and champion on the same test sets, and the verdict of the gates."""

from contextlib import suppress
from functools import partial

import dagster as dg

from deployment.pages import REPORTS, publish
from deployment.registry.models import RegistryError
from evaluation.corpus.expectations import in_delivered_order
from evaluation.corpus.listening import misplaced
from evaluation.evaluate import evaluate
from evaluation.gates import GateResult, judge, save_verdict
from evaluation.plots import wer_by_slice_png
from evaluation.report import REPORT_NAME, write_report
from evaluation.results import EVALUATION_NAME, Evaluation
from speech.bundle import BundleError, ModelBundle
from speech.corpus.manifest import Utterance
from speech.corpus.normalize import MANIFEST, rows_of
from speech.recognition.offline import Recognizer
from speech.store.objects import StoreError
from speech.store.outputs import Published, digest_file
from speech_assets.defs.corpus import UTTERANCES, validated_utterances
from speech_assets.defs.metadata import candidate_name, inline_plot, markdown_table, place_of, quarter_heading
from speech_assets.defs.partitions import CPU_POOL, Grid, quarter_and_language, same_language
from speech_assets.defs.resources import Workspace, version_of
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable, unreachable

REPORT_PLACE = "report"  # of a partition: the page of its evaluation, with the verdict in force


def definitions(grid: Grid) -> dg.Definitions:
    """The evaluation and the verdict of each model, as assets with their checks."""
    asset = partial(
        dg.asset, partitions_def=grid.quarter_language, group_name="evaluation", pool=CPU_POOL, kinds={"python"}
    )
    return dg.Definitions(
        assets=[
            asset(
                code_version="1",
                deps=["model_bundle", UTTERANCES, dg.AssetDep("benchmark_set", partition_mapping=same_language)],
                check_specs=[
                    dg.AssetCheckSpec(
                        "transcripts_heard_in_place",
                        asset="evaluation",
                        partitions_def=grid.quarter_language,
                        description="What the model in production hears in the quarter's test set (without one, the "
                        "candidate) fits its own transcripts, not those of rows nearby: so a delivery whose "
                        "transcripts moved shows even where all are equally long. Fails at most "
                        f"{grid.settings.corpus.false_alarm_rate:.1%} of good partitions, whatever their size; finds "
                        "some 14 rows that moved and were heard mostly right.",
                    )
                ],
            )(evaluation),
            asset(
                code_version=version_of(grid.settings.gates),
                deps=["evaluation"],
                check_specs=[
                    dg.AssetCheckSpec(
                        "gates_passed",
                        asset="verdict",
                        partitions_def=grid.quarter_language,
                        blocking=True,
                        description="Every gate of the settings; the verdict is stored and read again by whatever "
                        "moves the model.",
                    )
                ],
            )(verdict),
        ]
    )


@retried_when_unreachable
def evaluation(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """WER and CER of the candidate and of today's champion, on the quarter's own test set and on the frozen benchmark.

    Figures come with intervals by speaker and per slice; the report, with the worst utterances aligned and audible, is
    written with the verdict.
    """
    quarter, language = quarter_and_language(context)
    store = workspace.store
    name = candidate_name(quarter, language)
    sets = {
        "quarter": validated_utterances(workspace, quarter, language),
        "benchmark": store.current("benchmark_set", language),
    }
    result = evaluate(
        Recognizer(workspace.bundle(quarter, language)),
        {key: _test_rows(output) for key, output in sets.items()},
        lambda row: store.objects.located(row.audio),
        language=language,
        partition=context.partition_key,
        champion=_champion(workspace, language),
        dataset_digests={key: digest_file(output.file(MANIFEST)) for key, output in sets.items()},
        told=context.log.debug,
    )
    with store.replace("evaluation", quarter, language) as staging:
        result.save(staging.path)
    published = staging.published
    interval = result.sets["benchmark"].score.wer_interval
    tested = result.sets["quarter"].champion or result.sets["quarter"]
    in_place = misplaced(
        in_delivered_order(list(rows_of(sets["quarter"]))),
        {row.id: row.hypothesis for row in tested.rows},
        language,
        workspace.settings.corpus.false_alarm_rate,
    )
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "quarter": quarter_heading(quarter, language),
            **{name: round(value, 4) for name, value in figures_of(result).items()},
            "benchmark_wer_interval": f"{interval.low:.2%} - {interval.high:.2%}",
            "rtfx": round(result.rtfx, 1),
            "slices": _slice_table(result),
            "plot": inline_plot(wer_by_slice_png(result), "WER by slice"),
            "report": dg.MetadataValue.url(f"{workspace.settings.pages.url}/reports/{quarter}/{language}/"),
            "evaluation": place_of(published, EVALUATION_NAME),
        },
        data_version=dg.DataVersion(result.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="transcripts_heard_in_place",
                passed=not in_place.found,
                severity=dg.AssetCheckSeverity.WARN,
                description=in_place.explanation,
            )
        ],
    )


@retried_when_unreachable
def verdict(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The judgement of the gates over exactly this bundle, stored under its digest, and the report that shows it."""
    quarter, language = quarter_and_language(context)
    result = load_evaluation(workspace, quarter, language)
    judged = judge(result, workspace.settings.gates)
    save_verdict(judged, workspace.objects)
    sounds = _sounds(workspace, result, quarter, language)

    def sound(test_set: str, utterance: str) -> str | None:
        found = sounds.get((test_set, utterance))
        return found and workspace.objects.located(found)

    with workspace.store.replace(REPORT_PLACE, quarter, language) as staging:
        write_report(staging.path, result, verdict=judged, audio=sound)
    publish(workspace.objects, f"{REPORTS}/{quarter}/{language}", staging.published.file(REPORT_NAME))
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "passed": judged.passed,
            "gates_failed": len(judged.failures),
            "bundle_digest": judged.bundle_digest,
            "report": dg.MetadataValue.url(f"{workspace.settings.pages.url}/reports/{quarter}/{language}/"),
            "gates": gate_table(judged.gates),
        },
        data_version=dg.DataVersion(f"{judged.bundle_digest[:16]}-{judged.evaluation_digest[:16]}"),
        check_results=[
            dg.AssetCheckResult(
                check_name="gates_passed",
                passed=judged.passed,
                description="all gates passed" if judged.passed else f"refused: {judged.refusal()}",
                metadata={"gates": gate_table(judged.gates)},
            )
        ],
    )


def figures_of(result: Evaluation) -> dict[str, float]:
    """WER and CER by test set, and the champion's WER, as shares."""
    figures: dict[str, float] = {}
    for key, part in result.sets.items():
        figures |= {f"{key}_wer": part.score.wer, f"{key}_cer": part.score.cer}
        if part.champion:
            figures[f"champion_{key}_wer"] = part.champion.score.wer
    return figures


def load_evaluation(workspace: Workspace, quarter: str, language: str) -> Evaluation:
    """The stored evaluation of a partition."""
    return Evaluation.load(workspace.store.current("evaluation", quarter, language).path)


def _test_rows(output: Published) -> list[Utterance]:
    return [row for row in rows_of(output) if row.split == "test"]


def _sounds(workspace: Workspace, result: Evaluation, quarter: str, language: str) -> dict[tuple[str, str], str]:
    """Where the recordings of an evaluation are, by set and utterance; of a set made anew since, nothing is known."""
    places = {"quarter": ("utterances", quarter, language), "benchmark": ("benchmark_set", language)}
    found: dict[tuple[str, str], str] = {}
    for key, place in places.items():
        with suppress(StoreError, OSError):
            output = workspace.store.current(*place)
            if digest_file(output.file(MANIFEST)) == result.dataset_digests.get(key):
                found |= {(key, row.id): row.audio for row in _test_rows(output)}
    return found


def gate_table(gates: tuple[GateResult, ...]) -> dg.MarkdownMetadataValue:
    """One row a gate: what was measured, what was asked, how it ended; failures first."""
    return markdown_table(
        ("gate", "set", "slice", "value", "limit", "", "why"),
        [
            (
                g.name,
                g.test_set,
                g.slice,
                f"{g.value:.4g}",
                f"{g.threshold:.4g}",
                "passed" if g.passed else "FAILED",
                g.explanation,
            )
            for g in sorted(gates, key=lambda gate: gate.passed)
        ],
    )


def _champion(workspace: Workspace, language: str) -> Recognizer | None:
    """Today's champion as people decided it, whatever was deleted or moved in MLflow since.

    Raises:
        dg.Failure: the ledger is broken, or its champion's bundle is nowhere.
    """
    promotions = workspace.promotions()
    with refusals_are_final():
        now = promotions.current(language)
    if now is None:
        return None
    try:
        folder = promotions.registry.obtain(now.digest, now.model, now.version)
        return Recognizer(ModelBundle.load(folder, now.digest))
    except (RegistryError, BundleError) as gone:
        if unreachable(gone):
            raise
        raise dg.Failure(
            f"the champion of '{language}', {now.model} version {now.version} (bundle {now.digest[:12]}), cannot be "
            f"compared with: {gone}; roll back to an earlier champion with the job `rollback`, or put its bundle back "
            f"at {promotions.registry.shelf.place(now.digest)}, then evaluate again",
            allow_retries=False,
        ) from gone


def _slice_table(result: Evaluation) -> dg.MarkdownMetadataValue:
    rows = []
    for key, part in result.sets.items():
        for name, score in {"all": part.score, **part.slices}.items():
            interval = f"{score.wer_interval.low:.1%} - {score.wer_interval.high:.1%}"
            rows.append((key, name, f"{score.wer:.2%}", interval, f"{score.cer:.2%}", score.words, score.speakers))
    return markdown_table(("set", "slice", "WER", "95 % interval", "CER", "words", "speakers"), rows)
