"""What is said, and by whose champion it is heard."""

import functools
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import dagster as dg

from deployment.batch.engine import Lost, Pool
from deployment.batch.hour import CHOSEN, HEARD
from deployment.batch.stages.items import Chosen, Heard, NormalizedRecording, Piece
from deployment.batch.stages.recognition import batches, not_recognized, order_of, pieces_of, recognized
from deployment.transcribe import champion_bundle
from speech.bundle import ModelBundle
from speech.plain import to_lines
from speech_assets.defs.inference.pool import pool_of, told
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable


@retried_when_unreachable
def recognized_segments(
    context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]
) -> dg.MaterializeResult:
    """What is said in each stretch of speech, by the champion of its language; alike long ones are heard together."""
    hour = workspace.hour(context.partition_key)
    recordings = hour.recordings()
    chosen, bundles = _chosen(recordings, workspace)
    pieces = pieces_of(recordings, hour.speech(), {choice.id: choice.language for choice in chosen})
    began = time.monotonic()
    with pool_of(workspace, bundles) as pool:
        heard = sorted(told(context, _heard(pool, pieces), len(pieces)), key=order_of)
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
            Chosen(
                id=recording.id,
                language=language,
                bundle=bundle.digest,
                model=bundle.name,
                instead=instead,
                writes=bundle.text == "written",
            )
        )
    return chosen, bundles


def _heard(pool: Pool, pieces: Iterable[Piece]) -> Iterator[Heard]:
    """What is said in the pieces; those of a batch that kills its worker are tried one by one."""
    alone: list[tuple[Piece, ...]] = []
    for batch in pool.each(recognized, batches(pieces)):
        if isinstance(batch, Lost):
            alone += [(piece,) for piece in batch.item]
        else:
            yield from batch
    for one in pool.each(recognized, alone):
        yield from [not_recognized(piece) for piece in one.item] if isinstance(one, Lost) else one
