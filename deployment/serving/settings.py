"""The serving tier and its trials, as `[serving]` in soundstage.toml."""

from pydantic import Field

from speech.settings import Section, Share


class ServingSettings(Section):
    """The serving tier."""

    host: str = Field("127.0.0.1", min_length=1, description="Address to listen on.")
    port: int = Field(8080, ge=1, le=65_535, description="Port to listen on.")
    threads: int = Field(1, ge=1, description="Threads of one recognition.")
    release_timeout_s: float = Field(
        60.0, gt=0, description="A release goes back when loading, warming or switching takes longer (seconds)."
    )
    auto_release: bool = Field(True, description="A new champion is released without another launch.")
    canary_share: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Share of a language's requests that a new version gets while it is on trial; 0: no trial.",
    )
    canary_s: float = Field(
        20.0,
        gt=0,
        description="Longest trial; requests that customers do not bring in this time, the release asks itself, with "
        "the recordings of its probes (seconds).",
    )
    canary_requests: int = Field(
        50, ge=1, description="Requests to the new version after which the trial ends earlier (requests)."
    )
    canary_max_error_rate: Share = Field(
        0.02,
        description="Highest share of its requests that the new version may fail on (share); the old version answers "
        "those, so no customer notices.",
    )
    canary_max_latency_ratio: float = Field(
        1.5,
        gt=0,
        description="Highest ratio of the new version's seconds for an answer to the old one's: median, and with 100 "
        "answers of each the 95th percentile.",
    )
    canary_max_empty_share: Share = Field(
        0.1, description="By how much its share of empty transcripts may exceed the old version's (absolute share)."
    )
    drain_s: float = Field(
        30.0, ge=0, description="Longest wait for requests on the old version; none is cut off after it (seconds)."
    )

    @property
    def url(self) -> str:
        """Where the server of this machine listens."""
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"
