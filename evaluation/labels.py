"""What judges a label model: how well it tells voices or languages apart, and what it says of what it cannot know.

A verdict is kept as a recogniser's is: a file named by the digest of the bundle that it judged, with a checksum, read
again by whoever takes the model into use. Whatever is missing, not a number, altered or of another bundle is a refusal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from evaluation.gates import GateRefused, GateResult, checksum_of, verdict_key
from speech.labels import Kind
from speech.plain import Record
from speech.store.objects import Missing, Objects
from speech.store.outputs import parse_json, to_json

# A verdict without one of these has not been judged in full.
REQUIRED: Mapping[Kind, tuple[str, ...]] = {
    "speaker": ("equal_error_rate", "evidence", "export_parity"),
    "language": ("language_accuracy", "unknown_languages", "unknown_nonspeech", "evidence", "export_parity"),
}


@dataclass(frozen=True)
class LabelVerdict(Record):
    """The judgement over one label bundle."""

    kind: Kind
    bundle_digest: str
    model_name: str
    passed: bool
    gates: tuple[GateResult, ...]
    dataset_digests: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)  # the thresholds used
    schema_version: Literal[1] = 1

    def require_passed(self) -> Self:
        """This verdict, or GateRefused where it does not open the way."""
        name = f"{self.model_name} ({self.bundle_digest[:12]})"
        judged = {gate.name for gate in self.gates}
        if absent := [gate for gate in REQUIRED[self.kind] if gate not in judged]:
            raise GateRefused(f"The verdict of {name} is incomplete: gate {absent[0]} was not judged.")
        failed = [gate for gate in self.gates if not gate.passed]
        if failed or not self.passed:
            told = " ".join(f"{gate.label}: {gate.explanation}" for gate in failed)
            raise GateRefused(f"{name} did not pass gate {told}" if told else f"{name} was not passed.")
        return self


def save_label_verdict(verdict: LabelVerdict, store: Objects) -> None:
    """Store the verdict under the digest of its bundle; one that judged it before is replaced."""
    content = verdict.to_dict()
    store.put(verdict_key(verdict.bundle_digest), to_json({**content, "sha256": checksum_of(content)}))


def load_label_verdict(store: Objects, bundle_digest: str) -> LabelVerdict:
    """The verdict of exactly this bundle, passed or not; GateRefused where it is missing, altered or foreign."""
    name = f"The verdict of label model {bundle_digest[:12]}"
    try:
        content = dict(parse_json(store.read(verdict_key(bundle_digest)).data))
        seal = content.pop("sha256", None)
        if seal != checksum_of(content):
            raise GateRefused(f"{name} was altered after judging: its checksum does not match.")
        verdict = LabelVerdict.from_dict(content)
    except Missing:
        raise GateRefused(f"Label model {bundle_digest[:12]} has no verdict: materialise its asset again.") from None
    except (ValueError, TypeError) as error:
        raise GateRefused(f"{name} is malformed ({error}): materialise its asset again.") from None
    if verdict.bundle_digest != bundle_digest:
        raise GateRefused(f"{name} is foreign: it judges bundle {verdict.bundle_digest[:12]}.")
    return verdict
