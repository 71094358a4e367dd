"""What people are asked, and what they answered."""

from pathlib import Path

import dagster as dg

from deployment.batch.branch import CLIP_PADDING_S, ReviewTask, tasks_of, write_forms
from deployment.batch.hour import ANSWERED, TASKS, TRANSCRIPTS
from deployment.batch.stages.items import NormalizedRecording
from deployment.batch.stages.recognition import samples_of
from deployment.batch.versions import Versions
from deployment.review.answers import Answers, disagreement, error_rate
from deployment.review.corrected import reviewed
from speech.audio.decode import write_flac_chunks
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech.understanding.personal import silenced, silences
from speech.vad import Stretch
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.partition_keys import PARTITION_TAG

TAKE_CORRECTIONS = "take_corrections"  # the job


@retried_when_unreachable
def review_tasks(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What people are asked about, with its audio: the unsure segments of each transcript that is not published, and
    every segment of a control sample."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    recordings = {row.recording.digest: row for row in hour.recordings()}
    written = hour.transcripts()
    public = {transcript.id for transcript in hour.published()}
    padding_s = workspace.settings.inference.redaction_padding_s
    silent = {transcript.id or "": silences(transcript, padding_s) for transcript in written}
    with workspace.store.replace("review_tasks", hour.key) as staging:
        tasks = [
            _clipped(task, recordings[transcript.source_digest], silent[transcript.id or ""], workspace, staging.path)
            for transcript in written
            for task in tasks_of(
                transcript, transcript.id in public, settings.publish_confidence, settings.review.control_share
            )
        ]
        write_atomically(staging.path / TASKS, to_lines(tasks))
    published = staging.published
    unsure = {task.transcript for task in tasks if task.why == "low-confidence"}
    return dg.MaterializeResult(
        metadata={
            "tasks": len(tasks),
            "transcripts": len(unsure),
            "control_sample": sum(task.why == "control" for task in tasks),
            "segments": markdown_table(
                ("segment", "why", "confidence", "heard"),
                [(task.id[:12], task.why, task.confidence, task.text) for task in tasks],
            ),
            "manifest": place_of(published, TASKS),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="each_transcript_went_one_way",
                passed=len(public) + len(unsure) == len(written),
                metadata={"transcripts": len(written), "published": len(public), "asked_about": len(unsure)},
            )
        ],
    )


@retried_when_unreachable
def reviewed_transcripts(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """Transcripts of which everything is answered that was asked, with people's words in place, in every form.

    Each is a version that supersedes the one before it, and the same until somebody answers anew.
    """
    hour, answers = workspace.hour(context.partition_key), _answers(workspace)
    state = answers.state(hour.key)
    tasks, outcomes = hour.tasks(), answers.outcomes(hour.key)
    made = reviewed(hour.transcripts(), tasks, outcomes, Versions(workspace.objects), hour.key)
    with workspace.store.replace("reviewed_transcripts", hour.key) as staging:
        write_atomically(staging.path / TRANSCRIPTS, to_lines(made))
        write_atomically(staging.path / ANSWERED, state)
        write_forms(made, staging.path)
    published = staging.published
    settled = [found.settled for found in outcomes.values() if found.settled]
    places = {transcript.source_digest for transcript in hour.transcripts()}
    lost = [answer for answer in settled if answer.task.source_digest not in places]
    waiting = sum(task.id not in outcomes or not outcomes[task.id].settled for task in tasks)
    control = [found for found in outcomes.values() if found.settled and found.settled.task.why == "control"]
    return dg.MaterializeResult(
        metadata={
            "transcripts": len(made),
            "answered": len(settled),
            "unusable": sum(answer.kind == "unusable" for answer in settled),
            "waiting": waiting,
            "people": ", ".join(sorted({answer.who for answer in settled})),
            "minutes_of_people": round(sum(answer.seconds for answer in settled) / 60, 1),
            "disagreement": _figure(disagreement(list(outcomes.values()))),
            "wer_of_control_sample": _figure(error_rate(control)),
            "corrections": markdown_table(
                ("segment", "heard", "written", "by"),
                [(a.task.id[:12], a.task.text, a.text or a.reason, a.who) for a in settled if a.text != a.task.text],
            ),
            "manifest": place_of(published, TRANSCRIPTS),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="no_answer_lost",
                passed=not lost,
                description=f"{len(lost)} answers are about recordings that the hour no longer has" if lost else None,
                metadata={"answered": len(settled), "without_a_recording": len(lost)},
            )
        ],
    )


def take_what_was_answered(
    context: dg.ScheduleEvaluationContext, workspace: dg.ResourceParam[Workspace]
) -> dg.SkipReason | list[dg.RunRequest]:
    """A run for each hour with answers that its `reviewed_transcripts` do not have yet, and that no run is at work on.

    The key names the answers and the run before: a run that failed is asked for again at the next tick.
    """
    requests, answers = [], _answers(workspace)
    known = set(workspace.grid.hours.get_partition_keys())
    for key in answers.hours():
        state = answers.state(key)
        if key not in known or workspace.hour(key).answers_taken == state:
            continue
        runs = dg.RunsFilter(job_name=TAKE_CORRECTIONS, tags={PARTITION_TAG: key})
        before = next(iter(context.instance.get_runs(runs, limit=1)), None)
        if before is None or before.is_finished:
            run_key = f"{key}/{state[:16]}/{before.run_id if before else 'first'}"
            requests.append(dg.RunRequest(run_key=run_key, partition_key=key))
    return requests or dg.SkipReason("nothing was answered that transcripts do not have")


def _answers(workspace: Workspace) -> Answers:
    return Answers(workspace.objects, workspace.settings.inference.review.doubled)


def _figure(value: float | None) -> float | dg.NullMetadataValue:
    return dg.MetadataValue.null() if value is None else round(value, 4)


def _clipped(
    task: ReviewTask,
    recording: NormalizedRecording,
    silent: list[tuple[float, float]],
    workspace: Workspace,
    folder: Path,
) -> ReviewTask:
    """The task with its clip written into `folder`, without what was taken out of the transcript."""
    place = folder / task.clip
    place.parent.mkdir(exist_ok=True)
    stretch = Stretch(task.clip_start_s, task.end_s + CLIP_PADDING_S)
    sound = next(sound for sound in recording.sounds if sound.channel == task.channel)
    samples = samples_of(sound.audio, stretch, workspace.objects)
    write_flac_chunks([silenced(samples, task.clip_start_s, silent)], place)
    return task
