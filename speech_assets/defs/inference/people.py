"""What people are asked."""

from collections.abc import Sequence
from pathlib import Path

import dagster as dg
import numpy as np

from deployment.batch.branch import CLIP_PADDING_S, ReviewTask, tasks_of
from deployment.batch.hour import TASKS
from deployment.batch.stages.items import NormalizedRecording
from deployment.batch.stages.recognition import samples_of
from speech.audio.decode import write_flac_chunks
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech.understanding.personal import silenced, silences
from speech.vad import Stretch
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


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
                transcript, transcript.id in public, settings.publish_confidence, settings.control_share
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
    own = [sound for sound in recording.sounds if sound.channel == task.channel] or recording.sounds
    sounds = [samples_of(sound.audio, stretch, workspace.objects) for sound in own]
    write_flac_chunks([silenced(_mixed(sounds), task.clip_start_s, silent)], place)
    return task


def _mixed(sounds: Sequence[np.ndarray]) -> np.ndarray:
    """Sounds of one stretch, which may end within it, as one."""
    mixed = np.zeros(max(map(len, sounds)), np.float32)
    for sound in sounds:
        mixed[: len(sound)] += sound / len(sounds)
    return mixed
