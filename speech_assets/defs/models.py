"""Models: a base per language, a fine-tune per quarter and language, and the bundle that is served.

Training runs in a process of its own (`training.command`, by default `soundstage train`), reporting through
Dagster Pipes: NeMo's memory and crashes stay out of Dagster's, and the same command works by hand. Its folder is named
by what goes into the training, so a run that was killed resumes there. What it leaves goes on the registry's shelf, to
which the published record refers, and the folder is removed; a training whose inputs are those of the output in force
is not repeated.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import dagster as dg

from deployment.registry.shelf import CHECKPOINT
from speech.audio.decode import decode
from speech.bundle import BundleError, ModelBundle, with_calibration
from speech.corpus.manifest import quarter_title
from speech.corpus.normalize import MANIFEST, rows_of
from speech.store.objects import Missing, StoreError
from speech.store.outputs import DIGEST_CHARS, Published, digest_file, parse_json, write_json
from speech_assets.defs.corpus import TRAINING_DATA, UTTERANCES, validated_utterances
from speech_assets.defs.metadata import candidate_name, markdown_table, quarter_heading
from speech_assets.defs.partitions import CPU_POOL, Grid, quarter_and_language, same_language
from speech_assets.defs.processes import SupervisedProcess, alone_in, clear_abandoned
from speech_assets.defs.resources import BUNDLE_NAME, Workspace, git_revision, version_of
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.defs.waiting import wait_until_built
from speech_assets.partition_keys import partition_of
from training.recipe import load_recipe
from training.settings import TrainingSettings
from training.specification import StoreSpec, TrackingSpec, TrainingSpec, fingerprint_of

if TYPE_CHECKING:
    from evaluation.calibration import CalibrationFit

ROOT = Path(__file__).parents[2]
TRAINING_RECORD = "training.json"
PUBLISHED_BASE = "base.json"
BUNDLE = "bundle"
SPECIFICATION = "specification.json"
FINGERPRINT, CALIBRATION = "fingerprint", "calibration"  # of a training record
BUNDLE_DIGEST, CHECKPOINT_DIGEST = "bundle_digest", "checkpoint_digest"
BATCH = 16  # utterances recognised at once
BASE_MODEL, FINETUNED_MODEL = dg.AssetKey("base_model"), dg.AssetKey("finetuned_model")


def definitions(grid: Grid) -> dg.Definitions:
    """The models of a deployment, as assets with their checks."""
    settings = grid.settings.training
    changed = (
        dg.AutomationCondition.code_version_changed()
        & ~dg.AutomationCondition.in_progress()
        & ~dg.AutomationCondition.any_deps_missing()
        & dg.AutomationCondition.all_deps_blocking_checks_passed()
    )
    return dg.Definitions(
        assets=[
            dg.asset(
                partitions_def=grid.languages,
                group_name="models",
                kinds={"pytorch"},
                code_version=recipe_version(settings.base_recipe, settings),
                pool=settings.pool,
                deps=[
                    dg.AssetDep("base_corpus", partition_mapping=same_language),
                    "benchmark_set",  # frozen before anything is learnt
                ],
                automation_condition=changed if grid.settings.retraining.on_change else None,
            )(base_model),
            dg.asset(
                partitions_def=grid.quarter_language,
                group_name="models",
                kinds={"pytorch"},
                code_version=recipe_version(settings.finetune_recipe, settings),
                pool=settings.pool,
                deps=[
                    dg.AssetDep(BASE_MODEL, partition_mapping=same_language),
                    UTTERANCES,
                    dg.AssetDep(TRAINING_DATA, partition_mapping=grid.training_window),
                ],
            )(finetuned_model),
            dg.asset(
                partitions_def=grid.quarter_language,
                group_name="models",
                kinds={"onnx"},
                code_version="1",
                pool=CPU_POOL,
                deps=[FINETUNED_MODEL],
                check_specs=[
                    dg.AssetCheckSpec(
                        "same_text_as_checkpoint",
                        asset="model_bundle",
                        partitions_def=grid.quarter_language,
                        blocking=True,
                        description="The exported network gives the checkpoint's text on real utterances.",
                    )
                ],
            )(model_bundle),
        ]
    )


def train(
    context: dg.AssetExecutionContext,
    workspace: Workspace,
    pipes: SupervisedProcess,
    *,
    place: Sequence[str],
    recipe: str,
    name: str,
    language: str,
    corpora: Mapping[str, Published],
    base: str | None,
    served: str | None = None,
) -> dg.MaterializeResult:
    """Train in a process of its own, put what comes of it on the shelf, and publish its record under `place`.

    `corpora` are the validated corpus partitions to learn from, by quarter; on the dev rows of the quarter `served` the
    confidence of the exported bundle is calibrated. Without it the model is a base: its checkpoint alone is kept.
    """
    whole, settings = workspace.settings, workspace.settings.training
    shelf = workspace.registry().shelf
    manifests = [corpus.file(MANIFEST) for corpus in corpora.values()]
    data = {quarter: digest_file(manifest) for quarter, manifest in zip(corpora, manifests, strict=True)}
    run_tags = {"dagster_run_id": context.run.run_id, "asset": "/".join(place), "git_revision": git_revision()}
    spec = TrainingSpec(
        recipe=recipe,
        language=language,
        name=name,
        train=manifests,
        dev=manifests,
        base=base,
        store=StoreSpec(home=whole.home, cache=whole.cache, cache_bytes=whole.cache_bytes),
        output=whole.local.joinpath("training", *place),
        seed=settings.seed,
        overrides={"threads": settings.threads, **settings.overrides},
        shared_speakers=workspace.settings.corpus.split == "given",
        mlflow=TrackingSpec(tracking_uri=workspace.tracking_uri, experiment=f"training-{language}", tags=run_tags),
    )
    fingerprint = fingerprint_of(spec)
    work = spec.output / fingerprint[:DIGEST_CHARS]
    with alone_in(work) as alone:
        published = _trained(workspace, place, fingerprint)
        if published is None:
            specification = work / SPECIFICATION
            write_json(specification, spec.model_copy(update={"output": work}).model_dump(mode="json"))
            pipes.run(
                context=context,
                command=[*training_command(settings.command), str(specification)],
                cwd=ROOT,
                alone=alone,
                max_runtime_s=settings.max_runtime_s,
                setting="training.max_runtime_s",
            )
            record = parse_json((work / TRAINING_RECORD).read_bytes())
            bundle = ModelBundle.load(work / BUNDLE)
            if served is not None:
                fit = _calibration(bundle, corpora[served], language)
                record[CALIBRATION] = fit.note
                with TemporaryDirectory(dir=work) as scratch:
                    bundle = shelf.put(with_calibration(bundle, fit.calibration, Path(scratch) / BUNDLE))
            record |= {
                "data": data,
                "parity": dict(bundle.parity),
                FINGERPRINT: fingerprint,
                BUNDLE_DIGEST: bundle.digest,
                CHECKPOINT_DIGEST: shelf.put_checkpoint(work / CHECKPOINT),
            }
            with workspace.store.replace(*place) as staging:
                write_json(staging.path / TRAINING_RECORD, record)
            published = staging.published
        shutil.rmtree(work, ignore_errors=True)
    clear_abandoned(work.parent)
    record = training_record(published)
    device_hours = record["seconds"] / 3600 * record.get("hardware", {}).get("devices", 1)
    price = settings.price_per_device_hour
    return dg.MaterializeResult(
        metadata={
            "model": name,
            "dev_wer": round(record["dev_wer"], 4),
            "loss": round(record["loss"], 4),
            "steps": record["steps"],
            "training_seconds": round(record["seconds"], 1),
            "device_hours": round(device_hours, 4),
            **({"cost": round(device_hours * price, 2)} if price else {}),
            "audio_hours_seen": round(record["audio_hours_seen"], 3),
            "parity": record["parity"].get("equal", 0.0),
            "resumed_from": record.get("resumed_from") or 0,
            "findings": "; ".join(record.get("findings", [])) or "none",
            "data": markdown_table(("quarter", "manifest sha256"), list(data.items())),
            "checkpoint": dg.MetadataValue.path(shelf.checkpoint_place(record[CHECKPOINT_DIGEST])),
            "mlflow_run": dg.MetadataValue.url(workspace.mlflow_run_url(record)),
        },
        data_version=dg.DataVersion(record[BUNDLE_DIGEST]),
    )


def _trained(workspace: Workspace, place: Sequence[str], fingerprint: str) -> Published | None:
    """The output in force at `place`, if it is what this very training came to, and what it names is whole."""
    shelf = workspace.registry().shelf
    try:
        published = workspace.store.current(*place)
        record = training_record(published)
        if record.get(FINGERPRINT) != fingerprint:
            return None
        shelf.checkpoint(record[CHECKPOINT_DIGEST])
        if CALIBRATION in record:
            shelf.load(record[BUNDLE_DIGEST])
        return published
    except (StoreError, BundleError, OSError, ValueError, LookupError):
        return None


def _calibration(exported: ModelBundle, corpus: Published, language: str) -> "CalibrationFit":
    """Fit a bundle's confidence on the dev rows of a corpus."""
    from evaluation.calibration import calibrate
    from evaluation.scoring import word_outcomes
    from speech.recognition.offline import Recognizer

    dev = [row for row in rows_of(corpus) if row.split == "dev"]
    recognizer = Recognizer(exported)
    outcomes: list[tuple[float, bool]] = []
    for start in range(0, len(dev), BATCH):
        batch = dev[start : start + BATCH]
        heard = recognizer.transcribe_batch([decode(corpus.objects.located(row.audio)).samples for row in batch])
        for row, recognition in zip(batch, heard, strict=True):
            outcomes += word_outcomes(row.text, recognition.words, language)
    return calibrate([confidence for confidence, _ in outcomes], [correct for _, correct in outcomes])


