"""The roll-out: a release document that every replica of the serving tier follows, changed step by step.

What should be served is one file, `release.json`: per language the bundles and their share of the traffic. A replica
reads it, verifies, loads and warms what it names, and writes down what it really runs. `release` adds the new bundle
with share 0, waits until every live replica has it, asks each over HTTP to transcribe real recordings with it, and only
then gives it the traffic; anything that goes wrong puts the former document back. The same holds for one process on a
laptop and for many hosts that share the folder.

A roll-out that is killed leaves at worst a bundle with share 0, which gets no traffic; the next one starts by taking it
out. Two roll-outs at once are refused by a lock, which the kernel frees when its holder dies.

Not covered: a replica that starts after the probes is not probed itself; it verifies digests, warms the model, and
reports, and what it cannot load it does not serve.
"""

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from speech.bundle import BundleError, ModelBundle
from speech.store import write_json

if TYPE_CHECKING:
    import httpx
    import numpy as np

RELEASE_SCHEMA = 1
BUNDLE_HEADER = "X-Soundstage-Bundle"
POLL_S = 0.2
HEARTBEAT_FRESH_S = 10.0  # replicas write every second; a busy host may be late
FORGOTTEN_AFTER_S = 24 * 3600.0  # reports of replicas that died long ago are removed
PROBE_LATENCY_S = 10.0  # beyond this a first answer is a fault and not a slow machine

State = Literal["full", "probe", "back"]


class ReleaseFailed(Exception):
    """A roll-out did not come through; the document is again what it was before."""


class ReleaseDocumentError(Exception):
    """The release document or a replica's report cannot be read."""


@dataclass(frozen=True)
class Route:
    """A bundle and the share (0 to 1) of new requests that goes to it; with 0 it is loaded but only asked by name."""

    digest: str
    bundle: str  # folder; relative to the home folder when it lies inside, so that the home may be mounted elsewhere
    share: float
    version: str = ""
    model: str = ""


@dataclass(frozen=True)
class LanguageRelease:
    """What is served for one language; `previous` is what was served before the last change."""

    routes: tuple[Route, ...]
    state: State = "full"
    previous: tuple[Route, ...] = ()

    @property
    def serving(self) -> tuple[Route, ...]:
        """Routes that get traffic."""
        return tuple(route for route in self.routes if route.share > 0)


