"""The release document, what replicas report about it, and the history of releases: all in `<home>/release`.

What should be served is one file, `release.json`: per language the bundles and their share of the traffic. Every
replica follows it and writes down what it really runs (`replicas/<name>.json`). What was tried and how it ended is one
line a step in `history/<language>.jsonl`. All are plain JSON that can be read without this package, on one laptop and
on a folder that many hosts share.

A document that somebody removed says nothing, and not that nothing should be served: replicas go on with what they have
and report it, and the next release writes the document again from their reports before it changes its own language. The
same holds for one that was edited or put back to an older one: every change that a release makes has a revision above
all that replicas follow, a language that is taken out included, so they refuse whatever has not. Not covered: a replica
that starts meanwhile, which has nothing or the wrong thing to follow, and an edit that raises the revision as well.
"""

import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast, get_args

from deployment.release.canary import Figures
from speech.store.outputs import parse_json, write_json

RELEASE_SCHEMA = 1
BUNDLE_HEADER = "X-Soundstage-Bundle"  # asks a replica for a loaded bundle by its digest, and names it in the answer
TIMING_HEADER = "Server-Timing"  # how long the work for an answer took, in ms (W3C Server Timing)
WORK_TIMING = "work"
HEARTBEAT_FRESH_S = 10.0  # replicas write every second; a busy host may be late, and clocks differ a little
FORGOTTEN_AFTER_S = 24 * 3600.0  # reports of replicas that died long ago are removed
RESTORE = "restore it, or move it away and launch `serving_release`"
WAITING_FRESH_S = 5.0  # a release that waits says so every POLL_S
POLL_S = 0.2

State = Literal["verify", "load", "warm", "probe", "canary", "full", "drained", "refused", "returned"]
WRONG_KIND = (KeyError, TypeError, ValueError, AttributeError, OverflowError)  # raised by JSON values of other kinds
UNDER_WAY = frozenset({"load", "warm", "probe", "canary"})  # states that a document only has while somebody releases


class ReleaseBusy(Exception):
    """Another release of the language is under way and did not end in time."""


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

    @property
    def title(self) -> str:
        """How people call it: its version, or the beginning of its digest."""
        return f"version {self.version}" if self.version else f"bundle {self.digest[:12]}"


@dataclass(frozen=True)
class LanguageRelease:
    """What is served for one language.

    Attributes:
        routes: the bundle or bundles with traffic, and with share 0 the standby and a candidate that is being probed.
        previous: while a release is under way, the routes before it; afterwards, what was served before.
        release: the attempt that wrote this.
        candidate: digest that this attempt is about, while it is under way.
        trial_s: replicas go back to `previous` by themselves when this document has lasted so long: what a canary
            falls back on when the process that watches it dies.
    """

    routes: tuple[Route, ...]
    state: State = "full"
    previous: tuple[Route, ...] = ()
    release: str = ""
    candidate: str = ""
    trial_s: float | None = None

    @property
    def serving(self) -> tuple[Route, ...]:
        """Routes that get traffic."""
        return tuple(route for route in self.routes if route.share > 0)

    @property
    def standby(self) -> tuple[Route, ...]:
        """Routes that served before and are kept warm without traffic."""
        return tuple(route for route in self.routes if route.share == 0 and route.digest != self.candidate)


