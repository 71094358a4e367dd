"""What people are asked."""

from pathlib import Path

import dagster as dg

from deployment.batch.branch import CLIP_PADDING_S, ReviewTask, asked_about, task_of
from deployment.batch.hour import TASKS
from deployment.batch.stages.items import NormalizedRecording
from deployment.batch.stages.recognition import samples_of
from speech.audio.decode import write_flac_chunks
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech.vad import Stretch
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


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


def _clipped(task: ReviewTask, recording: NormalizedRecording, workspace: Workspace, folder: Path) -> ReviewTask:
    """The task with its clip written into `folder`."""
    place = folder / task.clip
    place.parent.mkdir(exist_ok=True)
    end_s = task.end_s + CLIP_PADDING_S
    samples = samples_of(recording.sounds[0].audio, Stretch(task.clip_start_s, end_s), workspace.objects)
    write_flac_chunks([samples], place)
    return task