def training_command(command: str) -> list[str]:
    """The words of a training command; `python` and `soundstage` are those of the environment that runs this."""
    first, *others = shlex.split(command)
    own = {"python": [sys.executable], "soundstage": [sys.executable, "-m", "speech_assets.cli"]}
    return [*own.get(first, [first]), *others]


def recipe_version(recipe: str, settings: TrainingSettings) -> str:
    """Changes whenever a recipe does, so that Dagster shows the models made with the old one as stale."""
    return version_of(json.dumps(load_recipe(recipe, settings.overrides).deciding(), sort_keys=True))


def training_record(output: Published) -> dict[str, Any]:
    """What a training wrote about itself: data, recipe, steps, loss, WER, seconds, and digests of what came of it."""
    record: dict[str, Any] = parse_json(output.read(TRAINING_RECORD))
    return record


@retried_when_unreachable
def base_model(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    pipes: dg.ResourceParam[SupervisedProcess],
) -> dg.MaterializeResult:
    """What a language's fine-tunes start from: a recipe trained from scratch on the first quarters.

    Where the settings name a published checkpoint or a `.nemo` file for the language, the fine-tunes start from that,
    and this asset only records it.
    """
    language = context.partition_key
    published = workspace.settings.training.base.get(language)
    if published is not None:
        with workspace.store.replace("base_model", language) as staging:
            write_json(staging.path / PUBLISHED_BASE, {"checkpoint": published})
        return dg.MaterializeResult(
            metadata={"checkpoint": published}, data_version=dg.DataVersion(staging.published.digest)
        )
    quarters = workspace.grid.first_quarters(workspace.settings.training.base_quarters)
    return train(
        context,
        workspace,
        pipes,
        place=("base_model", language),
        recipe=workspace.settings.training.base_recipe,
        name=f"{language}-base",
        language=language,
        corpora={quarter: validated_utterances(workspace, quarter, language) for quarter in quarters},
        base=None,
    )


