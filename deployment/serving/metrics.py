"""What a replica tells Prometheus."""

from collections.abc import Iterable
from contextlib import suppress
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from deployment.serving.routing import LoadedModel
from speech.transcript import Transcript

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
REAL_TIME_FACTORS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
OUTCOMES = ("ok", "empty", "error")


class Metrics:
    """One process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._versions: set[tuple[str, str]] = set()
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        histogram = partial(Histogram, registry=self.registry)
        self.requests = counter("soundstage_requests", "Answered requests.", ("route", "status", "language"))
        self.latency = histogram(
            "soundstage_request_seconds",
            "Time from the first byte of a request to the end of its answer.",
            ("route",),
            buckets=SECONDS,
        )
        self.errors = counter("soundstage_errors", "Error answers by code.", ("code",))
        self.in_flight = gauge("soundstage_requests_in_flight", "Requests being answered.")
        self.queued = gauge("soundstage_transcriptions_waiting", "Recordings received that wait for a worker.")
        self.audio_seconds = counter("soundstage_audio_seconds", "Seconds of audio transcribed.", ("language",))
        self.words = counter("soundstage_words", "Words transcribed.", ("language",))
        self.real_time_factor = histogram(
            "soundstage_real_time_factor",
            "Seconds of work for a second of audio.",
            ("language",),
            buckets=REAL_TIME_FACTORS,
        )
        self.versions = counter(
            "soundstage_version_requests",
            "Requests by the model version that took them; outcome is ok, empty (nothing heard) or error.",
            ("language", "version", "outcome"),
        )
        self.version_seconds = histogram(
            "soundstage_version_seconds",
            "Seconds of work for an answer, decoding included and waiting not, by model version.",
            ("language", "version"),
            buckets=SECONDS,
        )
        self.bundles = gauge(
            "soundstage_bundle_info",
            "Bundles that requests can reach; always 1.",
            ("language", "model", "version", "digest"),
        )

    def show_models(self, models: Iterable[LoadedModel]) -> None:
        """Replace what is said about loaded bundles; counts of versions that are gone go too, or they would pile up."""
        self.bundles.clear()
        shown = set()
        for model in models:
            self.bundles.labels(model.language, model.name, model.route.version, model.digest).set(1)
            shown.add((model.language, model.version))
        for language, version in self._versions - shown:
            for outcome in OUTCOMES:
                with suppress(KeyError):
                    self.versions.remove(language, version, outcome)
            with suppress(KeyError):
                self.version_seconds.remove(language, version)
        self._versions = shown

    def count(self, model: LoadedModel, seconds: float | None, *, empty: bool = False) -> None:
        """Note how a version answered; None: not at all."""
        outcome = "error" if seconds is None else "empty" if empty else "ok"
        self.versions.labels(model.language, model.version, outcome).inc()
        if seconds is not None:
            self.version_seconds.labels(model.language, model.version).observe(seconds)

    def heard(self, transcript: Transcript, seconds: float) -> None:
        """Note a transcript that was made in so many seconds of work."""
        self.audio_seconds.labels(transcript.language).inc(transcript.duration_s)
        self.words.labels(transcript.language).inc(len(transcript.words))
        if transcript.duration_s > 0:
            self.real_time_factor.labels(transcript.language).observe(seconds / transcript.duration_s)

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
