"""What is spoken where in recordings."""

from collections import defaultdict
from functools import partial

import dagster as dg

from deployment.batch.engine import Lost
from deployment.batch.hour import LANGUAGES
from deployment.batch.stages.items import Languages
from deployment.batch.stages.language import Speaking, as_given, languages_in
from speech.language import Spoken
from speech.plain import to_lines
from speech_assets.defs.inference.measures import note_times
from speech_assets.defs.inference.pool import label_model, pool_of, told
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


@retried_when_unreachable
def spoken_language(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What is spoken where, by the language model; as the upload says or as usual where that is to be taken."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    usual = settings.language or workspace.settings.languages[0]
    model = label_model(workspace, "language") if settings.spoken_language.enabled else None
    speech = {(found.id, found.channel): found for found in hour.speech()}
    given, asked = list[Languages](), list[Speaking]()
    for row in hour.recordings():
        for sound in row.sounds:
            otherwise = Spoken(row.language or usual, None)
            item = Speaking(sound=sound, speech=speech[sound.id, sound.channel], otherwise=otherwise)
            if model is None or (row.language and not settings.spoken_language.over_uploads):
                given.append(as_given(item))
            else:
                asked.append(item)
    work = partial(languages_in, settings=settings.spoken_language)
    with pool_of(workspace, labels={"language": model} if model is not None else {}) as pool:
        done = told(context, pool.each(work, asked), len(asked))
        found = [*given, *(as_given(one.item) if isinstance(one, Lost) else one for one in done)]
    took = [(item.sound.id, took_s) for item, took_s in pool.times]
    found.sort(key=lambda one: (one.id, -1 if one.channel is None else one.channel))
    published = hour.publish("spoken_language", {LANGUAGES: to_lines(found)})
    seconds: defaultdict[str, float] = defaultdict(float)
    for one in found:
        for part in one.parts:
            seconds[part.spoken.language] += part.stretch.end_s - part.stretch.start_s
    return dg.MaterializeResult(
        metadata={
            "listened": len(asked),
            "model": model.name if model is not None else "none: as uploads say",
            "several_languages": sum(len({part.spoken.language for part in one.parts}) > 1 for one in found),
            "speech": markdown_table(
                ("language", "seconds of speech"),
                [(name, round(lasted, 1)) for name, lasted in sorted(seconds.items())],
            ),
            **note_times(context, workspace, pool, took, sum(item.sound.quality.duration_s for item in asked)),
            "manifest": place_of(published, LANGUAGES),
        },
        data_version=dg.DataVersion(published.digest),
    )
