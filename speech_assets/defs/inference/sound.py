"""From uploads to sound that models hear, and where somebody speaks in it."""

from functools import partial

import dagster as dg

from deployment.batch.engine import Lost
from deployment.batch.hour import DEAD_LETTERS, RECORDINGS, SPEECH
from deployment.batch.stages.items import DeadLetter, NormalizedRecording
from deployment.batch.stages.normalization import normalized, not_normalized
from deployment.batch.stages.speech import not_looked_through, speech_in
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech_assets.defs.inference.pool import pool_of, told
from speech_assets.defs.metadata import markdown_table, place_of
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
        kept = [outcome for outcome in outcomes if isinstance(outcome, NormalizedRecording)]
        dead = [outcome for outcome in outcomes if isinstance(outcome, DeadLetter)]
        write_atomically(staging.path / RECORDINGS, to_lines(kept))
        write_atomically(staging.path / DEAD_LETTERS, to_lines(dead))
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "recordings": len(kept),
            "audio_hours": round(sum(row.recording.duration_s for row in kept) / 3600, 4),
            "a_sound_a_channel": sum(len(row.sounds) > 1 for row in kept),
            "echo_seconds": round(sum(e.end_s - e.start_s for row in kept for s in row.sounds for e in s.echoes), 1),
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
    sounds = [sound for row in hour.recordings() for sound in row.sounds]
    with pool_of(workspace) as pool:
        work = partial(speech_in, settings=settings.vad)
        done = told(context, pool.each(work, sounds), len(sounds))
        found = [not_looked_through(one.item, settings.vad) if isinstance(one, Lost) else one for one in done]
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
