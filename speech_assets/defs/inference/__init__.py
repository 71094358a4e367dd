"""Inference: recordings that came in within an hour, transcribed by the champions, published or given to people.

An hour is the only partition. Every asset of it materialises, even empty, and the same hour run twice gives the same
bytes. Which champion heard a recording stands in its transcript. A recording that cannot be used is a dead letter with
its reason and stops nobody; a check counts that what arrived is published, asked about, a dead letter, or the same
recording as before.
"""

from functools import partial

import dagster as dg

from deployment.batch import branch
from speech_assets.chain import INFERENCE
from speech_assets.defs.inference.arrivals import (
    announced_uploads,
    incoming_audio,
    receive_uploads,
    transcribe_what_came,
)
from speech_assets.defs.inference.jobs import waiting_jobs
from speech_assets.defs.inference.language import spoken_language
from speech_assets.defs.inference.measures import hour_measures
from speech_assets.defs.inference.people import (
    TAKE_CORRECTIONS,
    review_tasks,
    reviewed_transcripts,
    take_what_was_answered,
)
from speech_assets.defs.inference.recognition import recognized_segments
from speech_assets.defs.inference.sound import normalized_recordings, requeue, speech_segments
from speech_assets.defs.inference.speakers import speaker_turns
from speech_assets.defs.inference.transcripts import published_transcripts, transcripts
from speech_assets.defs.partitions import CPU_POOL, Grid
from speech_assets.defs.resources import version_of

TRANSCRIBE = "transcribe_hour"  # the job
RETRIES = dg.RetryPolicy(max_retries=2, delay=60, backoff=dg.Backoff.EXPONENTIAL)
LONGEST_S = 7_200  # of an hour's run
LOOK_EVERY_S = 30


def definitions(grid: Grid) -> dg.Definitions:
    """The inference graph, its job and its schedule."""
    settings = grid.settings.inference
    asset = partial(dg.asset, partitions_def=grid.hours, group_name="inference", pool=CPU_POOL, code_version="1")
    by_threshold = version_of(branch.EDITION, str(settings.publish_confidence))
    of_sound = version_of(settings.channels, str(settings.loudness), str(settings.noise_reduction))
    check = partial(dg.AssetCheckSpec, partitions_def=grid.hours)
    assets = [
        asset(kinds={"python"})(incoming_audio),
        asset(kinds={"ffmpeg"}, deps=["incoming_audio"], code_version=of_sound)(normalized_recordings),
        asset(kinds={"onnx"}, deps=["normalized_recordings"], code_version=version_of(settings.vad))(speech_segments),
        asset(
            kinds={"onnx"},
            deps=["speech_segments", "normalized_recordings"],
            code_version=version_of(settings.speakers),
        )(speaker_turns),
        asset(
            kinds={"onnx"},
            deps=["speech_segments", "normalized_recordings"],
            code_version=version_of(settings.spoken_language),
        )(spoken_language),
        asset(kinds={"onnx"}, deps=["spoken_language", "normalized_recordings"])(recognized_segments),
        asset(
            code_version=version_of(f"{settings.written_forms} {settings.redact}"),
            deps=["recognized_segments", "speaker_turns", "normalized_recordings", "incoming_audio"],
            check_specs=[
                check("every_recording_accounted_for", asset="transcripts", blocking=True),
                check(
                    "later_versions_hold",
                    asset="transcripts",
                    description="A later version in which most words of the one before are gone is named; `soundstage "
                    "versions` gives either.",
                ),
                check("mean_confidence", asset="transcripts", description="An hour that is unsure is told to people."),
            ],
        )(transcripts),
        asset(deps=["transcripts", "incoming_audio"], code_version=by_threshold)(published_transcripts),
        asset(
            code_version=version_of(by_threshold, f"{settings.review.control_share} {settings.redaction_padding_s}"),
            deps=["transcripts", "published_transcripts", "normalized_recordings"],
            check_specs=[check("each_transcript_went_one_way", asset="review_tasks", blocking=True)],
        )(review_tasks),
        asset(
            code_version=version_of(str(settings.alert_failed)),
            deps=["incoming_audio", "normalized_recordings", "transcripts", "published_transcripts", "review_tasks"],
            check_specs=[
                check("failing_share", asset="hour_measures", description="An hour that fails is told to people.")
            ],
        )(hour_measures),
        asset(
            deps=["transcripts", "review_tasks"],
            check_specs=[check("no_answer_lost", asset="reviewed_transcripts")],
        )(reviewed_transcripts),
    ]
    job = dg.define_asset_job(
        TRANSCRIBE,
        selection=dg.AssetSelection.assets(*INFERENCE),
        partitions_def=grid.hours,
        description="What arrived within an hour, from its bytes to transcripts.",
        op_retry_policy=RETRIES,
        tags={"dagster/max_runtime": str(LONGEST_S)},
    )
    corrections = dg.define_asset_job(
        TAKE_CORRECTIONS,
        selection=dg.AssetSelection.assets("reviewed_transcripts"),
        partitions_def=grid.hours,
        description="What people answered about an hour, into its transcripts.",
        op_retry_policy=RETRIES,
    )
    off = dg.DefaultScheduleStatus.STOPPED
    return dg.Definitions(
        assets=assets,
        jobs=[job, corrections, receive_uploads, requeue],
        schedules=[
            dg.ScheduleDefinition(
                name="arrivals",
                cron_schedule="*/5 * * * *",
                execution_timezone="UTC",
                job=receive_uploads,
                default_status=off,
                description="Receives uploads every five minutes, once switched on.",
            ),
            dg.schedule(
                name="hourly_transcription",
                cron_schedule="0 * * * *",
                execution_timezone="UTC",
                target=job,
                default_status=off,
                description="Transcribes each hour that has ended and whose recordings are not transcribed yet, late "
                "ones too, once switched on.",
            )(transcribe_what_came),
            dg.schedule(
                name="corrections",
                cron_schedule="30 * * * *",
                execution_timezone="UTC",
                target=corrections,
                default_status=off,
                description="Takes what people answered into the transcripts of each hour, once switched on.",
            )(take_what_was_answered),
        ],
        sensors=[
            dg.sensor(
                name="announced_uploads",
                job=receive_uploads,
                minimum_interval_seconds=LOOK_EVERY_S,
                default_status=dg.DefaultSensorStatus.RUNNING if settings.queue else dg.DefaultSensorStatus.STOPPED,
                description="Takes events of the bucket of uploads from its queue, and has what they tell of fetched; "
                "off while `[inference] queue` names none.",
            )(announced_uploads),
            dg.sensor(
                name="waiting_jobs",
                jobs=[receive_uploads, job],
                minimum_interval_seconds=LOOK_EVERY_S,
                default_status=dg.DefaultSensorStatus.RUNNING,
                description="Has the hours made that jobs given over HTTP wait for, and tells of their end.",
            )(waiting_jobs),
        ],
    )