@dataclass(frozen=True)
class ReleaseDocument:
    """What should be served, whole. `revision` grows with every change."""

    revision: int = 0
    languages: Mapping[str, LanguageRelease] = field(default_factory=dict)
    updated_at: str = ""

    @property
    def content(self) -> str:
        """SHA-256 of what is served, as hex: what tells apart two documents with one revision."""
        languages = {language: asdict(release) for language, release in self.languages.items()}
        return hashlib.sha256(json.dumps(languages, sort_keys=True).encode()).hexdigest()

    def succeeds(self, revision: int, content: str) -> bool:
        """Whether it may be followed after that revision with that content (empty: not known): newer, or the same."""
        return self.revision > revision or (self.revision == revision and content in ("", self.content))

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
                    state=_state(release["state"]),
                    previous=tuple(_route(route) for route in release["previous"]),
                    release=str(release.get("release", "")),
                    candidate=str(release.get("candidate", "")),
                    trial_s=None if release.get("trial_s") is None else float(release["trial_s"]),
                )
                for language, release in values["languages"].items()
            }
            return cls(int(values["revision"]), languages, str(values["updated_at"]))
        except WRONG_KIND as error:
            raise ReleaseDocumentError(f"release document is not valid ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class LanguageReport:
    """What a replica runs for one language.

    Attributes:
        active: digest -> share of what it routes traffic to.
        loaded: digests it can be asked for.
        draining: digests without traffic on which requests that had begun are still under way.
        loading: digest -> `verify`, `load` or `warm`: how far it has come with a bundle it does not serve yet.
        errors: digest -> why it could not be loaded.
        versions: digest -> version of all of these, as the document named it.
        figures: digest -> how it answered the traffic it was given, since it was loaded.
        routes: what it has loaded with the share it gives it, from which a lost document is written again.
    """

    active: Mapping[str, float] = field(default_factory=dict)
    loaded: tuple[str, ...] = ()
    draining: tuple[str, ...] = ()
    loading: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    figures: Mapping[str, Figures] = field(default_factory=dict)
    routes: tuple[Route, ...] = ()


@dataclass(frozen=True)
class ReplicaReport:
    """What one replica really runs, and when it was heard of (`heartbeat`, seconds since 1970, UTC).

    `revision` and `content` are those of the document that it follows.
    """

    replica: str
    url: str
    revision: int
    heartbeat: float
    languages: Mapping[str, LanguageReport] = field(default_factory=dict)
    started_at: str = ""
    error: str = ""
    content: str = ""

    def fresh(self, now: float | None = None) -> bool:
        """Whether the replica was heard of lately; a heartbeat from the future says as little as an old one.

        The replica's clock counts and not the file's time, which copying or restoring the folder makes new.
        """
        return abs((time.time() if now is None else now) - self.heartbeat) <= HEARTBEAT_FRESH_S

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
                    loaded=tuple(str(digest) for digest in report["loaded"]),
                    draining=tuple(str(digest) for digest in report["draining"]),
                    loading=_texts(report.get("loading", {})),
                    errors=_texts(report["errors"]),
                    versions=_texts(report.get("versions", {})),
                    figures={str(k): Figures.from_dict(v) for k, v in report.get("figures", {}).items()},
                    routes=tuple(_route(route) for route in report.get("routes", ())),
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
                content=str(values.get("content", "")),
            )
        except WRONG_KIND as error:
            raise ReleaseDocumentError(f"replica report is not valid ({type(error).__name__}: {error})") from error


@dataclass(frozen=True)
class Transition:
    """One step of a release, as the history keeps it.

    Attributes:
        time: UTC, ISO 8601.
        release: names one attempt; all its steps have it.
        state: what was entered; `refused` when nothing had been changed yet, `returned` when it had.
        share: of new requests that the version gets from here on.
        seconds: since the attempt began.
        figures: what led here, of the version itself (`requests`, `errors`, `empty_share`, `p50_s`, `p95_s`); empty
            for steps without requests.
        against: the same of the version that served meanwhile.
    """

    time: str
    release: str
    language: str
    state: State
    digest: str
    model: str
    version: str
    share: float
    seconds: float
    replicas: tuple[str, ...] = ()
    reason: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)
    against: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Any) -> "Transition":
        """From JSON values.

        Raises:
            ReleaseDocumentError: fields are missing or of other kinds.
        """
        try:
            datetime.fromisoformat(values["time"]).astimezone(UTC)
            return cls(
                time=values["time"],
                release=str(values["release"]),
                language=str(values["language"]),
                state=_state(values["state"]),
                digest=str(values["digest"]),
                model=str(values["model"]),
                version=str(values["version"]),
                share=float(values["share"]),
                seconds=float(values["seconds"]),
                replicas=tuple(str(replica) for replica in values["replicas"]),
                reason=str(values["reason"]),
                figures=_summary(values["figures"]),
                against=_summary(values["against"]),
            )
        except WRONG_KIND as error:
            raise ReleaseDocumentError(f"step is not valid ({type(error).__name__}: {error})") from error


