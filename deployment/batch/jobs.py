"""Jobs: somebody gives a recording, or names one in S3, and wants to know what becomes of it.

A job's recording is an upload like any other, of the hour in which it was received, and goes through that hour's
stages. So nothing here transcribes: where a job stands is told by what its hour's assets hold. What is written is a
record when it is asked for, and one when it has ended, each once: whoever is first decides whether a job was cancelled
or done. `jobs/waiting` holds the jobs that somebody has to look after until then (`settle`), and is written first, so
that a job of which its client has heard is never forgotten.

The same key again, with the same request, is the same job. A job that was cancelled after its recording was received is
still transcribed with its hour; its client hears no more of it.
"""

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeVar

from pydantic import Field

from deployment.aws import client, s3_place
from deployment.batch.arrivals.bucket import Place, place_of, upload_from
from deployment.batch.arrivals.receipts import Arrival, Unreadable, arrival_of, file, hour_of, keep, kept, named
from deployment.batch.notices import Notice, announce, body_of
from deployment.batch.progress import STAGES, Reader
from deployment.batch.settings import InferenceSettings
from deployment.batch.versions import Versions, in_force
from deployment.batch.webhooks import WebhookRefused, checked
from deployment.serving.problems import Problem
from speech.plain import from_plain, to_plain
from speech.scripts import primary_language
from speech.store.objects import LostRace, Missing, Objects, StoreError
from speech.store.outputs import DataStore, parse_json, to_json
from speech.transcript import Transcript

WAITING, RECORDS, ENDS, KEYS, DELAYS = "jobs/waiting", "jobs/records", "jobs/ends", "jobs/keys", "jobs/delays"
LONGEST_KEY = 255  # characters of an idempotency key
LONGEST_NAME = 200  # characters of a recording's name
SCANNED = 500  # jobs looked at for a page

Status = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
KindT = TypeVar("KindT")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job as it was asked for."""

    id: str  # begins with the moment, so that ids are in the order of time
    created_at: datetime  # UTC
    name: str  # of the recording
    place: Place | None  # where it is fetched from; None: it was given
    digest: str | None  # SHA-256 of a given recording
    size: int | None  # its bytes
    language: str | None
    webhook: str | None

    @property
    def upload(self) -> str:
        """The id of its upload."""
        return named("job", self.id)


@dataclass(frozen=True, kw_only=True)
class End:
    """How a job ended."""

    status: Literal["done", "failed", "cancelled"]
    at: datetime
    code: str | None = None  # of a failure
    reason: str | None = None
    hour: str | None = None  # whose transcripts hold it
    published: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Delay:
    """Why an hour that jobs wait for is not made yet."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class JobView:
    """Where a job stands."""

    id: str
    status: Status
    created_at: datetime
    ended_at: Annotated[datetime | None, Field(description="When it was found to have ended; null: it has not.")] = None
    name: Annotated[str, Field(description="Of the recording.")]
    uri: Annotated[str | None, Field(description="Where it was fetched from; null: it was uploaded.")] = None
    language: Annotated[str | None, Field(description="As it was asked for.")] = None
    hour: Annotated[
        str | None, Field(description="The hour, UTC, that it is transcribed with; null: not received yet.")
    ] = None
    stage: Annotated[str | None, Field(description="What is being made of it now.")] = None
    stages_done: int = 0
    stages: Annotated[int, Field(description="How many there are.")] = len(STAGES)
    delayed: Annotated[
        str | None, Field(description="Why the last run of its hour failed, which is tried again; null: it did not.")
    ] = None
    published: Annotated[
        bool | None, Field(description="Whether the transcript was sure enough; else people are asked. Null: not done.")
    ] = None
    code: Annotated[str | None, Field(description="Of a failure, for programs.")] = None
    reason: Annotated[str | None, Field(description="Of a failure, in words.")] = None
    result: Annotated[str | None, Field(description="Path of the transcript; null: there is none.")] = None


