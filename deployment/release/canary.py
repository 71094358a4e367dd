"""Canary: what a version's answers are measured by, and when a new version is worse than the one it is to replace.

Every replica counts the answers of each version (`Figures`); counts of several replicas add up, and those of a stretch
of time are a difference. `Canary.fault` compares the new version with the old one over the same stretch: errors, empty
transcripts, and the time that the work took.

Not covered: words that are wrong but there. Nobody knows the right ones while they are spoken; that is what the gates
are for, and the reading of production's transcripts.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

BUCKETS_PER_DOUBLING = 4  # a quantile is at most 19 % too high
FASTEST_S = 0.001
SLOWEST_BUCKET = 80  # 1049 s
NOISE_S = 0.03  # differences below this are the machine's, and nobody hears them
MEDIAN_FROM = 10  # answers of each version from which their medians are compared; a trial may ask for fewer
TAIL_FROM = 100  # answers of each version from which their 95th percentiles are compared
EMPTY_FROM = 5  # answers from which a share of empty ones means something


@dataclass(frozen=True)
class Summary:
    """Figures as people read them, in shares and seconds; no times where nothing was answered."""

    requests: int
    errors: int
    empty_share: float
    p50_s: float | None
    p95_s: float | None


@dataclass(frozen=True)
class Figures:
    """How a version answered: counts, and a histogram of the seconds its answers took.

    Attributes:
        requests: answers and errors together.
        errors: requests that it could not answer though the recording was usable.
        empty: answers without a word.
        seconds: bucket -> answers; bucket b holds those of up to 0.001 * 2 ** (b / 4) seconds of work.
    """

    requests: int = 0
    errors: int = 0
    empty: int = 0
    seconds: Mapping[int, int] = field(default_factory=dict)

    def counting(self, seconds: float | None, *, empty: bool = False) -> "Figures":
        """These figures and one more request: answered in `seconds`, or not answered (None)."""
        if seconds is None:
            return Figures(self.requests + 1, self.errors + 1, self.empty, self.seconds)
        bucket = math.ceil(BUCKETS_PER_DOUBLING * math.log2(max(seconds, FASTEST_S) / FASTEST_S))
        bucket = min(bucket, SLOWEST_BUCKET)
        counts = {**self.seconds, bucket: self.seconds.get(bucket, 0) + 1}
        return Figures(self.requests + 1, self.errors, self.empty + empty, counts)

    def __add__(self, other: "Figures") -> "Figures":
        counts = Counter(self.seconds) + Counter(other.seconds)
        return Figures(self.requests + other.requests, self.errors + other.errors, self.empty + other.empty, counts)

    def __sub__(self, other: "Figures") -> "Figures":
        counts = Counter(self.seconds) - Counter(other.seconds)
        return Figures(self.requests - other.requests, self.errors - other.errors, self.empty - other.empty, counts)

    @property
    def answers(self) -> int:
        """Requests that were answered."""
        return self.requests - self.errors

    @property
    def empty_share(self) -> float:
        """Share of answers without a word."""
        return self.empty / self.answers if self.answers else 0.0

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of the answers was made, to a bucket's width; None without answers."""
        total = sum(self.seconds.values())
        seen = 0
        for bucket, count in sorted(self.seconds.items()):
            seen += count
            if seen >= share * total:
                return FASTEST_S * float(2 ** (bucket / BUCKETS_PER_DOUBLING))
        return None

    def summary(self) -> Summary | None:
        """What a person wants to read; None without requests."""
        if not self.requests:
            return None
        times = (None if time is None else round(time, 4) for time in (self.quantile(0.5), self.quantile(0.95)))
        return Summary(self.requests, self.errors, round(self.empty_share, 4), *times)


@dataclass(frozen=True)
class Canary:
    """How long a new version is tried on a share of the traffic, and what sends it back.

    Attributes:
        share: of the language's requests, 0 to 1.
        seconds: longest time of the trial, unless the versions are too slow to be compared by then.
        requests: answers that end the trial earlier; what customers do not bring, the release asks for itself.
        max_error_rate: highest share of requests that the new version may fail to answer.
        max_latency_ratio: highest ratio of its seconds of work to the old version's, in the median and, with a hundred
            answers of each, in the 95th percentile.
        max_empty_share: by how much its share of empty transcripts may exceed the old version's (absolute share).
    """

    share: float = 0.1
    seconds: float = 20.0
    requests: int = 50
    max_error_rate: float = 0.02
    max_latency_ratio: float = 1.5
    max_empty_share: float = 0.1

    @property
    def least(self) -> int:
        """Answers of each version without which the trial does not end: fewer say nothing about their times."""
        return min(MEDIAN_FROM, self.requests)

    def fault(self, new: Figures, old: Figures, *, over: bool = False) -> str | None:
        """What sends the new version back, as a clause; None while nothing does.

        Before the trial is `over`, counts are held against what the whole trial allows, so that a bad version goes
        back as soon as its fate is certain, and one unlucky request at the beginning does not decide.
        """
        expected = new.requests if over else max(new.requests, self.requests)
        if new.errors > self.max_error_rate * expected:
            return f"it failed on {new.errors} of {new.requests} requests (limit {self.max_error_rate:.0%})"
        allowed = min(1.0, old.empty_share + self.max_empty_share)
        if new.answers >= EMPTY_FROM and new.empty > allowed * (expected - new.errors):
            return (
                f"it heard nothing in {new.empty} of {new.answers} recordings, the old version in {old.empty} of "
                f"{old.answers} (limit {self.max_empty_share:.0%} more)"
            )
        for share, least, name in ((0.5, self.least, "median"), (0.95, TAIL_FROM, "95th percentile")):
            mine, its = new.quantile(share), old.quantile(share)
            if mine is None or its is None or min(new.answers, old.answers) < least:
                continue
            if mine > self.max_latency_ratio * its and mine - its > NOISE_S:
                return (
                    f"its answers take {mine * 1000:.0f} ms ({name}), the old version's {its * 1000:.0f} ms "
                    f"(limit {self.max_latency_ratio:g} times)"
                )
        return None