class ReleaseFolder:
    """`<home>/release`: the document, the replicas' reports, and the history."""

    def __init__(self, home: Path | str) -> None:
        self.home = Path(home).absolute()
        self.root = self.home / "release"
        self.document = self.root / "release.json"
        self.replicas = self.root / "replicas"

    def read(self, *, expected: bool = False) -> ReleaseDocument:
        """The document; an empty one when nothing was released yet.

        Args:
            expected: there was one, so that a missing file is an error as well.

        Raises:
            ReleaseDocumentError: it cannot be read.
        """
        try:
            values = parse_json(self.document.read_bytes())
        except FileNotFoundError:
            if expected:
                raise ReleaseDocumentError(
                    f"{self.document} is missing: restore it, or launch `serving_release`"
                ) from None
            return ReleaseDocument()
        except (OSError, ValueError) as error:
            raise ReleaseDocumentError(f"{self.document} cannot be read ({error}): {RESTORE}") from error
        try:
            return ReleaseDocument.from_dict(values)
        except ReleaseDocumentError as error:
            raise ReleaseDocumentError(f"{self.document}: {error}: {RESTORE}") from error

    def set_language(self, language: str, release: LanguageRelease | None) -> ReleaseDocument:
        """Replace what is served for a language (None: nothing) in one step; returns the new document.

        Other languages stay as they are, also when the document was removed or edited (`restore_lost`).
        """
        with self._changing():
            before = self._read_or_lost()
            languages = {name: other for name, other in before.languages.items() if name != language}
            if release is not None:
                languages[language] = release
            return self._write(ReleaseDocument(before.revision + 1, languages, _now()))

    def restore_lost(self) -> None:
        """Write a document that was removed or edited again, as far as live replicas report what it held."""
        with self._changing():
            found, lost = self.read(), self._read_or_lost()
            if lost.languages and lost != found:
                self._write(ReleaseDocument(lost.revision + 1, lost.languages, _now()))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "document.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _write(self, document: ReleaseDocument) -> ReleaseDocument:
        write_json(self.document, document.to_dict())
        return document

    def _read_or_lost(self) -> ReleaseDocument:
        """The document; where there is none, or one that live replicas refuse, with what they run instead.

        Revisions go on from theirs, so that they follow the next and old reports are told. Of two versions on trial the
        one with the larger share gets all: who watched the trial has lost the document.
        """
        document = self.read()
        live = sorted(self.live(), key=lambda report: (report.revision, report.heartbeat))
        if self.document.exists() and all(document.succeeds(report.revision, report.content) for report in live):
            return document
        running = {
            language: LanguageRelease(_settled(said.routes))
            for report in live
            for language, said in report.languages.items()
            if said.active
        }
        revision = max(document.revision, *(report.revision for report in live), 0)
        return ReleaseDocument(revision, {**document.languages, **running})

    def resolve(self, route: Route) -> Path:
        """The folder of a route's bundle."""
        return self.home / route.bundle

    def relative(self, bundle: Path) -> str:
        """How a bundle's folder is written in the document."""
        absolute = bundle.absolute()
        return str(absolute.relative_to(self.home) if absolute.is_relative_to(self.home) else absolute)

    def reports(self) -> tuple[ReplicaReport, ...]:
        """Reports of all replicas that can be read, whether alive or not."""
        return tuple(report for _, report in self._reports())

    def _reports(self) -> Iterator[tuple[Path, ReplicaReport]]:
        for path in sorted(self.replicas.glob("*.json")):
            # a report that is being removed, of another version or not this replica's says nothing about what runs
            with suppress(OSError, ValueError, ReleaseDocumentError):
                report = ReplicaReport.from_dict(parse_json(path.read_bytes()))
                if report.replica == path.stem:
                    yield path, report

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
        for path, report in self._reports():
            if not abs(time.time() - report.heartbeat) <= FORGOTTEN_AFTER_S:
                with suppress(OSError):  # whoever looks next removes it
                    path.unlink()

    def differences(self, language: str, digest: str | None, version: str = "") -> tuple[str, ...]:
        """What live replicas run for a language other than this bundle (None: other than nothing), in sentences.

        Each names the replica, what it runs and what it should; so does one that runs the right bundle but cannot
        follow the document. None when all is well, and when no replica is alive.
        """
        asked = [digest] if digest else []
        with suppress(ReleaseDocumentError):  # each replica says so itself
            if released := self.read().languages.get(language):
                asked += [route.digest for route in released.serving if route.digest != digest]
        wanted = _named(digest, {digest: version} if digest else {}) if digest else "nothing"
        found = []
        for replica in self.live():
            report = replica.languages.get(language, LanguageReport())
            refused = [report.errors[other] for other in asked if other in report.errors]
            why = "; ".join([*refused, *[replica.error] * bool(replica.error)])
            if dict(report.active) == ({digest: 1.0} if digest else {}):
                if why:
                    found.append(
                        f"replica {replica.replica} at {replica.url} runs {wanted} for '{language}' as it should, but "
                        f"cannot follow the release document: {why}"
                    )
                continue
            runs = " and ".join(
                f"{_named(other, report.versions)} for {share:.0%} of its requests"
                for other, share in sorted(report.active.items(), key=lambda item: -item[1])
            )
            found.append(
                f"replica {replica.replica} at {replica.url} runs {runs or 'nothing'} for '{language}', but the "
                f"champion is {wanted}" + (f": {why}" if why else "")
            )
        return tuple(found)

    def record(self, transition: Transition) -> None:
        """Append to the history of the language, flushed to disk."""
        path = self._history(transition.language)
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(asdict(transition), sort_keys=True, ensure_ascii=False)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            size = os.fstat(handle).st_size
            torn = size > 0 and os.pread(handle, 1, size - 1) != b"\n"  # a machine died in the middle of a line
            os.write(handle, (("\n" if torn else "") + line + "\n").encode(errors="replace"))
            os.fsync(handle)
        finally:
            os.close(handle)

    def history(self, language: str) -> tuple[Transition, ...]:
        """The steps of all releases of a language, oldest first; what cannot be read is left out.

        It is shown and nothing rests on it: a line that a dying machine cut or somebody edited stops no release.
        """
        steps = []
        with suppress(OSError):
            for line in self._history(language).read_bytes().split(b"\n"):
                with suppress(ValueError, ReleaseDocumentError):
                    steps.append(Transition.from_dict(parse_json(line)))
        return tuple(steps)

    @contextmanager
    def exclusive(self, language: str, digest: str = "", wait_s: float = 0.0) -> Iterator[None]:
        """Hold the right to release a language; the kernel frees it when the holder dies.

        A release that waits says for which bundle, so that the one under way can give way to it (`waiting`).

        Raises:
            ReleaseBusy: another release did not end within `wait_s`.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        note = self._waiting(language)
        with (self.root / f"{_plain(language)}.lock").open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise ReleaseBusy(
                            f"another release of '{language}' is under way: wait until it has ended, then release again"
                        ) from None
                write_json(note, {"digest": digest, "at": time.time()})
                time.sleep(POLL_S)
            note.unlink(missing_ok=True)
            yield

    def waiting(self, language: str) -> str | None:
        """Digest of a release of the language that waits for the one under way, if any."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            note = parse_json(self._waiting(language).read_bytes())
            if time.time() - float(note["at"]) <= WAITING_FRESH_S:
                return str(note["digest"])
        return None

    def _history(self, language: str) -> Path:
        return self.root / "history" / f"{_plain(language)}.jsonl"

    def _waiting(self, language: str) -> Path:
        return self.root / f"{_plain(language)}.waiting.json"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _named(digest: str, versions: Mapping[str, str]) -> str:
    version = versions.get(digest, "")
    return f"version {version} ({digest[:12]})" if version else f"bundle {digest[:12]}"


def _plain(language: str) -> str:
    """A language as part of a file's name."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", language):
        raise ReleaseDocumentError(f"'{language}' is not a language tag such as 'en'")
    return language


def _settled(routes: tuple[Route, ...]) -> tuple[Route, ...]:
    """The same routes with all traffic on the one that has most of it."""
    most = max(routes, key=lambda route: route.share)
    return tuple(replace(route, share=1.0 if route == most else 0.0) for route in routes)


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


def _state(value: Any) -> State:
    if value not in get_args(State):
        raise ValueError(f"state {value!r} is none of {', '.join(get_args(State))}")
    return cast(State, value)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in values.items()}


def _summary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Figures as `Figures.summary` gives them, or none."""
    if not values:
        return {}
    return {
        "requests": int(values["requests"]),
        "errors": int(values["errors"]),
        "empty_share": float(values["empty_share"]),
        **{name: None if values[name] is None else float(values[name]) for name in ("p50_s", "p95_s")},
    }
