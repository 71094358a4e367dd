"""What the last hour that went through is measured by, in Prometheus's text format.

Hours are batch work: what Prometheus asks for is how the last one went and when that was, as gauges of it, read from
the data store when they are asked for. A scrape therefore sees one hour, whoever transcribed it, and costs the same
after years. Every label has a bounded set of values: stages, reasons, outcomes, languages, and the domains of the truth
file.
"""

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from deployment.batch.hour import MEASURES
from deployment.batch.measures import PLACE, Errors, HourMeasures, StageTime, StageTimes
from deployment.batch.settings import HOUR_FORMAT, HOUR_KEY
from speech.plain import from_plain
from speech.store.objects import Objects
from speech.store.outputs import DataStore, parse_json


def exposition(objects: Objects) -> bytes:
    """The metrics of the last hour that was measured; before the first, that there is none.

    Raises:
        StoreError: the data store refuses, or what it holds cannot be read.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Hours(objects))
    return generate_latest(registry)


class _Hours:
    """A collector, as prometheus_client calls it: asked anew at each scrape."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects

    def collect(self) -> Iterator[Metric]:
        hours = [hour for hour in self.objects.folders(PLACE) if HOUR_KEY.fullmatch(hour)]
        yield CounterMetricFamily("soundstage_batches_measured", "Hours that went through.", value=len(hours))
        if not hours:
            return
        last = max(hours)
        found = from_plain(HourMeasures, parse_json(DataStore(self.objects).current(PLACE, last).read(MEASURES)))
        begins = datetime.strptime(last, HOUR_FORMAT).replace(tzinfo=UTC).timestamp()
        yield GaugeMetricFamily("soundstage_hour_start_timestamp_seconds", "When the last hour began.", value=begins)
        yield from _content(found)
        yield from _stages(StageTimes(self.objects).of(last))


def _content(found: HourMeasures) -> Iterator[Metric]:
    outcomes = {
        "published": found.published,
        "asked_about": found.asked_about,
        "failed": found.failed,
        "same_as_before": found.same_as_before,
    }
    yield _by("soundstage_hour_recordings", "Recordings of the hour by what became of them.", "outcome", outcomes)
    yield _by(
        "soundstage_hour_failed_recordings",
        "Recordings of the hour that cannot be used, by reason.",
        "reason",
        found.failed_by_reason,
    )
    yield GaugeMetricFamily("soundstage_hour_audio_seconds", "Audio of the hour.", value=found.audio_s)
    yield GaugeMetricFamily("soundstage_hour_words", "Words of the hour's transcripts.", value=found.words)
    if found.confidence is not None:
        yield GaugeMetricFamily(
            "soundstage_hour_confidence_ratio", "Mean confidence of the hour's transcripts.", value=found.confidence
        )
    for name, help_text, label, errors in (
        ("word_error_ratio", "Word error rate where the truth is known.", "language", found.errors_by_language),
        ("domain_word_error_ratio", "Word error rate where the truth is known.", "domain", found.errors_by_domain),
        ("corrected_word_error_ratio", "Word error rate of corrected ones.", "language", found.reviewed_by_language),
    ):
        yield _by(f"soundstage_hour_{name}", help_text, label, _rates(errors))


def _stages(times: Mapping[str, StageTime]) -> Iterator[Metric]:
    name = "soundstage_hour_stage_seconds"
    seconds = Metric(name, "Work for a recording of the hour, by stage.", "summary")
    for stage, time in times.items():
        for quantile, value in (("0.5", time.p50_s), ("0.95", time.p95_s), ("0.99", time.p99_s)):
            seconds.add_sample(name, {"stage": stage, "quantile": quantile}, value)
        seconds.add_sample(f"{name}_sum", {"stage": stage}, time.work_s)
        seconds.add_sample(f"{name}_count", {"stage": stage}, time.recordings)
    yield seconds
    yield _by(
        "soundstage_hour_stage_elapsed_seconds",
        "Time from a stage's first recording of the hour to its last.",
        "stage",
        {stage: time.elapsed_s for stage, time in times.items()},
    )
    yield _by(
        "soundstage_hour_stage_audio_seconds",
        "Audio of the hour that a stage worked through.",
        "stage",
        {stage: time.audio_s for stage, time in times.items()},
    )


def _rates(errors: Mapping[str, Errors]) -> dict[str, float]:
    return {key: rate for key, one in errors.items() if (rate := one.wer) is not None}


def _by(name: str, help_text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, help_text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
