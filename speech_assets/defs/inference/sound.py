"""From uploads to sound that models hear, and where somebody speaks in it."""

from datetime import UTC, datetime
from functools import partial

import dagster as dg
from pydantic import Field

from deployment.batch import dead_letters
from deployment.batch.engine import Lost
from deployment.batch.hour import DEAD_LETTERS, RECORDINGS, SPEECH
from deployment.batch.stages.items import DeadLetter, NormalizedRecording
from deployment.batch.stages.normalization import normalized, not_normalized
from deployment.batch.stages.speech import not_looked_through, speech_in
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech_assets.defs.inference.measures import note_times
from speech_assets.defs.inference.pool import pool_of, told
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.partitions import CPU_POOL
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


@retried_when_unreachable
def normalized_recordings(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """Each recording as 16 kHz mono FLAC with its quality measured; what cannot be decoded is a dead letter."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    arrivals = [arrival for arrival in hour.arrivals() if arrival.same_as is None]
    with workspace.store.replace("normalized_recordings", hour.key) as staging:
        with pool_of(workspace) as pool:
            work = partial(normalized, folder=staging.path, settings=settings)
            done = told(context, pool.each(work, arrivals), len(arrivals))
            outcomes = [not_normalized(one.item) if isinstance(one, Lost) else one for one in done]
        took = [(arrival.recording, took_s) for arrival, took_s in pool.times]
        kept = [outcome for outcome in outcomes if isinstance(outcome, NormalizedRecording)]
        dead = [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
        write_atomically(staging.path / RECORDINGS, to_lines(kept))
        write_atomically(staging.path / DEAD_LETTERS, to_lines(dead))
    published = staging.published
    dead_letters.keep(workspace.objects, hour.key, arrivals, dead)
    return dg.MaterializeResult(
        metadata={
            "recordings": len(kept),
            "audio_hours": round(sum(row.recording.duration_s for row in kept) / 3600, 4),
            "a_sound_a_channel": sum(len(row.sounds) > 1 for row in kept),
            "echo_seconds": round(sum(e.end_s - e.start_s for row in kept for s in row.sounds for e in s.echoes), 1),
            "dead_letters": len(dead),
            "why": markdown_table(
                ("id", "name", "code", "reason", "tries"),
                [(row.id[:12], row.name, row.code, row.reason, row.tries) for row in dead],
            ),
            **note_times(context, workspace, pool, took, sum(row.recording.duration_s for row in kept)),
            "manifest": place_of(published, RECORDINGS),
        },
        data_version=dg.DataVersion(published.digest),
    )


@retried_when_unreachable
def speech_segments(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """Where somebody speaks in each recording; silence, music and noise have no stretch."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    sounds = [sound for row in hour.recordings() for sound in row.sounds]
    with pool_of(workspace) as pool:
        work = partial(speech_in, settings=settings.vad)
        done = told(context, pool.each(work, sounds), len(sounds))
        found = [not_looked_through(one.item, settings.vad) if isinstance(one, Lost) else one for one in done]
    took = [(sound.id, took_s) for sound, took_s in pool.times]
    published = hour.publish("speech_segments", {SPEECH: to_lines(found)})
    seconds = sum(stretch.end_s - stretch.start_s for speech in found for stretch in speech.stretches)
    return dg.MaterializeResult(
        metadata={
            "segments": sum(len(speech.stretches) for speech in found),
            "speech_hours": round(seconds / 3600, 4),
            "without_speech": sum(not speech.stretches for speech in found),
            **note_times(context, workspace, pool, took, sum(sound.quality.duration_s for sound in sounds)),
            "manifest": place_of(published, SPEECH),
        },
        data_version=dg.DataVersion(published.digest),
    )


class Requeue(dg.Config):
    """Which dead letters are put back: those of the ids, else all of a code, of an hour, or of both."""

    ids: list[str] = Field(
        [], description="Ids of dead letters, or how they begin, as the metadata of normalized_recordings list them."
    )
    code: str | None = Field(None, description="All that have this reason, such as truncated or unsupported.")
    hour: str | None = Field(None, description="All that failed in this hour, such as 2026-11-01-00.")


@dg.op(pool=CPU_POOL)
@retried_when_unreachable
def put_back(context: dg.OpExecutionContext, config: Requeue, workspace: dg.ResourceParam[Workspace]) -> None:
    """Put dead letters back as arrivals of the present hour; each failure once."""
    try:
        back = dead_letters.requeue(
            workspace.objects, datetime.now(UTC), ids=config.ids, code=config.code, hour=config.hour
        )
    except dead_letters.NoSuchLetter as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    for arrival in back:
        context.log.info(f"{arrival.recording[:12]} {arrival.name} is put back, for try {arrival.tries}")
    context.log.info(
        f"{len(back)} put back as arrivals of the present hour; what was put back before, or failed within this hour, "
        "is not"
    )


@dg.job(description="Put recordings that could not be used back as arrivals of the present hour, after a mend.")
def requeue() -> None:
    """Dead letters become arrivals again."""
    put_back()
