"""Which replicas live: told by what they answer, or by the change of their reports, and never by anybody's clock.

A replica counts as living when it answers over HTTP about itself, or when its report has changed while somebody looked.
So neither a clock that is wrong nor a data store that cannot be written makes a replica that serves look dead. Where
nobody listens any more and the report stands still it is gone, and its report is removed: one that lives after all
writes it again within a second. What neither answers nor ends is silent, which is neither: whoever needs to know
refuses.

Not covered: a replica that could never write a report. Nobody knows where to ask it.
"""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from deployment.release.document import ReleaseDocumentError
from deployment.release.folder import ReleaseFolder
from deployment.release.reports import RUNNING_PATH, LanguageReport, ReplicaReport, named
from speech.plain import from_plain

POLL_S = 0.2
FRESH_S = 2.5  # reports come every second; one that changed so lately speaks for its replica
QUIET_S = 10.0  # so long after its last sign of life a replica that does not answer is still waited for
WATCH_S = 5.0  # how long one is watched that never gave a sign of life
ANSWER_S = 2.0
ASK_AGAIN_S = 5.0  # after no answer, which costs the asker ANSWER_S
_ASKERS = 16


@dataclass(frozen=True)
class Tier:
    """The replicas at one moment, each once; `unknown` ones have not been watched for long enough."""

    live: tuple[ReplicaReport, ...] = ()
    silent: tuple[ReplicaReport, ...] = ()
    gone: tuple[ReplicaReport, ...] = ()
    unknown: tuple[ReplicaReport, ...] = ()


@dataclass
class _Seen:
    """What is known of a replica; times are of this process's monotonic clock."""

    report: ReplicaReport
    written: ReplicaReport  # the report on file that was seen last
    since: float
    changed_at: float = float("-inf")
    answered_at: float = float("-inf")
    ask_at: float = float("-inf")
    refused: bool = False  # at its address nobody listens, or somebody else


class Replicas:
    """The replicas of a data store, watched over time by one reader; for one thread."""

    def __init__(self, folder: ReleaseFolder) -> None:
        self._folder = folder
        self._seen: dict[str, _Seen] = {}

    def live(self) -> tuple[ReplicaReport, ...]:
        """What the living replicas say."""
        return self.look().live

    def look(self) -> Tier:
        """Read the reports, and ask whose report does not tell that it lives."""
        self._read()
        now = time.monotonic()
        self._ask([s for s in self._seen.values() if now - s.changed_at > FRESH_S and now >= s.ask_at])
        found: dict[str, list[ReplicaReport]] = {"live": [], "silent": [], "gone": [], "unknown": []}
        for name in sorted(self._seen):
            found[_state(self._seen[name], time.monotonic())].append(self._seen[name].report)
        return Tier(**{state: tuple(reports) for state, reports in found.items()})

    def settled(self) -> Tier:
        """Look until every replica has been watched for long enough, and remove reports of those that are gone."""
        while (tier := self.look()).unknown:
            time.sleep(POLL_S)
        for report in tier.gone:
            with suppress(OSError):  # whoever looks next removes it
                self._folder.forget(report.replica)
        return tier

    def differences(self, language: str, digest: str | None, version: str = "") -> tuple[str, ...]:
        """What living replicas run for a language other than this bundle (None: other than nothing), in sentences.

        Each names the replica, what it runs and what it should; so does one that runs the right bundle but cannot
        follow the document. None when all is well, and when no replica is alive.
        """
        asked = [digest] if digest else []
        with suppress(ReleaseDocumentError):  # each replica says so itself
            if released := self._folder.read().languages.get(language):
                asked += [route.digest for route in released.serving if route.digest != digest]
        wanted = named(digest, {digest: version}) if digest else "nothing"
        found = []
        for replica in self.live():
            report = replica.languages.get(language, LanguageReport())
            refused = [report.errors[other] for other in asked if other in report.errors]
            why = "; ".join([*refused, *[replica.error] * bool(replica.error)])
            right = dict(report.active) == ({digest: 1.0} if digest else {})
            if right and not why:
                continue
            runs = " and ".join(
                f"{named(other, report.versions)} for {share:.0%} of its requests"
                for other, share in sorted(report.active.items(), key=lambda item: -item[1])
            )
            but = "cannot follow the release document" if right else f"the champion is {wanted}"
            found.append(
                f"replica {replica.replica} at {replica.url} runs {runs or 'nothing'} for '{language}', but {but}"
                + (f": {why}" if why else "")
            )
        return tuple(found)

    def _read(self) -> None:
        now = time.monotonic()
        written = {report.replica: report for report in self._folder.reports()}
        self._seen = {name: seen for name, seen in self._seen.items() if name in written}
        for name, report in written.items():
            seen = self._seen.setdefault(name, _Seen(report, report, now))
            if (report.process, report.beat) != (seen.written.process, seen.written.beat):
                seen.report = seen.written = report
                seen.changed_at, seen.ask_at, seen.refused = now, float("-inf"), False

    def _ask(self, silent: list[_Seen]) -> None:
        """Ask side by side: one that does not answer keeps nobody else waiting."""
        if not silent:
            return
        with ThreadPoolExecutor(min(_ASKERS, len(silent))) as pool:
            for seen, answer in zip(silent, pool.map(_answer, [s.report for s in silent]), strict=True):
                if isinstance(answer, ReplicaReport):
                    seen.report, seen.answered_at, seen.refused = answer, time.monotonic(), False
                else:
                    seen.refused, seen.ask_at = answer, time.monotonic() + (POLL_S if answer else ASK_AGAIN_S)


def silence(reports: Iterable[ReplicaReport]) -> str:
    """What to say of silent replicas, and what to do; empty without any."""
    said = [f"{report.replica} at {report.url}" for report in reports]
    if not said:
        return ""
    return (
        f"replica {', '.join(said)} neither answers nor has ended, so what it serves cannot be told: end it, and if "
        "its machine is gone remove its report from `release/replicas` of the data store"
    )


def _state(seen: _Seen, now: float) -> str:
    last = max(seen.changed_at, seen.answered_at)
    if now - last <= (FRESH_S if seen.refused else QUIET_S):
        return "live"
    if now - seen.since < (FRESH_S if seen.refused else WATCH_S):
        return "unknown"
    return "gone" if seen.refused else "silent"


def _answer(said: ReplicaReport) -> ReplicaReport | bool:
    """What a replica says of itself now; otherwise whether it is sure that it does not listen there."""
    import httpx

    try:
        answer = httpx.get(f"{said.url}{RUNNING_PATH}", timeout=ANSWER_S, trust_env=False)
        report = from_plain(ReplicaReport, answer.json()["running"])
    except httpx.ConnectError:
        return True
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
        return False
    return report if report.replica == said.replica else True