@retried_when_unreachable
def finetuned_model(
    context: dg.AssetExecutionContext,
    workspace: dg.ResourceParam[Workspace],
    pipes: dg.ResourceParam[SupervisedProcess],
) -> dg.MaterializeResult:
    """The base model tuned to the latest quarters: this one and those of the training window before it.

    The quarter itself must have passed its corpus checks; earlier quarters that did not are left out.
    """
    quarter, language = quarter_and_language(context)
    corpora = {quarter: validated_utterances(workspace, quarter, language)}
    window = workspace.grid.window_ending(quarter, workspace.settings.training.window)[:-1]
    wait_until_built(context, window, language)
    for earlier in window:
        try:
            corpora[earlier] = validated_utterances(workspace, earlier, language)
        except dg.Failure as refused:
            context.log.info(f"learning without {quarter_title(earlier)}: {refused.description}")
    return train(
        context,
        workspace,
        pipes,
        place=("finetuned_model", quarter, language),
        recipe=workspace.settings.training.finetune_recipe,
        name=candidate_name(quarter, language),
        language=language,
        corpora=dict(sorted(corpora.items())),
        base=_base_of(workspace, language),
        served=quarter,
    )


def _base_of(workspace: Workspace, language: str) -> str:
    """What fine-tunes start from: the checkpoint of a base model, or the published one that it stands for."""
    output = workspace.store.current("base_model", language)
    try:
        return str(json.loads(output.read(PUBLISHED_BASE))["checkpoint"])
    except Missing:
        digest = training_record(output)[CHECKPOINT_DIGEST]
        return str(workspace.registry().shelf.checkpoint(digest, f"`base_model` of {language}"))


@retried_when_unreachable
def model_bundle(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The fine-tuned network as it is served: ONNX with streaming caches, tokenizer, and calibrated confidence."""
    quarter, language = quarter_and_language(context)
    record = training_record(workspace.store.current("finetuned_model", quarter, language))
    shelf = workspace.registry().shelf
    bundle = shelf.load(record[BUNDLE_DIGEST], f"`finetuned_model` of {partition_of(quarter, language)}")
    with workspace.store.replace("model_bundle", quarter, language) as staging:
        write_json(staging.path / BUNDLE_NAME, {"digest": bundle.digest})
    equal, compared = bundle.parity.get("equal", 0.0), bundle.parity.get("utterances", 0)
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "bundle_digest": bundle.digest,
            "parity": equal,
            "parity_utterances": compared,
            "calibration": record[CALIBRATION],
            "calibration_words": bundle.calibration.words if bundle.calibration else 0,
            "megabytes": round(sum(p.stat().st_size for p in bundle.path.iterdir()) / 1e6, 2),
            "bundle": dg.MetadataValue.path(shelf.place(bundle.digest)),
        },
        data_version=dg.DataVersion(bundle.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="same_text_as_checkpoint",
                passed=compared > 0 and equal >= workspace.settings.gates.parity,
                description=f"{equal:.1%} of {compared} utterances give the checkpoint's text",
                metadata={"differences": json.dumps(bundle.parity.get("differences", []), ensure_ascii=False)},
            )
        ],
    )
