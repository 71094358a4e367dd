"""What became of a partition's corpus checks: every outcome, and the note that later steps ask before they use it."""

from dataclasses import dataclass
from pathlib import Path

from evaluation.corpus.profile import CorpusProfile
from speech.store.objects import Missing
from speech.store.outputs import Published, parse_json, write_json

VALIDATION_NAME = "validation.json"  # beside a partition's utterances: whether they passed, and which checks failed


@dataclass(frozen=True)
class ExpectationOutcome:
    """One expectation held against the partition."""

    name: str
    passed: bool
    blocking: bool  # False: a warning for people, not a reason to stop
    observed: float | str | None
    limit: str
    explanation: str


@dataclass(frozen=True)
class CorpusValidation:
    """All outcomes, the Data Docs to read, and the profile to compare the next quarter with."""

    outcomes: tuple[ExpectationOutcome, ...]
    docs: Path  # index.html
    profile: CorpusProfile

    @property
    def failed(self) -> tuple[str, ...]:
        """The blocking expectations that were not met."""
        return tuple(outcome.name for outcome in self.outcomes if outcome.blocking and not outcome.passed)

    @property
    def passed(self) -> bool:
        """Whether nothing blocking failed."""
        return not self.failed

    def note(self, folder: Path) -> None:
        """Write beside a partition's utterances whether they passed; `failed_checks` reads it."""
        write_json(folder / VALIDATION_NAME, {"passed": self.passed, "failed": self.failed})


class ValidationUnknown(Exception):
    """Whether a partition passed cannot be read, so nothing may rest on it."""


def failed_checks(utterances: Published) -> tuple[str, ...]:
    """The blocking expectations that published utterances did not meet; none: they passed.

    Raises:
        ValidationUnknown: it was not noted there, or the note is damaged.
    """
    try:
        noted = parse_json(utterances.read(VALIDATION_NAME))
        passed, failed = noted["passed"], tuple(map(str, noted["failed"]))
    except (Missing, OSError, ValueError, KeyError, TypeError) as error:
        place = f"{utterances.key}/{VALIDATION_NAME}"
        raise ValidationUnknown(
            f"{place} cannot be read ({type(error).__name__}): materialise the utterances again"
        ) from error
    return () if passed is True and not failed else failed or ("any check",)
