"""What a replica says of itself: in its report, which it writes every second, and in its answers over HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from deployment.release.canary import Figures
from deployment.release.document import Route

BUNDLE_HEADER = "X-Soundstage-Bundle"  # asks a replica for a loaded bundle by its digest, and names it in the answer
TIMING_HEADER = "Server-Timing"  # how long the work for an answer took, in ms (W3C Server Timing)
WORK_TIMING = "work"
RUNNING_PATH = "/v1/release"  # where a replica answers with its report, as `running`


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
        routes: what it has loaded with the share it gives it.
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
    """What one replica really runs.

    Attributes:
        revision: of the document that it follows.
        process: names the process, so that a replica that started again is told from what it was before.
        beat: grows with every report of the process; that it grows is a sign of life, whatever anybody's clock says.
        started_at: by the replica's clock, for people.
        error: why it cannot follow the document; empty when it does.
    """

    replica: str
    url: str
    revision: int
    languages: Mapping[str, LanguageReport] = field(default_factory=dict)
    process: str = ""
    beat: int = 0
    started_at: str = ""
    error: str = ""


def named(digest: str, versions: Mapping[str, str]) -> str:
    """A bundle as people call it: by its version, where one is known."""
    version = versions.get(digest, "")
    return f"version {version} ({digest[:12]})" if version else f"bundle {digest[:12]}"
