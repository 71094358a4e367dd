"""Inference: recordings that came in within an hour, transcribed by the champions, published or given to people.

An hour is the only partition. Every asset of it materialises, even empty, and the same hour run twice gives the same
bytes. Which champion heard a recording stands in its transcript. A recording that cannot be used is a dead letter with
its reason and stops nobody; a check counts that what arrived is published, asked about, a dead letter, or the same
recording as before.
"""

import functools
import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import dagster as dg

from deployment.batch import branch, stages
from deployment.batch.arrivals import arrivals_of, hour_of, hours_with_arrivals, receive
from deployment.batch.branch import FORMS, ReviewTask, asked_about, is_published, task_of
from deployment.batch.engine import Lost, Pool
from deployment.batch.hour import ARRIVALS, CHOSEN, DEAD_LETTERS, HEARD, RECORDINGS, SPEECH, TASKS, TRANSCRIPTS
from deployment.batch.stages import Chosen, DeadLetter, Heard, Models, NormalizedRecording, Piece
from deployment.transcribe import champion_bundle
from speech.audio.decode import write_flac_chunks
from speech.bundle import ModelBundle
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech.vad import Stretch
from speech_assets.chain import INFERENCE
from speech_assets.defs.alerts import Alert, send
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.partitions import CPU_POOL, Grid
from speech_assets.defs.resources import Workspace, version_of
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable
from speech_assets.partition_keys import PARTITION_TAG

TRANSCRIBE = "transcribe_hour"  # the job
SAY_EVERY_S = 10.0
DoneT = TypeVar("DoneT")
RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)


def definitions(grid: Grid) -> dg.Definitions:
    """The inference graph, its job and its schedule."""
    settings = grid.settings.inference
    asset = partial(dg.asset, partitions_def=grid.hours, group_name="inference", pool=CPU_POOL, code_version="1")
    by_threshold = version_of(branch.EDITION, str(settings.publish_confidence))
    check = partial(dg.AssetCheckSpec, partitions_def=grid.hours)
    assets = [
        asset(kinds={"python"})(incoming_audio),
        asset(kinds={"ffmpeg"}, deps=["incoming_audio"])(normalized_recordings),
        asset(kinds={"onnx"}, deps=["normalized_recordings"], code_version=version_of(settings.vad))(speech_segments),
        asset(kinds={"onnx"}, deps=["speech_segments", "normalized_recordings"])(recognized_segments),
        asset(
            deps=["recognized_segments", "normalized_recordings", "incoming_audio"],
            check_specs=[
                check("every_recording_accounted_for", asset="transcripts", blocking=True),
                check("mean_confidence", asset="transcripts", description="An hour that is unsure is told to people."),
            ],
        )(transcripts),
        asset(deps=["transcripts", "incoming_audio"], code_version=by_threshold)(published_transcripts),
        asset(
            code_version=by_threshold,
            deps=["transcripts", "published_transcripts", "normalized_recordings"],
            check_specs=[check("each_transcript_went_one_way", asset="review_tasks", blocking=True)],
        )(review_tasks),
    ]
    job = dg.define_asset_job(
        TRANSCRIBE,
        selection=dg.AssetSelection.assets(*INFERENCE),
        partitions_def=grid.hours,
        description="What arrived within an hour, from its bytes to transcripts.",
        op_retry_policy=RETRIES,
    )
    off = dg.DefaultScheduleStatus.STOPPED
    return dg.Definitions(
        assets=assets,
        jobs=[job, receive_uploads],
        schedules=[
            dg.ScheduleDefinition(
                name="arrivals",
                cron_schedule="*/5 * * * *",
                execution_timezone="UTC",
                job=receive_uploads,
                default_status=off,
                description="Receives uploads every five minutes, once switched on.",
            ),
            dg.schedule(
                name="hourly_transcription",
                cron_schedule="0 * * * *",
                execution_timezone="UTC",
                target=job,
                default_status=off,
                description="Transcribes each hour that has ended and whose recordings are not transcribed yet, late "
                "ones too, once switched on.",
            )(transcribe_what_came),
        ],
    )


