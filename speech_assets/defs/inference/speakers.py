"""Who speaks when in an hour's recordings, and which of them are people who were enrolled."""

from functools import partial

import dagster as dg

from deployment.batch.engine import Lost
from deployment.batch.enrolment import Enrolments
from deployment.batch.hour import TURNS
from deployment.batch.stages.speakers import spoken_of, turns_in, undivided
from speech.plain import to_lines
from speech_assets.defs.inference.measures import note_times
from speech_assets.defs.inference.pool import label_model, pool_of, told
from speech_assets.defs.metadata import place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


@retried_when_unreachable
def speaker_turns(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """Who speaks when in each recording; without a speaker model everybody on a channel counts as one."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference.speakers
    spoken = spoken_of(hour.recordings(), hour.speech())
    model = label_model(workspace, "speaker")
    enrolments = Enrolments(workspace.objects)
    known = enrolments.known(model.digest) if model else None
    stale = enrolments.stale(model.digest) if model else ()
    if model is None:
        context.log.warning("no speaker model is in use: everybody on a channel counts as one speaker")
    if stale:  # no names: what a run says is kept, and may have to be forgotten
        context.log.warning(
            f"{len(stale)} people enrolled with a former speaker model and are not looked for: "
            "`soundstage speakers list` says who; enrol them again"
        )
    with pool_of(workspace, labels={"speaker": model} if model else None) as pool:
        work = partial(turns_in, settings=settings, known=known)
        done = told(context, pool.each(work, spoken), len(spoken))
        found = [part for one in done for part in (undivided(one.item) if isinstance(one, Lost) else one)]
    took = [(recording.id, took_s) for (recording, _), took_s in pool.times]
    published = hour.publish("speaker_turns", {TURNS: to_lines(found)})
    speakers = [{turn.speaker for part in found if part.id == row.id for turn in part.turns} for row, _ in spoken]
    return dg.MaterializeResult(
        metadata={
            "model": model.name if model else "none: one speaker a channel",
            "turns": sum(len(part.turns) for part in found),
            "most_speakers": max(map(len, speakers), default=0),
            "recordings_of_several": sum(len(some) > 1 for some in speakers),
            "enrolled": len(known.names) if known else 0,
            "enrolled_with_a_former_model": len(stale),
            **note_times(context, workspace, pool, took, sum(row.recording.duration_s for row, _ in spoken)),
            "manifest": place_of(published, TURNS),
        },
        data_version=dg.DataVersion(published.digest),
    )
