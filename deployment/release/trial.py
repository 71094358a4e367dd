"""A canary's trial: what the new and the old version answer over the same stretch of time.

Customers' requests are counted by the replicas, which report them; what customers do not ask within the time, the
release asks itself, both versions alike. The two are judged apart, since their recordings are others.
"""

import itertools
import time
from collections.abc import Callable

from deployment.release.canary import Canary, Figures
from deployment.release.life import POLL_S, Replicas
from deployment.release.probes import Probes, Unfit, work_s
from deployment.release.reports import LanguageReport, ReplicaReport

REPORT_LAG_S = 1.5  # what replicas have counted is in their reports after this
NOT_READY = frozenset({404, 502, 503, 504})  # a replica that restarts or is busy; says nothing about the bundle


class Trial:
    """The figures of two versions since now, over replicas that come, go and start again with empty counts.

    Args:
        new, old: the digests that are compared.
    """

    def __init__(self, canary: Canary, probes: Probes, replicas: Replicas, new: str, old: str) -> None:
        self.canary, self.probes, self.replicas, self.new, self.old = canary, probes, replicas, new, old
        self._asked = {new: Figures(), old: Figures()}  # by the release itself
        self._last: dict[tuple[str, str, str], Figures] = {}
        self._look()
        self._first = dict(self._last)

    def run(self, longest_s: float, goes_on: Callable[[], None]) -> None:
        """Watch, and ask, until the canary has lasted long enough.

        Args:
            longest_s: for which enough answers of both are waited for.
            goes_on: called now and then; raises what ends the trial for another reason.

        Raises:
            Unfit: the new version is worse, or too little is known of it.
        """
        began, turns = time.monotonic(), itertools.count()
        while True:
            seconds = time.monotonic() - began
            over = self._enough(seconds)
            if over:
                time.sleep(REPORT_LAG_S)
            self._look()
            for who, (new, old) in self._evidence().items():
                if fault := self.canary.fault(new, old, over=over):
                    raise Unfit(f"in its canary, asked by {who}, {fault}")
            if over:
                return
            if seconds > longest_s:
                new = self.figures(self.new)
                raise Unfit(
                    f"in its canary, {new.answers} of {new.requests} requests answered within {longest_s:g} s are too "
                    "few to judge it by"
                )
            goes_on()
            due = min(1.0, (seconds + POLL_S) / self.canary.seconds)
            until = time.monotonic() + POLL_S
            while (left := until - time.monotonic()) > 0:
                asked = self.figures(self.new).requests, self._asked[self.new].answers
                if asked[0] < self.canary.requests * due or asked[1] < self.canary.least * due:
                    self._ask_both(next(turns))
                else:
                    time.sleep(left)

    def figures(self, digest: str) -> Figures:
        """How a version answered, whoever asked."""
        return self._customers(digest) + self._asked[digest]

    def _customers(self, digest: str) -> Figures:
        counts = [now - self._first.get(key, Figures()) for key, now in self._last.items() if key[2] == digest]
        return sum(counts, Figures())

    def _evidence(self) -> dict[str, tuple[Figures, Figures]]:
        """Figures of the new and the old version, by who asked."""
        return {
            "customers": (self._customers(self.new), self._customers(self.old)),
            "the release itself": (self._asked[self.new], self._asked[self.old]),
        }

    def _enough(self, seconds: float) -> bool:
        """Whether the trial has lasted long enough, with enough answers of both versions from the same askers."""
        comparable = any(min(new.answers, old.answers) >= self.canary.least for new, old in self._evidence().values())
        return comparable and (
            seconds >= self.canary.seconds or self.figures(self.new).requests >= self.canary.requests
        )

    def _look(self) -> None:
        """Read the reports again; what a replica that has gone said last is kept."""
        self._live = self.replicas.live()
        for replica in self._live:
            report = replica.languages.get(self.probes.language, LanguageReport())
            for digest, figures in report.figures.items():
                self._last[replica.replica, replica.started_at, digest] = figures

    def _ask_both(self, turn: int) -> None:
        """Ask one replica for one golden recording with the new and with the old version."""
        if not self._live:
            time.sleep(POLL_S)
            return
        replica = self._live[turn % len(self._live)]
        place = turn // len(self._live) % len(self.probes.golden)
        for digest in (self.new, self.old) if turn % 2 else (self.old, self.new):
            if not self._ask(replica, place, digest):
                time.sleep(POLL_S)
                return

    def _ask(self, replica: ReplicaReport, place: int, digest: str) -> bool:
        """Ask and count; False where the replica is gone or not ready, which says nothing about the bundle."""
        import httpx

        seconds, text, began = None, "", time.monotonic()
        try:
            answer = self.probes.ask(replica, place, digest)
            if answer.status_code in NOT_READY:
                return False
            if answer.status_code == 200:
                text = str(answer.json().get("text", ""))
                seconds = work_s(answer.headers, time.monotonic() - began)
        except httpx.TimeoutException:
            pass
        except httpx.HTTPError:  # others go on, and its report grows old
            return False
        self._asked[digest] = self._asked[digest].counting(seconds, empty=not text)
        if seconds is not None and digest == self.new:
            self.probes.require(replica, place, text)
        return True
