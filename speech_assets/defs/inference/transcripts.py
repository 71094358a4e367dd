"""Transcripts, and those of them that are sure enough to be used as they are."""

from collections.abc import Iterable, Sequence
from typing import Any

import dagster as dg

from deployment.batch.branch import FORMS, is_published, write_forms
from deployment.batch.hour import ARRIVALS, CHANGES, IN_FORCE, TRANSCRIPTS
from deployment.batch.stages.items import Chosen, Heard, Languages, SpeakerTurns
from deployment.batch.stages.merging import transcript_from
from deployment.batch.versions import Change, InForce, Versions, change_of, recording_of, shown
from deployment.registry.intent_champions import intent_champion
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech.transcript import Transcript
from speech.understanding.intents import IntentModel, IntentModelError
from speech.understanding.personal import kinds_in
from speech_assets.defs.alerts import tell
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import refusals_are_final, retried_when_unreachable


@retried_when_unreachable
def transcripts(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """A transcript of each recording, with the models that wrote it: a new version where they say something else."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    recordings = hour.recordings()
    heard: dict[str, list[Heard]] = {row.id: [] for row in recordings}
    for piece in hour.heard():
        heard[piece.id].append(piece)
    by = {choice.spoken: choice for choice in hour.chosen()}
    languages: dict[str, list[Languages]] = {row.id: [] for row in recordings}
    for one in hour.languages():
        languages[one.id].append(one)
    turns: dict[str, list[SpeakerTurns]] = {row.id: [] for row in recordings}
    for part in hour.turns():
        turns[part.id].append(part)
    intents = _intent_models(workspace, by.values())
    made_now = (
        transcript_from(row, heard[row.id], languages[row.id], by, turns[row.id], settings, intents)
        for row in recordings
    )
    kept = Versions(workspace.objects).kept_each(made_now, hour.key)
    made = [shown(versions).transcript for versions in kept]
    changes = [change for versions in kept if (change := change_of(versions)) is not None]
    collapsed = [change for change in changes if change.collapsed]
    published = hour.publish("transcripts", {TRANSCRIPTS: to_lines(made), CHANGES: to_lines(changes)})
    arrivals = hour.arrivals()
    counts = {
        "arrived": len(arrivals),
        "transcripts": len(made),
        "dead_letters": len(hour.dead_letters()),
        "the_same_as_before": sum(arrival.same_as is not None for arrival in arrivals),
    }
    scores = [transcript.confidence for transcript in made if transcript.words]
    mean = sum(scores) / len(scores) if scores else None
    sure = mean is None or mean >= settings.alert_confidence
    if not sure:
        tell(context, workspace, "unsure", f"the mean confidence is {mean:.2f}, below {settings.alert_confidence:g}")
    return dg.MaterializeResult(
        metadata={
            **counts,
            "mean_confidence": round(mean, 4) if mean is not None else dg.MetadataValue.null(),
            "recordings": markdown_table(
                ("recording", "language", "seconds", "words", "confidence", "text"),
                [
                    (row.name, said.language, round(said.duration_s, 1), len(said.words), said.confidence, said.text)
                    for row, said in zip(recordings, made, strict=True)
                ],
            ),
            **_changed(changes),
            "conversations": _conversations([(row.name, said) for row, said in zip(recordings, made, strict=True)]),
            "redacted": markdown_table(("kind", "finds"), sorted(kinds_in(made).items())),
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
                check_name="later_versions_hold",
                passed=not collapsed,
                severity=dg.AssetCheckSeverity.WARN,
                description="; ".join(
                    f"{change.after} lost {change.words_removed} of the {change.words_before} words of {change.before}"
                    for change in collapsed
                )
                or None,
                metadata={"later_versions": len(changes), "collapsed": len(collapsed)},
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
    """The transcripts that are sure enough to be used, in every form; and of each recording which version counts."""
    hour, threshold = workspace.hour(context.partition_key), workspace.settings.inference.publish_confidence
    written_here = hour.transcripts()
    sure = [transcript for transcript in written_here if is_published(transcript, threshold)]
    recordings = [recording_of(transcript) for transcript in written_here]
    every = dict(zip(recordings, Versions(workspace.objects).of_each(recordings), strict=True))
    public = {recording_of(transcript) for transcript in sure}
    counting = [
        InForce.of(every[arrival.recording], arrival.name, arrival.recording in public)
        for arrival in hour.arrivals()
        if arrival.recording in every
    ]
    with workspace.store.replace("published_transcripts", hour.key) as staging:
        write_atomically(staging.path / ARRIVALS, hour.output("incoming_audio").read(ARRIVALS))
        write_atomically(staging.path / TRANSCRIPTS, to_lines(sure))
        write_atomically(staging.path / IN_FORCE, to_lines(counting))
        write_forms(sure, staging.path)
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "transcripts": len(sure),
            "without_speech": sum(not transcript.words for transcript in sure),
            "forms": ", ".join(FORMS),
            "corrected_by_people": sum(row.by is not None for row in counting),
            "waiting_beside_them": sum(row.waits is not None for row in counting),
            "manifest": place_of(published, TRANSCRIPTS),
        },
        data_version=dg.DataVersion(published.digest),
    )


def _changed(changes: Sequence[Change]) -> dict[str, Any]:
    """What later versions say otherwise, as numbers that plot and a table."""
    words = sum(change.words_before for change in changes)
    edits = sum(change.words_added + change.words_removed + change.words_replaced for change in changes)
    surer = [change.confidence_after - change.confidence_before for change in changes]
    return {
        "later_versions": len(changes),
        "words_added": sum(change.words_added for change in changes),
        "words_removed": sum(change.words_removed for change in changes),
        "words_replaced": sum(change.words_replaced for change in changes),
        **({"wer_between_versions": round(edits / words, 4)} if words else {}),
        **({"confidence_gained": round(sum(surer) / len(surer), 4)} if surer else {}),
        "changes": markdown_table(
            ("before", "after", "words added", "removed", "replaced", "WER", "confidence", "in force", "first changes"),
            [
                (
                    change.before,
                    change.after,
                    change.words_added,
                    change.words_removed,
                    change.words_replaced,
                    "" if change.wer is None else f"{change.wer:.2%}",
                    f"{change.confidence_before:.3f} > {change.confidence_after:.3f}",
                    "what people wrote" if change.waits else change.after,
                    ", ".join(change.edits),
                )
                for change in changes
            ],
        ),
    }


def _intent_models(workspace: Workspace, chosen: Iterable[Chosen]) -> dict[str, IntentModel]:
    """The intent models in use of the languages that were heard; a language without one has no intents."""
    try:
        with refusals_are_final():
            found = {choice.language: intent_champion(workspace.store, choice.language) for choice in chosen}
    except IntentModelError as damaged:
        raise dg.Failure(str(damaged), allow_retries=False) from damaged
    return {language: model for language, model in found.items() if model is not None}


def _conversations(named: Iterable[tuple[str, Transcript]]) -> dg.MarkdownMetadataValue:
    """How much each speaker of each recording talked, and how."""
    columns = (
        "recording, speaker, talk (s), share, turns, longest turn (s), words/min, interruptions, response (s), silence"
    )
    rows = []
    for name, said in named:
        if said.conversation is None:
            continue
        silence = f"{said.conversation.silence_share:.0%}"
        for of in said.conversation.speakers:
            pace, response = ("" if figure is None else figure for figure in (of.words_per_minute, of.response_s))
            row = (name, of.speaker, of.talk_s, f"{of.share:.0%}", of.turns, of.longest_turn_s, pace, of.interruptions)
            rows.append((*row, response, silence))
    return markdown_table(columns.split(", "), rows)
