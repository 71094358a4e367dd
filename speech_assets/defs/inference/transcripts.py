"""Transcripts, and those of them that are sure enough to be used as they are."""

import dagster as dg

from deployment.batch.branch import FORMS, is_published, written
from deployment.batch.hour import ARRIVALS, TRANSCRIPTS
from deployment.batch.stages.items import Heard
from deployment.batch.stages.merging import merged
from deployment.batch.stages.understanding import understood
from speech.plain import to_lines
from speech.store.outputs import write_atomically
from speech_assets.defs.alerts import Alert, send
from speech_assets.defs.metadata import markdown_table, place_of
from speech_assets.defs.resources import Workspace
from speech_assets.defs.retries import retried_when_unreachable


@retried_when_unreachable
def transcripts(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """A transcript of each recording, with the models that wrote it."""
    hour, settings = workspace.hour(context.partition_key), workspace.settings.inference
    recordings = hour.recordings()
    heard: dict[str, list[Heard]] = {row.id: [] for row in recordings}
    for piece in hour.heard():
        heard[piece.id].append(piece)
    by = {choice.id: choice for choice in hour.chosen()}
    made = [merged(row, heard[row.id], by[row.id]) for row in recordings]
    made = [understood(said, settings, writes=by[row.id].writes) for row, said in zip(recordings, made, strict=True)]
    published = hour.publish("transcripts", {TRANSCRIPTS: to_lines(made)})
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
        _tell(context, workspace, f"the mean confidence is {mean:.2f}, below {settings.alert_confidence:g}")
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
    """The transcripts that are sure enough to be used, in every form."""
    hour, threshold = workspace.hour(context.partition_key), workspace.settings.inference.publish_confidence
    sure = [transcript for transcript in hour.transcripts() if is_published(transcript, threshold)]
    with workspace.store.replace("published_transcripts", hour.key) as staging:
        write_atomically(staging.path / ARRIVALS, hour.output("incoming_audio").read(ARRIVALS))
        write_atomically(staging.path / TRANSCRIPTS, to_lines(sure))
        for transcript in sure:
            for form in FORMS:
                text = written(transcript, form, str(transcript.id))
                write_atomically(staging.path / form / f"{transcript.id}.{form}", text)
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "transcripts": len(sure),
            "without_speech": sum(not transcript.words for transcript in sure),
            "forms": ", ".join(FORMS),
            "manifest": place_of(published, TRANSCRIPTS),
        },
        data_version=dg.DataVersion(published.digest),
    )


def _tell(context: dg.AssetExecutionContext, workspace: Workspace, reason: str) -> None:
    """Tell people of an hour."""
    url = f"{workspace.settings.dagster_url}/runs/{context.run_id}"
    alert = Alert(context.run_id, "transcripts", context.partition_key, reason, url, "", "", outcome="unsure")
    for problem in send(alert, workspace.settings.alerts):
        context.log.error(problem)