class Jobs:
    """The jobs of a deployment."""

    def __init__(self, objects: Objects, settings: InferenceSettings, languages: tuple[str, ...]) -> None:
        self.objects, self.settings, self.languages = objects, settings, languages
        self._store = DataStore(objects)

    def check(self, language: str | None, webhook: str | None, key: str | None) -> str | None:
        """Refuse what cannot be a job, before its recording is received; returns the language's primary tag.

        Raises:
            Problem: the language is not one of the deployment's, the webhook is not allowed, or the key is none.
        """
        if key is not None and not (key.strip() and len(key) <= LONGEST_KEY and key.isprintable()):
            detail = f"An Idempotency-Key is 1 to {LONGEST_KEY} printable characters, such as a UUID."
            raise Problem(400, "bad-idempotency-key", "Idempotency key cannot be used", detail)
        if webhook is not None:
            self._check_webhook(webhook)
        if not language:
            return None
        spoken = primary_language(language) or language
        if spoken not in self.languages:
            detail = f"'{language[:35]}' is not transcribed here; languages: {', '.join(self.languages)}."
            raise Problem(
                404, "unknown-language", "Language not served", detail, extra={"languages": list(self.languages)}
            )
        return spoken

    def _check_webhook(self, url: str) -> None:
        if self.settings.jobs.webhook_secret is None:
            detail = "Notices are signed, and `webhook_secret` of [inference.jobs] is not set: set it, or ask the job."
            raise Problem(422, "webhook-refused", "Webhook refused", detail)
        try:
            checked(url, http=self.settings.jobs.webhook_http, private=self.settings.jobs.webhook_private)
        except WebhookRefused as refused:
            raise Problem(422, "webhook-refused", "Webhook refused", f"{refused}.") from refused

    def found(self, uri: str) -> Place:
        """What is at a URI that a job may name.

        Raises:
            Problem: it may not, or nothing is there.
            StoreUnavailable: S3 does not answer.
        """
        allowed = ", ".join(self.settings.jobs.sources) or "none, as `sources` of [inference.jobs] is empty"
        try:
            bucket, key = s3_place(uri)
        except ValueError as error:
            detail = f"A job's URI {error}; recordings may be named below: {allowed}."
            raise Problem(403, "uri-not-allowed", "URI not allowed", detail) from None
        if not key or {"", ".", ".."} & set(key.split("/")) or not self._allows(bucket, key):
            detail = f"'{uri[:200]}' is not below what jobs may name: {allowed}. Upload the recording instead."
            raise Problem(403, "uri-not-allowed", "URI not allowed", detail)
        try:
            place = place_of(uri, client("s3"))
        except StoreError as error:
            raise Problem(422, "uri-refused", "Recording cannot be read", f"{error}.") from error
        if place is None:
            detail = f"There is nothing at {uri[:200]}: upload it first, or correct the URI."
            raise Problem(422, "no-object", "No such recording", detail)
        return place

    def _allows(self, bucket: str, key: str) -> bool:
        for place in self.settings.jobs.sources:
            allowed, prefix = s3_place(place)
            if bucket == allowed and key.startswith(f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""):
                return True
        return False

    def submit(
        self,
        recording: Path | Place,
        name: str,
        language: str | None,
        webhook: str | None,
        key: str | None,
        now: datetime,
    ) -> tuple[Job, bool]:
        """Make a job, or find the one that this key has made already, which the second value tells.

        Args:
            recording: the file of one that was given, or where it is, as `found` returned it.
            name: what it is called.
            language: as `check` returned it.
            webhook: who is told of its end.
            key: the same key is the same job.
            now: the moment, UTC.

        Raises:
            Problem: the key was used for another request.
            StoreError, StoreUnavailable: the data store refuses, or does not answer.
        """
        given = recording if isinstance(recording, Path) else None
        job = Job(
            id=f"{now:%Y%m%dT%H%M%S%f}-{secrets.token_hex(8)}",
            created_at=now,
            name=_plain(name),
            place=None if isinstance(recording, Path) else recording,
            digest=kept(given, self.objects) if given else None,
            size=given.stat().st_size if given else None,
            language=language,
            webhook=webhook,
        )
        if key is None:
            return self._written(job), False
        document = f"{KEYS}/{hashlib.sha256(key.encode()).hexdigest()}.json"
        try:
            self.objects.put_if_absent(document, to_json(to_plain(job)))
        except LostRace:
            before = self._read(Job, document)
            if _asked(before) != _asked(job):
                detail = (
                    f"This Idempotency-Key has made job {before.id} of another recording, language or webhook: use a "
                    "new key for another job."
                )
                extra = {"job": before.id}
                raise Problem(409, "idempotency-conflict", "Key used for another job", detail, extra=extra) from None
            return self._written(before), True
        return self._written(job), False

    def _written(self, job: Job) -> Job:
        """The job, of whose records both are there; one that has its second one has had the first."""
        if self._found(Job, f"{RECORDS}/{job.id}.json") is None:
            data = to_json(to_plain(job))
            for where in (WAITING, RECORDS):
                with suppress(LostRace):
                    self.objects.put_if_absent(f"{where}/{job.id}.json", data)
        return job

    def job(self, name: str) -> Job:
        """A job, by its id. Raises Problem where there is none."""
        found = self._found(Job, f"{RECORDS}/{name}.json") if _is_id(name) else None
        if found is None:
            detail = f"There is no job '{name[:60]}': GET /v1/jobs lists those that there are."
            raise Problem(404, "unknown-job", "No such job", detail)
        return found

    def view(self, job: Job) -> JobView:
        """Where a job stands."""
        return self._viewed(job, Reader(self._store))

    def page(self, status: Status | None, limit: int, before: str | None) -> tuple[list[JobView], str | None]:
        """Jobs from the newest on, and what `before` is for the next page; None where there is none."""
        names = sorted((PurePosixPath(item.key).stem for item in self.objects.list(RECORDS)), reverse=True)
        rest = [name for name in names if before is None or name < before]
        reader, views = Reader(self._store), []
        for count, name in enumerate(rest, 1):
            view = self._viewed(self.job(name), reader)
            if status in (None, view.status):
                views.append(view)
            if len(views) == limit or count == SCANNED:
                return views, name if count < len(rest) else None
        return views, None

    def cancel(self, job: Job, now: datetime) -> JobView:
        """End a job. Raises Problem where it has ended."""
        view = self.view(job)
        if view.status not in ENDED:
            self._end(job, End(status="cancelled", at=now))
            view = self.view(job)
        if view.status == "cancelled":
            return view
        detail = f"Job {job.id} is {view.status}: what has ended cannot be cancelled."
        raise Problem(409, "job-ended", "Job has ended", detail)

    def transcript(self, job: Job) -> Transcript:
        """The transcript of a job's recording that is in force, with what people corrected.

        Raises:
            Problem: there is none, or none yet.
        """
        view, arrival = self.view(job), self._first(job)
        if view.status == "done" and arrival is not None:
            counts = in_force(Versions(self.objects).of(arrival.recording))
            if counts is not None:
                return counts.transcript
        if view.status in ("queued", "running"):
            detail = f"Job {job.id} is {view.status}: ask for its status, or give a webhook."
            raise Problem(409, "job-not-done", "Job not done yet", detail, retry_after_s=10)
        reason = f": {view.reason}" if view.reason else ""
        extra = {"reason": view.code}
        raise Problem(
            409, "job-without-result", "No transcript", f"Job {job.id} is {view.status}{reason}.", extra=extra
        )

    def waiting(self) -> Iterator[Job]:
        """The jobs that `settle` has not seen end, the oldest first."""
        for item in list(self.objects.list(WAITING)):
            if (job := self._found(Job, item.key)) is not None:
                yield self._written(job)

    def settle(self, job: Job, now: datetime) -> JobView:
        """Do what a waiting job waits for: its given recording is received, and whoever asked hears of its end.

        Each step may be repeated after a kill.
        """
        view = self.view(job)
        if view.status == "queued" and view.hour is None and job.digest is not None:
            self._receive_given(job, now)
            view = self.view(job)
        if view.status in ENDED:
            end = self._end(job, _end_of(view, now))
            self._announce(job, end)
            self.objects.delete([f"{WAITING}/{job.id}.json"])
        return view

    def delay(self, hour: str, reason: str | None) -> None:
        """Have the jobs of an hour say why it is not made yet; None: nothing is wrong with it."""
        key = f"{DELAYS}/{hour}.json"
        if reason is None:
            self.objects.delete([key])
        elif self._found(Delay, key) != Delay(reason=reason):
            self.objects.put(key, to_json(to_plain(Delay(reason=reason))))

    def fetch(self, now: datetime, told: Callable[[str], None]) -> list[Arrival]:
        """Fetch the recordings that waiting jobs name; a job whose recording cannot be had has failed.

        Raises:
            StoreUnavailable: S3 does not answer.
        """
        received = []
        for job in self.waiting():
            if job.place is None or self.view(job).status != "queued" or arrival_of(job.upload, self.objects):
                continue
            upload = upload_from(job.place, job.upload, job.name, job.language, client("s3"))
            try:
                arrival = keep(upload, self.objects, now)
            except Unreadable as error:
                self._fail(job, "uri-refused", str(error), now, told)
                continue
            if arrival is None:
                gone = f"{job.place.uri} was removed or replaced before it was fetched"
                self._fail(job, "source-gone", gone, now, told)
            else:
                received.append(arrival)
        return received

    def _fail(self, job: Job, code: str, reason: str, now: datetime, told: Callable[[str], None]) -> None:
        told(f"job {job.id} has failed: {reason}")
        self._end(job, End(status="failed", at=now, code=code, reason=reason))

    def _receive_given(self, job: Job, now: datetime) -> None:
        assert job.digest is not None
        assert job.size is not None
        arrival = Arrival(
            id=job.upload,
            name=job.name,
            digest=job.digest,
            size=job.size,
            received_at=now,
            language=job.language,
            same_as=None,
        )
        file(arrival, self.objects)

    def _first(self, job: Job) -> Arrival | None:
        """The receipt whose bytes are transcribed for a job: its own, or that of who had the same bytes before."""
        arrival = arrival_of(job.upload, self.objects)
        return arrival_of(arrival.same_as, self.objects) if arrival is not None and arrival.same_as else arrival

    def _viewed(self, job: Job, reader: Reader) -> JobView:
        result = f"/v1/jobs/{job.id}/result"
        asked = JobView(
            id=job.id,
            status="queued",
            created_at=job.created_at,
            name=job.name,
            uri=job.place.uri if job.place else None,
            language=job.language,
        )
        if (end := self._found(End, f"{ENDS}/{job.id}.json")) is not None:
            return replace(
                asked,
                status=end.status,
                ended_at=end.at,
                hour=end.hour,
                stages_done=len(STAGES) if end.status == "done" else 0,
                published=end.published,
                code=end.code,
                reason=end.reason,
                result=result if end.status == "done" else None,
            )
        arrival = self._first(job)
        if arrival is None:
            return asked
        hour, progress = hour_of(arrival.received_at), reader.progress(arrival)
        reached = replace(asked, hour=hour, stages_done=progress.done)
        if progress.over:
            return replace(reached, status="done", published=progress.published, result=result)
        if progress.dead is not None:
            return replace(reached, status="failed", code=progress.dead.code, reason=progress.dead.reason)
        delay = self._found(Delay, f"{DELAYS}/{hour}.json")
        status: Status = "running" if progress.done else "queued"
        return replace(reached, status=status, stage=progress.stage, delayed=delay.reason if delay else None)

    def _end(self, job: Job, end: End) -> End:
        """Write how a job ended; returns what was written first."""
        key = f"{ENDS}/{job.id}.json"
        with suppress(LostRace):
            self.objects.put_if_absent(key, to_json(to_plain(end)))
        return self._read(End, key)

    def _announce(self, job: Job, end: End) -> None:
        body = body_of(f"job.{end.status}", end.at, to_plain(self.view(job)))
        for to, kind in ((job.webhook, "webhook"), (self.settings.jobs.topic, "topic")):
            if to is not None:
                announce(Notice(id=f"{job.id}-{kind}", to=to, body=body, created_at=end.at), self.objects)

    def _found(self, kind: type[KindT], key: str) -> KindT | None:
        try:
            return self._read(kind, key)
        except Missing:
            return None

    def _read(self, kind: type[KindT], key: str) -> KindT:
        return from_plain(kind, parse_json(self.objects.read(key).data))


def _end_of(view: JobView, now: datetime) -> End:
    return End(
        status=view.status,  # type: ignore[arg-type] # one of `ENDED`
        at=now,
        code=view.code,
        reason=view.reason,
        hour=view.hour,
        published=view.published,
    )


def _asked(job: Job) -> str:
    """What was asked for with a key."""
    what = job.digest or (job.place.id if job.place else None)
    return json.dumps([what, job.language, job.webhook])


def _plain(name: str) -> str:
    """A recording's name as tables and lists show it."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in last)
    return shown[-LONGEST_NAME:] or "recording"


def _is_id(name: str) -> bool:
    return len(name) < 60 and all(letter.isalnum() or letter in "-T" for letter in name) and name.isascii()
