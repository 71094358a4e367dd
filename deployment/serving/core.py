"""What a replica does, whoever asks: a recording, a language and perhaps a bundle in, a transcript or a problem out.

Nothing here knows of a transport. `Serving.transcribe` works in the caller's thread, `Serving.submit` in a pool of
workers; how many recordings wait for one is bounded, and beyond that the answer is a typed problem at once. What a
client sent wrongly is a `Problem`; anything else is the server's fault.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

from deployment.release.folder import ReleaseFolder
from deployment.release.reports import ReplicaReport
from deployment.serving.following import Follower
from deployment.serving.metrics import Metrics
from deployment.serving.problems import Problem
from deployment.serving.routing import LoadedModel, NoModel
from deployment.serving.transcription import Cancelled, transcribe
from speech.audio.decode import AudioError, AudioLimits
from speech.recognition.offline import RecognitionError
from speech.scripts import primary_language
from speech.store.objects import Objects
from speech.transcript import Transcript

FORMATS = {"json": "application/json", "srt": "application/x-subrip", "vtt": "text/vtt"}
BUSY_RETRY_S = 2
NO_MODEL = "No model is served"
NO_MODEL_RETRY_S = 10
_NOT_OURS = (Problem, Cancelled)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServingOptions:
    """How one replica serves.

    Attributes:
        objects: the data store.
        url: where other processes reach this replica.
        replica: name of this replica, unique among those that share the data store.
        workers: recordings transcribed at the same time; they share each model.
        threads: threads of one recognition.
        queue_limit: received recordings that may wait for a worker.
        upload_limit: recordings being received at the same time.
        max_bytes, max_duration_s: largest and longest recording.
        upload_idle_s: a client that sends nothing for so long, or that falls so far behind the slowest pace, gives its
            place to another.
        ledger_key: with which decisions have to be signed; None: they need not be.
    """

    objects: Objects
    url: str = ""
    replica: str = field(default_factory=lambda: f"{os.uname().nodename}-{os.getpid()}")
    workers: int = field(default_factory=lambda: min(4, os.cpu_count() or 1))
    threads: int = 1
    queue_limit: int = 32
    upload_limit: int = 64
    max_bytes: int = 1 << 30
    max_duration_s: float = 4 * 3600.0
    upload_idle_s: float = 20.0
    ledger_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Source:
    """A recording as it was received; `name` is for messages, `request` for the log."""

    file: BinaryIO
    name: str = "recording"
    request: str = ""


@dataclass(frozen=True)
class Answer:
    """A transcript, the seconds of work that it took, and the model that wrote it."""

    transcript: Transcript
    seconds: float
    model: LoadedModel


class Serving:
    """One replica's models, workers and figures."""

    def __init__(self, options: ServingOptions) -> None:
        self.options = options
        self.folder = ReleaseFolder(options.objects)
        self.metrics = Metrics()
        self.follower = Follower(
            self.folder, options.replica, options.url, options.threads, self.metrics.show_models, options.ledger_key
        )
        self.routes = self.follower.routes
        self.limits = AudioLimits(max_duration_s=options.max_duration_s, max_encoded_bytes=options.max_bytes)
        self._workers = ThreadPoolExecutor(options.workers, thread_name_prefix="transcribe")
        self._lock = threading.Lock()
        self._receiving = 0
        self._taken = 0

    def start(self) -> None:
        """Follow the release document and report."""
        self.follower.start()

    def close(self) -> None:
        """End the background work; requests have ended by now."""
        self.follower.stop()
        self._workers.shutdown(wait=True, cancel_futures=True)

    def language(self, wanted: str | None, digest: str | None = None) -> str:
        """The language to transcribe, as its primary subtag.

        Raises:
            Problem: it is not served, or it was not named although several are.
        """
        served = self.routes.languages()
        if not wanted:
            if len(served) > 1:
                detail = f"Say which language is spoken, as `language=`: one of {', '.join(served)}."
                raise Problem(400, "language-required", "Language required", detail, extra={"served": served})
            if not served:
                raise self._no_model("No language has a model in production")
            wanted = served[0]
        wanted = primary_language(wanted) or wanted  # what is no tag is refused as it was written
        try:
            self.routes.require(wanted, digest)
        except NoModel as error:
            if digest is not None and (error.known or served):
                raise Problem(404, "bundle-not-loaded", "Bundle not loaded", f"This replica says: {error}.") from error
            if error.known or not served:
                raise self._no_model(str(error)) from error
            detail = f"'{wanted[:35]}' is not served here; served: {', '.join(served)}."
            raise Problem(404, "unknown-language", "Language not served", detail, extra={"served": served}) from error
        return wanted

    def ready(self) -> tuple[tuple[str, ...], str]:
        """Languages that are served, and what stands in the way of others or of following the document."""
        languages, report = self.routes.languages(), self.follower.report()
        reasons = _errors(report)
        if not languages and not reasons:
            reasons = self._loading(report) or [f"nothing is released yet in {self.folder.document}"]
        return languages, "; ".join(reasons)

    def _loading(self, report: ReplicaReport) -> list[str]:
        """What will be served without anybody's doing."""
        if report.revision < 0:
            return [f"{self.folder.document} was not read yet"]
        return [
            f"{language}: bundle {digest[:12]} is being loaded ({stage})"
            for language, said in report.languages.items()
            for digest, stage in said.loading.items()
        ]

    @contextlib.contextmanager
    def receiving(self, *, for_later: bool = False) -> Iterator[None]:
        """Count a recording that is being received; refuses when there are too many.

        It also does when nobody would have time for it, unless it is `for_later`.
        """
        with self._lock:
            if self._receiving >= self.options.upload_limit or (self._full() and not for_later):
                raise _busy()
            self._receiving += 1
        try:
            yield
        finally:
            with self._lock:
                self._receiving -= 1

    def submit(self, source: Source, language: str, digest: str | None, cancelled: threading.Event) -> "Future[Answer]":
        """`transcribe` in a worker; the source must stay open until the future has ended.

        Raises:
            Problem: too many wait already.
        """
        with self._lock:
            if self._full():
                raise _busy()
            self._taken += 1
            self._show_queue()
        try:
            future = self._workers.submit(self.transcribe, source, language, digest, cancelled)
        except BaseException:  # no worker takes it: the server is closing
            self._ended()
            raise
        future.add_done_callback(lambda _: self._ended())
        return future

    def transcribe(self, source: Source, language: str, digest: str | None, cancelled: threading.Event) -> Answer:
        """Transcribe with the version whose turn it is, or with the one asked for, and count how that went.

        A new version that fails on its canary share costs no customer an answer: the version it is tried against takes
        over, and the failure stands in the new one's figures.

        Args:
            language: as `language` returns it.
            digest: exactly this bundle, which must be loaded; None: by the shares of the traffic.

        Raises:
            Problem: the recording cannot be used, or nothing serves the language any more.
            Cancelled: `cancelled` was set meanwhile.
        """
        if cancelled.is_set():
            raise Cancelled("the client closed the connection")
        try:
            answer = self._answered(source, language, digest, cancelled)
        except NoModel as error:  # the release changed since the language was looked up
            raise Problem(503, "no-model", NO_MODEL, f"{error}: try again.", retry_after_s=BUSY_RETRY_S) from error
        self.metrics.heard(answer.transcript, answer.seconds)
        return answer

    def _answered(self, source: Source, language: str, digest: str | None, cancelled: threading.Event) -> Answer:
        with self.routes.lease(language, digest) as model:
            try:
                return self._counted(source, model, cancelled, routed=digest is None)
            except _NOT_OURS:
                raise
            except Exception:
                if digest is not None:
                    raise
                with contextlib.suppress(NoModel), self.routes.lease(language, instead_of=model) as stable:
                    log.exception(
                        "request %s: version %s failed, version %s answers instead",
                        source.request,
                        model.version,
                        stable.version,
                    )
                    return self._counted(source, stable, cancelled, routed=True)
                raise

    def _counted(self, source: Source, model: LoadedModel, cancelled: threading.Event, *, routed: bool) -> Answer:
        """Transcribe, and note in the model's figures how that went; what clients do wrong is not its fault."""
        began = time.monotonic()
        try:
            transcript = transcribe(source.file, source.name, model, self.limits, cancelled)
        except Cancelled:
            raise
        except AudioError as error:
            detail = f"{source.name}: {error.reason}."
            raise Problem(
                422, error.code, "Recording cannot be used", detail, extra={"reason": error.reason}
            ) from error
        except RecognitionError as error:
            detail = f"{source.name}: {error}."
            raise Problem(422, "unusable-samples", "Recording cannot be used", detail) from error
        except Exception:
            self._count(model, None, routed=routed)
            raise
        seconds = time.monotonic() - began
        self._count(model, seconds, empty=not transcript.words, routed=routed)
        return Answer(transcript, seconds, model)

    def _count(self, model: LoadedModel, seconds: float | None, *, empty: bool = False, routed: bool) -> None:
        self.metrics.count(model, seconds, empty=empty)
        if routed:  # probes do not tell how customers are served
            self.routes.count(model, seconds, empty=empty)

    def _ended(self) -> None:
        with self._lock:
            self._taken -= 1
            self._show_queue()

    def _full(self) -> bool:
        return self._taken >= self.options.workers + self.options.queue_limit

    def _show_queue(self) -> None:
        self.metrics.queued.set(max(0, self._taken - self.options.workers))

    def _no_model(self, why: str) -> Problem:
        report = self.follower.report()
        errors = [said for said in _errors(report) if said.partition(": ")[2] not in why]
        wrong = "; ".join([why, *errors])
        if _errors(report):
            detail = f"{wrong}: this replica tries again by itself, and serves it within seconds of being mended."
        elif coming := self._loading(report):
            detail = f"{why}: {'; '.join(coming)}."
        else:
            detail = (
                f"{why}: approve a registered model and release it; this replica follows {self.folder.document} and "
                "will serve it within seconds."
            )
        return Problem(503, "no-model", NO_MODEL, detail, retry_after_s=NO_MODEL_RETRY_S)


def _errors(report: ReplicaReport) -> list[str]:
    """What keeps a replica from following the document, or from serving what it says."""
    errors = [f"{lang}: {why}" for lang, said in report.languages.items() for why in said.errors.values()]
    return [report.error] * bool(report.error) + errors


def _busy() -> Problem:
    detail = "As many recordings wait as this replica accepts: try again, or add replicas."
    return Problem(503, "busy", "Server busy", detail, retry_after_s=BUSY_RETRY_S)
