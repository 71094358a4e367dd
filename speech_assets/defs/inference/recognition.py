"""What is said, and by whose champion it is heard."""

import functools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import dagster as dg

from deployment.batch.engine import Lost, Pool
from deployment.batch.hour import CHOSEN, HEARD
from deployment.batch.stages.items import Chosen, Heard, Languages, Piece
from deployment.batch.stages.recognition import batches, not_recognized, order_of, pieces_of, recognized
from deployment.transcribe import champion_bundle
from speech.bundle import ModelBundle
from speech.labels import UNKNOWN
from speech.plain import to_lines
from speech_assets.defs.inference.measures import note_times
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
    languages = hour.languages()
    chosen, bundles = _chosen(languages, workspace)
    by = {choice.spoken: choice for choice in chosen}
    pieces = pieces_of(recordings, languages, by)
    with pool_of(workspace, bundles) as pool:
        heard = sorted(told(context, _heard(pool, pieces), len(pieces)), key=order_of)
    took = [share for batch, took_s in pool.times for share in _shares(batch, took_s)]
    counts = Counter(found.spoken.language for found in languages)
    published = hour.publish("recognized_segments", {CHOSEN: to_lines(chosen), HEARD: to_lines(heard)})
    seconds = sum(piece.stretch.end_s - piece.stretch.start_s for piece in pieces)
    return dg.MaterializeResult(
        metadata={
            "segments": len(heard),
            "words": sum(len(piece.words) for piece in heard),
            "models": markdown_table(
                ("spoken", "heard by the champion of", "model", "recordings or channels"),
                [
                    (choice.spoken, choice.language, choice.model, counts[choice.spoken])
                    for choice in sorted(chosen, key=lambda choice: choice.spoken)
                ],
            ),
            **note_times(context, workspace, pool, took, seconds),
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


def _chosen(languages: Iterable[Languages], workspace: Workspace) -> tuple[list[Chosen], dict[str, ModelBundle]]:
    """Whose champion hears each language: its own, the usual one's, or the first that there is; and those champions.

    Raises:
        dg.Failure: no language has a champion.
    """
    settings = workspace.settings
    usual = settings.inference.language or settings.languages[0]
    of = functools.cache(partial(champion, workspace))
    chosen, bundles = [], {}
    for spoken in sorted({said.language for one in languages for said in (one.spoken, *(p.spoken for p in one.parts))}):
        wanted = dict.fromkeys((spoken, usual, *settings.languages))
        wanted.pop(UNKNOWN, None)
        found = next(((language, bundle) for language in wanted if (bundle := of(language)) is not None), None)
        if found is None:
            raise dg.Failure(
                "no language has a champion: approve a version with the job `promote`, then launch the hour again",
                allow_retries=False,
            )
        language, bundle = found
        bundles[language] = bundle
        chosen.append(
            Chosen(
                spoken=spoken,
                language=language,
                bundle=bundle.digest,
                model=bundle.name,
                writes=bundle.text == "written",
            )
        )
    return chosen, bundles


def _shares(batch: Sequence[Piece], took_s: float) -> list[tuple[str, float]]:
    """What each piece of a batch took of its time, by recording: as much as it is long."""
    lengths = [piece.stretch.end_s - piece.stretch.start_s for piece in batch]
    whole = sum(lengths) or 1.0
    return [(piece.id, took_s * length / whole) for piece, length in zip(batch, lengths, strict=True)]


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