@dataclass(frozen=True)
class ReleaseDocument:
    """What should be served, whole. `revision` grows with every change."""

    revision: int = 0
    languages: Mapping[str, LanguageRelease] = field(default_factory=dict)
    updated_at: str = ""

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "schema": RELEASE_SCHEMA,
            **asdict(self),
            "languages": {k: asdict(v) for k, v in self.languages.items()},
        }

    @classmethod
    def from_dict(cls, values: Any) -> "ReleaseDocument":
        """From JSON values.

        Raises:
            ReleaseDocumentError: schema or fields are not those of this version.
        """
        try:
            if values["schema"] != RELEASE_SCHEMA:
                raise ReleaseDocumentError(
                    f"release document has schema {values['schema']}, this version reads {RELEASE_SCHEMA}: upgrade"
                )
            languages = {
                str(language): LanguageRelease(
                    routes=tuple(_route(route) for route in release["routes"]),
                    state=release["state"],
                    previous=tuple(_route(route) for route in release["previous"]),
                )
                for language, release in values["languages"].items()
            }
            return cls(int(values["revision"]), languages, str(values["updated_at"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReleaseDocumentError(f"release document is not valid ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class LanguageReport:
    """What a replica runs for one language.

    Attributes:
        active: digest -> share of what it routes traffic to.
        loaded: digests it can be asked for.
        draining: digests that only finish requests that had begun.
        errors: digest -> why it could not be loaded.
    """

    active: Mapping[str, float] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    errors: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica really runs, and since when it was heard of (`heartbeat`, seconds since 1970, UTC)."""

    replica: str
    url: str
    revision: int
    heartbeat: float
    languages: Mapping[str, LanguageReport] = field(default_factory=dict)
    started_at: str = ""
    error: str = ""

    def fresh(self, now: float | None = None) -> bool:
        """Whether the replica was heard of lately."""
        return (time.time() if now is None else now) - self.heartbeat <= HEARTBEAT_FRESH_S

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"schema": RELEASE_SCHEMA, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> "ReplicaReport":
        """From JSON values.

        Raises:
            ReleaseDocumentError: fields are missing or of other kinds.
        """
        try:
            languages = {
                str(language): LanguageReport(
                    active={str(k): float(v) for k, v in report["active"].items()},
                    loaded=tuple(report["loaded"]),
                    draining=tuple(report["draining"]),
                    errors=dict(report["errors"]),
                )
                for language, report in values["languages"].items()
            }
            return cls(
                replica=str(values["replica"]),
                url=str(values["url"]),
                revision=int(values["revision"]),
                heartbeat=float(values["heartbeat"]),
                languages=languages,
                started_at=str(values["started_at"]),
                error=str(values["error"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ReleaseDocumentError(f"replica report is not valid ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class GoldenUtterance:
    """A real recording that a new bundle must transcribe in place before it gets traffic.

    `expected` is the bundle's own offline text; None: it is computed from the bundle here.
    """

    audio: Path
    reference: str
    expected: str | None = None


@dataclass(frozen=True)
class ProbeResult:
    """One recording answered by one replica."""

    replica: str
    audio: str
    text: str
    latency_s: float


@dataclass(frozen=True)
class ReleaseResult:
    """A roll-out that came through; `changed` is False when the bundle was being served already."""

    language: str
    digest: str
    revision: int
    changed: bool
    replicas: tuple[str, ...]
    probes: tuple[ProbeResult, ...]
    previous: tuple[str, ...]
    seconds: float


class ReleaseFolder:
    """`<home>/release`: the document, the replicas' reports, and the history."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "release"
        self.document = self.root / "release.json"
        self.replicas = self.root / "replicas"
        self._history = self.root / "history.jsonl"

    def read(self) -> ReleaseDocument:
        """The document; an empty one when nothing was released yet.

        Raises:
            ReleaseDocumentError: it cannot be read.
        """
        try:
            values = json.loads(self.document.read_bytes())
        except FileNotFoundError:
            return ReleaseDocument()
        except (OSError, ValueError) as error:
            raise ReleaseDocumentError(f"{self.document} cannot be read ({error}): restore or remove it") from error
        try:
            return ReleaseDocument.from_dict(values)
        except ReleaseDocumentError as error:
            raise ReleaseDocumentError(f"{self.document}: {error}") from error

    def set_language(self, language: str, release: LanguageRelease | None) -> ReleaseDocument:
        """Replace what is served for a language (None: nothing) in one step; returns the new document."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "document.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = self.read()
            languages = {name: other for name, other in before.languages.items() if name != language}
            if release is not None:
                languages[language] = release
            document = ReleaseDocument(before.revision + 1, languages, datetime.now(UTC).isoformat(timespec="seconds"))
            write_json(self.document, document.to_dict())
            return document

    def resolve(self, route: Route) -> Path:
        """The folder of a route's bundle."""
        return self.home / route.bundle

    def relative(self, bundle: Path) -> str:
        """How a bundle's folder is written in the document."""
        absolute = bundle.absolute()
        return str(absolute.relative_to(self.home) if absolute.is_relative_to(self.home) else absolute)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """Reports of all replicas that can be read, whether alive or not."""
        found = []
        for path in sorted(self.replicas.glob("*.json")):
            # a report that is being removed, or of another version, says nothing about what runs
            with suppress(OSError, ValueError, ReleaseDocumentError):
                found.append(ReplicaReport.from_dict(json.loads(path.read_bytes())))
        return tuple(found)

    def live(self) -> tuple[ReplicaReport, ...]:
        """Reports of the replicas that were heard of lately."""
        return tuple(report for report in self.reports() if report.fresh())

    def report(self, report: ReplicaReport) -> None:
        """Write a replica's report."""
        write_json(self.replicas / f"{report.replica}.json", report.to_dict())

    def forget(self, replica: str) -> None:
        """Remove a replica's report: it has ended."""
        (self.replicas / f"{replica}.json").unlink(missing_ok=True)

    def forget_dead(self) -> None:
        """Remove reports of replicas that were killed long ago and could not do it themselves."""
        for report in self.reports():
            if time.time() - report.heartbeat > FORGOTTEN_AFTER_S:
                self.forget(report.replica)

    def record(self, event: Mapping[str, Any]) -> None:
        """Append to the history, flushed to disk."""
        self.root.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **event}, sort_keys=True)
        handle = os.open(self._history, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(handle, f"{line}\n".encode())
            os.fsync(handle)
        finally:
            os.close(handle)

    def history(self) -> tuple[dict[str, Any], ...]:
        """What was released, oldest first; a line cut by a dying machine is left out."""
        events = []
        with suppress(FileNotFoundError):
            for line in self._history.read_text().splitlines():
                with suppress(ValueError):
                    events.append(json.loads(line))
        return tuple(events)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the right to roll out.

        Raises:
            ReleaseFailed: another roll-out is under way.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "rollout.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ReleaseFailed(
                    "another release is under way: wait until it has ended, then release again"
                ) from None
            yield


def release(
    store: ReleaseFolder | Path | str,
    language: str,
    bundle_path: Path,
    digest: str,
    golden: Sequence[GoldenUtterance],
    timeout_s: float = 60.0,
    *,
    model: str = "",
    version: str = "",
    allow_no_replica: bool = False,
    latency_limit_s: float = PROBE_LATENCY_S,
) -> ReleaseResult:
    """Give a language's traffic to a bundle, after every live replica has proved that it can serve it.

    Args:
        store: the home folder, which holds `release/`.
        digest: what the registry says the bundle's digest is.
        golden: recordings that every replica must answer with the bundle's own offline text.
        timeout_s: for loading, and again for switching.
        allow_no_replica: with no live replica, prove the bundle in this process and leave the document for servers
            that start later.

    Raises:
        ReleaseFailed: the document is again what it was before; the message says what went wrong.
    """
    folder = store if isinstance(store, ReleaseFolder) else ReleaseFolder(store)
    with folder.exclusive():
        folder.forget_dead()
        return _Rollout(folder, language, bundle_path, digest, tuple(golden), timeout_s, latency_limit_s).run(
            model, version, allow_no_replica
        )


@dataclass
class _Rollout:
    """One roll-out, from the first check to the switch or back."""

    folder: ReleaseFolder
    language: str
    bundle_path: Path
    digest: str
    golden: tuple[GoldenUtterance, ...]
    timeout_s: float
    latency_limit_s: float

    def run(self, model: str, version: str, allow_no_replica: bool) -> ReleaseResult:
        began = time.monotonic()
        before = self._before()
        previous = before.serving if before else ()
        event = {"language": self.language, "digest": self.digest, "model": model, "version": version}
        written = False
        try:
            expected = self._expected_texts()
            live = self.folder.live()
            if not live and not allow_no_replica:
                raise ReleaseFailed(
                    f"no replica of the serving tier is alive (reports in {self.folder.replicas}): start one with "
                    "`python -m deployment.serving`, or allow a release without replicas"
                )
            route = Route(self.digest, self.folder.relative(self.bundle_path), 1.0, version, model)
            changed = before is None or before.state == "probe" or previous != (route,)
            probes: tuple[ProbeResult, ...] = ()
            written = changed
            if live:
                if changed:
                    candidate = () if self._serves(previous) else (replace(route, share=0.0),)
                    self._write(LanguageRelease((*previous, *candidate), "probe", previous))
                self._wait("load it", lambda report: self.digest in report.loaded)
                probes = self._probe_all(expected)
            if changed:
                older = before.previous if before and self._serves(previous) else previous
                self._write(LanguageRelease((route,), "full", older))
            if live:
                self._wait("switch to it", lambda report: dict(report.active) == {self.digest: 1.0})
            result = self._result(began, changed, probes, previous)
        except BaseException as error:
            if written:
                self._write(LanguageRelease(previous, "back", before.previous) if before and previous else None)
            reason = str(error) or type(error).__name__
            self.folder.record({**event, "outcome": "back" if written else "refused", "reason": reason})
            if isinstance(error, ReleaseFailed) or not isinstance(error, Exception):
                raise
            raise ReleaseFailed(f"{self._name} was not released: {reason}") from error
        self.folder.record({**event, "outcome": "full" if changed else "unchanged", "result": asdict(result)})
        return result

    def _serves(self, routes: Sequence[Route]) -> bool:
        return any(route.digest == self.digest for route in routes)

    def _write(self, release: LanguageRelease | None) -> None:
        self.folder.set_language(self.language, release)

    @property
    def _name(self) -> str:
        return f"bundle {self.digest[:12]} for '{self.language}'"

    def _before(self) -> LanguageRelease | None:
        """What the document says now."""
        try:
            return self.folder.read().languages.get(self.language)
        except ReleaseDocumentError as error:
            raise ReleaseFailed(str(error)) from error

    def _expected_texts(self) -> tuple[str, ...]:
        """The bundle's own offline text of each golden recording; verifies and loads the bundle."""
        if not self.golden:
            raise ReleaseFailed(f"{self._name} was not released: without golden recordings it cannot be probed")
        try:
            bundle = ModelBundle.load(self.bundle_path, self.digest)
            if bundle.language != self.language:
                raise ReleaseFailed(f"{self._name} was not released: the bundle is for '{bundle.language}'")
            from speech.recognition import Recognizer

            recognizer = Recognizer(bundle)
        except BundleError as error:
            raise ReleaseFailed(f"{self._name} was not released: {error}") from error
        texts = []
        for utterance in self.golden:
            text = recognizer.transcribe(_samples(utterance.audio)).text
            if not text:
                raise ReleaseFailed(f"{self._name} was not released: it hears nothing in {utterance.audio}")
            if utterance.expected is not None and utterance.expected != text:
                raise ReleaseFailed(
                    f"{self._name} was not released: in {utterance.audio} it hears '{text}' here, but "
                    f"'{utterance.expected}' when it was evaluated"
                )
            texts.append(text)
        return tuple(texts)

    def _wait(self, what: str, done: Callable[[LanguageReport], bool]) -> None:
        """Wait until all live replicas report; one that says it cannot, or nobody left, ends the roll-out."""
        deadline = time.monotonic() + self.timeout_s
        revision = self.folder.read().revision
        while True:
            live = self.folder.live()
            waiting = []
            for replica in live:
                report = replica.languages.get(self.language, LanguageReport())
                if replica.revision < revision:  # what it says is about an older document
                    waiting.append(f"{replica.replica} ({replica.error})" if replica.error else replica.replica)
                    continue
                if self.digest in report.errors:
                    raise ReleaseFailed(
                        f"{self._name} was not released: replica {replica.replica} cannot {what}: "
                        f"{report.errors[self.digest]}"
                    )
                if not done(report):
                    waiting.append(replica.replica)
            if not live:
                raise ReleaseFailed(f"{self._name} was not released: no replica is alive any more to {what}")
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise ReleaseFailed(
                    f"{self._name} was not released: {', '.join(waiting)} did not {what} within {self.timeout_s:g} s"
                )
            time.sleep(POLL_S)

    def _probe_all(self, expected: Sequence[str]) -> tuple[ProbeResult, ...]:
        import httpx

        probes = []
        with httpx.Client(timeout=self.latency_limit_s, trust_env=False) as client:
            for replica in self.folder.live():
                for utterance, text in zip(self.golden, expected, strict=True):
                    probes.append(self._probe(client, replica, utterance, text))
        if not probes:
            raise ReleaseFailed(f"{self._name} was not released: no replica is alive any more to be probed")
        return tuple(probes)

    def _probe(
        self, client: "httpx.Client", replica: ReplicaReport, utterance: GoldenUtterance, expected: str
    ) -> ProbeResult:
        """Ask one replica for one recording, by the bundle's digest."""
        import httpx

        failed = f"{self._name} was not released: replica {replica.replica} at {replica.url}"
        began = time.monotonic()
        try:
            with utterance.audio.open("rb") as audio:
                answer = client.post(
                    f"{replica.url}/v1/transcribe",
                    params={"language": self.language, "format": "json"},
                    content=audio,
                    headers={BUNDLE_HEADER: self.digest, "Content-Type": "application/octet-stream"},
                )
            latency_s = time.monotonic() - began
            if answer.status_code != 200:
                raise ReleaseFailed(
                    f"{failed} answered {answer.status_code} to {utterance.audio.name}: {answer.text[:300]}"
                )
            body = answer.json()
            served, text = body["model"]["digest"], body["text"]
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            raise ReleaseFailed(f"{failed} could not be probed: {type(error).__name__}: {error}") from error
        if served != self.digest:
            raise ReleaseFailed(f"{failed} answered with bundle {served[:12]}")
        if text != expected:
            raise ReleaseFailed(f"{failed} heard '{text}' in {utterance.audio.name}, the bundle by itself '{expected}'")
        if latency_s > self.latency_limit_s:
            raise ReleaseFailed(f"{failed} took {latency_s:.1f} s, more than {self.latency_limit_s:g} s")
        return ProbeResult(replica.replica, utterance.audio.name, text, round(latency_s, 4))

    def _result(
        self, began: float, changed: bool, probes: Sequence[ProbeResult], previous: Sequence[Route]
    ) -> ReleaseResult:
        return ReleaseResult(
            language=self.language,
            digest=self.digest,
            revision=self.folder.read().revision,
            changed=changed,
            replicas=tuple(report.replica for report in self.folder.live()),
            probes=tuple(probes),
            previous=tuple(route.digest for route in previous),
            seconds=round(time.monotonic() - began, 3),
        )


def _samples(path: Path) -> "np.ndarray":
    from speech.audio import AudioError, decode

    try:
        return decode(path).samples
    except (AudioError, OSError) as error:
        raise ReleaseFailed(f"golden recording {path} cannot be used: {error}") from error


def _route(values: Mapping[str, Any]) -> Route:
    share = float(values["share"])
    if not 0 <= share <= 1:
        raise ValueError(f"share {share} is not between 0 and 1")
    return Route(
        str(values["digest"]),
        str(values["bundle"]),
        share,
        str(values.get("version", "")),
        str(values.get("model", "")),
    )