def transcribe_what_came(
    context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SkipReason | list[dg.RunRequest]:
    """A run for each hour with recordings that are not transcribed yet, and that no run is at work on.

    The key names the recordings and the run before: an hour that got more of them, or whose run failed, is asked for
    again at the next tick, and never twice from the same state.
    """
    requests = []
    for hour, recordings in _untranscribed(workspace, before=hour_of(context.scheduled_execution_time)):
        before = next(iter(context.instance.get_runs(dg.RunsFilter(tags={PARTITION_TAG: hour}), limit=1)), None)
        if before is None or before.is_finished:
            key = f"{hour}/{recordings}/{before.run_id if before else 'first'}"
            requests.append(dg.RunRequest(run_key=key, partition_key=hour))
    return requests or dg.SkipReason("nothing that has arrived in an hour that has ended waits to be transcribed")


@dg.op(pool=CPU_POOL)
@retried_when_unreachable
def receive_what_came(context: dg.OpExecutionContext, workspace: dg.ResourceParam[Workspace]) -> None:
    """Receive what has come into the folder of uploads since the last look."""
    settings = workspace.settings
    folder = settings.inference.folder(settings.local)
    received = receive(folder, workspace.objects, settings.languages)
    context.log.info(f"{len(received)} recordings received from {folder}")


@dg.job(description="Take what has come into the folder of uploads into the data store, under the present hour.")
def receive_uploads() -> None:
    """Uploads become arrivals of an hour."""
    receive_what_came()


def _untranscribed(workspace: Workspace, before: str) -> Iterator[tuple[str, str]]:
    """Hours that have ended and hold recordings that have not gone through, with a digest of their list."""
    first = workspace.grid.hours.get_first_partition_key() or ""
    for hour in hours_with_arrivals(workspace.objects):
        if not first <= hour < before:
            continue
        if not workspace.hour(hour).is_transcribed:
            arrivals = to_lines(arrivals_of(workspace.objects, hour))
            yield hour, hashlib.sha256(arrivals).hexdigest()[:16]


@retried_when_unreachable
def incoming_audio(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The recordings that arrived within the hour, whole, by the digest of their bytes."""
    hour = workspace.hour(context.partition_key)
    arrivals = arrivals_of(workspace.objects, hour.key)
    published = hour.publish("incoming_audio", {ARRIVALS: to_lines(arrivals)})
    return dg.MaterializeResult(
        metadata={
            "recordings": len(arrivals),
            "bytes": sum(arrival.size for arrival in arrivals),
            "the_same_as_before": sum(arrival.same_as is not None for arrival in arrivals),
            "manifest": place_of(published, ARRIVALS),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def normalized_recordings(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """Each recording as 16 kHz mono FLAC with its quality measured; what cannot be decoded is a dead letter."""
    hour = workspace.hour(context.partition_key)
    arrivals = [arrival for arrival in hour.arrivals() if arrival.same_as is None]
    with workspace.store.replace("normalized_recordings", hour.key) as staging:
        with _pool(workspace) as pool:
            done = _told(context, pool.each(partial(stages.normalized, folder=staging.path), arrivals), len(arrivals))
            outcomes = [stages.not_normalized(one.item) if isinstance(one, Lost) else one for one in done]
        kept = [outcome for outcome in outcomes if isinstance(outcome, NormalizedRecording)]
        dead = [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
        write_atomically(staging.path / RECORDINGS, to_lines(kept))
        write_atomically(staging.path / DEAD_LETTERS, to_lines(dead))
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "recordings": len(kept),
            "audio_hours": round(sum(row.recording.duration_s for row in kept) / 3600, 4),
            "dead_letters": len(dead),
            "why": markdown_table(("name", "code", "reason"), [(row.name, row.code, row.reason) for row in dead]),
            "manifest": place_of(published, RECORDINGS),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def speech_segments(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """Where somebody speaks in each recording; silence, music and noise have no stretch."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    recordings = hour.recordings()
    with _pool(workspace) as pool:
        work = partial(stages.speech_in, settings=settings.vad)
        done = _told(context, pool.each(work, recordings), len(recordings))
        found = [stages.not_looked_through(one.item, settings.vad) if isinstance(one, Lost) else one for one in done]
    published = hour.publish("speech_segments", {SPEECH: to_lines(found)})
    seconds = sum(stretch.end_s - stretch.start_s for speech in found for stretch in speech.stretches)
    return dg.MaterializeResult(
        metadata={
            "segments": sum(len(speech.stretches) for speech in found),
            "speech_hours": round(seconds / 3600, 4),
            "without_speech": sum(not speech.stretches for speech in found),
            "manifest": place_of(published, SPEECH),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def recognized_segments(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """What is said in each stretch of speech, by the champion of its language; alike long ones are heard together."""
    hour = workspace.hour(context.partition_key)
    recordings = {row.id: row for row in hour.recordings()}
    chosen, bundles = _chosen(recordings.values(), workspace)
    languages = {choice.id: choice.language for choice in chosen}
    pieces = [
        Piece(
            id=found.id,
            place=place,
            audio=recordings[found.id].audio,
            stretch=stretch,
            language=languages[found.id],
        )
        for found in hour.speech()
        for place, stretch in enumerate(found.stretches)
    ]
    began = time.monotonic()
    with _pool(workspace, bundles) as pool:
        heard = sorted(_told(context, _heard(pool, pieces), len(pieces)), key=lambda piece: (piece.id, piece.place))
    took_s = time.monotonic() - began
    published = hour.publish("recognized_segments", {CHOSEN: to_lines(chosen), HEARD: to_lines(heard)})
    seconds = sum(piece.stretch.end_s - piece.stretch.start_s for piece in pieces)
    return dg.MaterializeResult(
        metadata={
            "segments": len(heard),
            "words": sum(len(piece.words) for piece in heard),
            "models": markdown_table(
                ("language", "model", "recordings", "for want of a champion of their language"),
                [
                    (language, model, count, sum(c.instead for c in chosen if c.language == language))
                    for (language, model), count in sorted(Counter((c.language, c.model) for c in chosen).items())
                ],
            ),
            "audio_seconds_a_second": round(seconds / took_s, 1) if heard else 0.0,
            "manifest": place_of(published, HEARD),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def transcripts(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """A transcript of each recording, with the models that wrote it."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    recordings = hour.recordings()
    heard: dict[str, list[Heard]] = {row.id: [] for row in recordings}
    for piece in hour.heard():
        heard[piece.id].append(piece)
    by = {choice.id: choice for choice in hour.chosen()}
    written = [stages.merged(row, heard[row.id], by[row.id]) for row in recordings]
    published = hour.publish("transcripts", {TRANSCRIPTS: to_lines(written)})
    arrivals = hour.arrivals()
    counts = {
        "arrived": len(arrivals),
        "transcripts": len(written),
        "dead_letters": len(hour.dead_letters()),
        "the_same_as_before": sum(arrival.same_as is not None for arrival in arrivals),
    }
    scores = [transcript.confidence for transcript in written if transcript.words]
    mean = sum(scores) / len(scores) if scores else None
    sure = mean is None or mean >= settings.alert_confidence
    if not sure:
        _tell(context, workspace, f"the mean confidence is {mean:.2f}, below {settings.alert_confidence:g}")
    return dg.MaterializeResult(
        metadata={
            **counts,
            "mean_confidence": round(mean, 4) if mean is not None else dg.MetadataValue.null(),
            "recordings": markdown_table(
                ("recording", "language", "seconds", "words", "confidence", "text"),
                [
                    (row.name, said.language, round(said.duration_s, 1), len(said.words), said.confidence, said.text)
                    for row, said in zip(recordings, written, strict=True)
                ],
            ),
            "manifest": place_of(published, TRANSCRIPTS),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_recording_accounted_for",
                passed=counts["arrived"] == sum(counts.values()) - counts["arrived"],
                metadata=counts,
            ),
            dg.AssetCheckResult(
                check_name="mean_confidence",
                passed=sure,
                severity=dg.AssetCheckSeverity.WARN,
                description=None if sure else "people were told, as far as [alerts] names anybody",
                metadata={"limit": settings.alert_confidence, **({"mean": mean} if mean is not None else {})},
            ),
        ],
    )


@retried_when_unreachable
def published_transcripts(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """The transcripts that are sure enough to be used, in every form."""
    hour, threshold = workspace.hour(context.partition_key), workspace.settings.inference.publish_confidence
    sure = [transcript for transcript in hour.transcripts() if is_published(transcript, threshold)]
    with workspace.store.replace("published_transcripts", hour.key) as staging:
        write_atomically(staging.path / ARRIVALS, hour.output("incoming_audio").read(ARRIVALS))
        write_atomically(staging.path / TRANSCRIPTS, to_lines(sure))
        for transcript in sure:
            for form in FORMS:
                text = branch.written(transcript, form, str(transcript.id))
                write_atomically(staging.path / form / f"{transcript.id}.{form}", text)
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "transcripts": len(sure),
            "without_speech": sum(not transcript.words for transcript in sure),
            "forms": ", ".join(FORMS),
            "manifest": place_of(published, TRANSCRIPTS),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def review_tasks(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What people are asked about: the unsure segments of each transcript that is not published, with their audio."""
    hour, threshold = workspace.hour(context.partition_key), workspace.settings.inference.publish_confidence
    recordings = {row.recording.digest: row for row in hour.recordings()}
    written = hour.transcripts()
    public = {transcript.id for transcript in hour.published()}
    with workspace.store.replace("review_tasks", hour.key) as staging:
        tasks = [
            _clipped(task_of(transcript, segment), recordings[transcript.source_digest], workspace, staging.path)
            for transcript in written
            if transcript.id not in public
            for segment in asked_about(transcript, threshold)
        ]
        write_atomically(staging.path / TASKS, to_lines(tasks))
    published = staging.published
    asked = {task.transcript for task in tasks}
    return dg.MaterializeResult(
        metadata={
            "tasks": len(tasks),
            "transcripts": len(asked),
            "segments": markdown_table(
                ("segment", "confidence", "heard"), [(task.id[:12], task.confidence, task.text) for task in tasks]
            ),
            "manifest": place_of(published, TASKS),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="each_transcript_went_one_way",
                passed=len(public) + len(asked) == len(written),
                metadata={"transcripts": len(written), "published": len(public), "asked_about": len(asked)},
            )
        ],
    )


def _pool(workspace: Workspace, bundles: Mapping[str, ModelBundle] | None = None) -> Pool:
    return Pool(Models(workspace.objects, bundles or {}), workspace.settings.inference.workers)


def _told(context: dg.AssetExecutionContext, done: Iterable[DoneT], count: int) -> Iterator[DoneT]:
    """What is done, and now and then a line in the run's log that says how far it is."""
    began = said = time.monotonic()
    for number, one in enumerate(done, 1):
        yield one
        now = time.monotonic()
        if now - said >= SAY_EVERY_S:
            said, left_s = now, (now - began) / number * (count - number)
            context.log.info(
                f"{number:,} of {count:,} done, {number / (now - began):.1f} a second, {left_s:.0f} s to go"
            )


def _heard(pool: Pool, pieces: Iterable[Piece]) -> Iterator[Heard]:
    """What is said in the pieces; those of a batch that kills its worker are tried one by one."""
    alone: list[tuple[Piece, ...]] = []
    for batch in pool.each(stages.recognized, stages.batches(pieces)):
        if isinstance(batch, Lost):
            alone += [(piece,) for piece in batch.item]
        else:
            yield from batch
    for one in pool.each(stages.recognized, alone):
        yield from [stages.not_recognized(piece) for piece in one.item] if isinstance(one, Lost) else one


def champion(workspace: Workspace, language: str) -> ModelBundle | None:
    """The verified bundle of a language's champion; None where it has none.

    Raises:
        dg.Failure: it has one that may not be used: no other language's is taken in its place.
    """
    with refusals_are_final():
        if workspace.promotions().current(language) is None:
            return None
        return ModelBundle.load(champion_bundle(workspace.settings, language))


def _chosen(
    recordings: Iterable[NormalizedRecording], workspace: Workspace
) -> tuple[list[Chosen], dict[str, ModelBundle]]:
    """Whose champion hears each recording: its own language's, the usual one's, or the first that there is; and those.

    Raises:
        dg.Failure: no language has a champion.
    """
    settings = workspace.settings
    usual = settings.inference.language or settings.languages[0]
    of = functools.cache(partial(champion, workspace))
    chosen, bundles = [], {}
    for recording in recordings:
        spoken = recording.language or usual
        wanted = dict.fromkeys((spoken, usual, *settings.languages))
        found = next(((language, bundle) for language in wanted if (bundle := of(language)) is not None), None)
        if found is None:
            raise dg.Failure(
                "no language has a champion: approve a version with the job `promote`, then launch the hour again",
                allow_retries=False,
            )
        language, bundle = found
        bundles[language] = bundle
        instead = language != spoken
        chosen.append(
            Chosen(id=recording.id, language=language, bundle=bundle.digest, model=bundle.name, instead=instead)
        )
    return chosen, bundles


def _clipped(task: ReviewTask, recording: NormalizedRecording, workspace: Workspace, folder: Path) -> ReviewTask:
    """The task with its clip written into `folder`."""
    place = folder / task.clip
    place.parent.mkdir(exist_ok=True)
    end_s = task.end_s + branch.CLIP_PADDING_S
    samples = stages.samples_of(recording.audio, Stretch(task.clip_start_s, end_s), workspace.objects)
    write_flac_chunks([samples], place)
    return task


def _tell(context: dg.AssetExecutionContext, workspace: Workspace, reason: str) -> None:
    """Tell people of an hour."""
    url = f"{workspace.settings.dagster_url}/runs/{context.run_id}"
    alert = Alert(context.run_id, "transcripts", context.partition_key, reason, url, "", "", outcome="unsure")
    for problem in send(alert, workspace.settings.alerts):
        context.log.error(problem)
