"""Models: a base per language, a fine-tune per quarter and language, and the bundle that is served.

Training runs in a process of its own (`training.command`, by default `soundstage train`), reporting through
Dagster Pipes: NeMo's memory and crashes stay out of Dagster's, and the same command works by hand. Its folder is named
by what goes into the training, so a run that was killed resumes there. What it leaves is published and the folder
removed; a training whose inputs are those of the output in force is not repeated.
"""

import json
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import dagster as dg

from speech.audio.decode import decode
from speech.bundle import BundleError, ModelBundle
from speech.corpus.manifest import quarter_title
from speech.corpus.normalize import MANIFEST, rows_of
from speech.store.objects import Missing, StoreError
from speech.store.outputs import DIGEST_CHARS, Published, digest_file, write_json
from speech_assets.defs.corpus import TRAINING_DATA, UTTERANCES, validated_utterances
from speech_assets.defs.metadata import candidate_name, markdown_table, place_of, quarter_heading
from speech_assets.defs.partitions import CPU_POOL, Grid, quarter_and_language, same_language
from speech_assets.defs.processes import SupervisedProcess, alone_in, clear_abandoned
from speech_assets.defs.resources import BUNDLE_NAME, Workspace, git_revision, version_of
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.defs.waiting import wait_until_built
from training.recipe import load_recipe
from training.settings import TrainingSettings
from training.specification import StoreSpec, TrackingSpec, TrainingSpec, fingerprint_of

ROOT = Path(__file__).parents[2]
TRAINING_RECORD = "training.json"
CHECKPOINT = "checkpoint.nemo"
PUBLISHED_BASE = "base.json"
BUNDLE = "bundle"
SPECIFICATION = "specification.json"
FINGERPRINT = "fingerprint"
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
) -> dg.MaterializeResult:
    """Train in a process of its own and publish checkpoint, exported bundle and record under `place`.

    `corpora` are the validated corpus partitions to learn from, by quarter.
    """
    whole, settings = workspace.settings, workspace.settings.training
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
            with workspace.store.replace(*place) as staging:
                shutil.copyfile(work / CHECKPOINT, staging.path / CHECKPOINT)
                facts = {"data": data, FINGERPRINT: fingerprint}
                write_json(staging.path / TRAINING_RECORD, {**training_record(work), **facts})
                shutil.copytree(work / BUNDLE, staging.path / BUNDLE)
            published = staging.published
        shutil.rmtree(work, ignore_errors=True)
    clear_abandoned(work.parent)
    folder = published.path
    record = training_record(folder)
    bundle = ModelBundle.load(folder / BUNDLE)
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
            "parity": bundle.parity.get("equal", 0.0),
            "resumed_from": record.get("resumed_from") or 0,
            "data": markdown_table(("quarter", "manifest sha256"), list(data.items())),
            "checkpoint": place_of(published, CHECKPOINT),
            "mlflow_run": dg.MetadataValue.url(workspace.mlflow_run_url(record)),
        },
        data_version=dg.DataVersion(bundle.digest),
    )


def _trained(workspace: Workspace, place: Sequence[str], fingerprint: str) -> Published | None:
    """The output in force at `place`, if it is what this very training came to, and whole."""
    try:
        published = workspace.store.current(*place)
        folder = published.path
        ModelBundle.load(folder / BUNDLE)
        same = (folder / CHECKPOINT).is_file() and training_record(folder).get(FINGERPRINT) == fingerprint
        return published if same else None
    except (StoreError, BundleError, OSError, ValueError):
        return None


def training_command(command: str) -> list[str]:
    """The words of a training command; `python` and `soundstage` are those of the environment that runs this."""
    first, *others = shlex.split(command)
    own = {"python": [sys.executable], "soundstage": [sys.executable, "-m", "speech_assets.cli"]}
    return [*own.get(first, [first]), *others]


def recipe_version(recipe: str, settings: TrainingSettings) -> str:
    """Changes whenever a recipe does, so that Dagster shows the models made with the old one as stale."""
    return version_of(json.dumps(load_recipe(recipe, settings.overrides).deciding(), sort_keys=True))


def training_record(folder: Path) -> dict[str, Any]:
    """What a training wrote about itself: data, recipe, steps, loss, WER, seconds."""
    record: dict[str, Any] = json.loads((folder / TRAINING_RECORD).read_text())
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
        base=_base_of(workspace.store.current("base_model", language)),
    )


def _base_of(output: Published) -> str:
    """What fine-tunes start from: the checkpoint of a base model, or the published one that it stands for."""
    try:
        return str(json.loads(output.read(PUBLISHED_BASE))["checkpoint"])
    except Missing:
        return str(output.file(CHECKPOINT))


@retried_when_unreachable
def model_bundle(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The fine-tuned network as it is served: ONNX with streaming caches, tokenizer, and calibrated confidence."""
    from evaluation.calibration import calibrate
    from evaluation.scoring import word_outcomes
    from speech.bundle import with_calibration
    from speech.recognition.offline import Recognizer

    quarter, language = quarter_and_language(context)
    exported = ModelBundle.load(workspace.store.current("finetuned_model", quarter, language).path / BUNDLE)
    objects = workspace.objects
    dev = [row for row in rows_of(validated_utterances(workspace, quarter, language)) if row.split == "dev"]
    recognizer = Recognizer(exported)
    outcomes: list[tuple[float, bool]] = []
    for start in range(0, len(dev), BATCH):
        batch = dev[start : start + BATCH]
        heard = recognizer.transcribe_batch([decode(objects.located(row.audio)).samples for row in batch])
        for row, recognition in zip(batch, heard, strict=True):
            outcomes += word_outcomes(row.text, recognition.words, language)
    calibration = calibrate([confidence for confidence, _ in outcomes], [correct for _, correct in outcomes])
    shelf = workspace.registry().shelf
    with TemporaryDirectory(prefix="soundstage-bundle-") as scratch:
        bundle = shelf.put(with_calibration(exported, calibration.calibration, Path(scratch) / BUNDLE))
    with workspace.store.replace("model_bundle", quarter, language) as staging:
        write_json(staging.path / BUNDLE_NAME, {"digest": bundle.digest})
    equal, compared = bundle.parity.get("equal", 0.0), bundle.parity.get("utterances", 0)
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "bundle_digest": bundle.digest,
            "parity": equal,
            "parity_utterances": compared,
            "calibration": calibration.note,
            "calibration_words": calibration.words,
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
