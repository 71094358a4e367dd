"""The index of the pages: what became of each quarter in each language, and where its report and Data Docs are.

It answers what people ask first (which quarters were refused and why, how models compare, which one is the champion)
without a running Dagster or MLflow. This module only draws; whoever serves the pages reads the data store. Like a
report, the page runs no script and loads nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from evaluation.gates import Verdict
from evaluation.presentation import CSP, gate_title, template
from evaluation.results import BENCHMARK, QUARTER, Score
from speech.corpus.manifest import quarter_title

GATES_NAMED = 3  # of those that failed, in a row


@dataclass(frozen=True)
class Entry:
    """A quarter in a language, as far as the data store knows it."""

    quarter: str  # its first month: 2024-04
    language: str
    corpus_failed: tuple[str, ...] = ()  # checks for which the quarter's utterances were refused
    scores: Mapping[str, Score] = field(default_factory=dict)  # of the evaluation, by test set
    verdict: Verdict | None = None
    stale: bool = False  # the verdict is on an earlier evaluation than the scores are of
    unreadable: tuple[str, ...] = ()  # sentences about files that should say more
    decision: str | None = ""  # what people decided about this model; None where nobody can tell
    is_champion: bool = False
    report: str = ""  # where it is; empty when there is none
    data_docs: str = ""


@dataclass(frozen=True)
class Champion:
    """What people put into production in a language; without a version, nothing yet."""

    language: str
    version: str = ""
    model: str = ""
    approver: str = ""
    date: str = ""


def render_index(
    entries: Sequence[Entry],
    champions: Sequence[Champion],
    *,
    unreadable: Sequence[str] = (),
    links: Mapping[str, str] | None = None,
) -> str:
    """The index as text, in the order given; `unreadable` are sentences about files of no single quarter."""
    return template("index.html.j2").render(
        csp=CSP,
        entries=entries,
        champions=champions,
        unreadable=unreadable,
        links=links or {},
        evaluated=any(entry.scores or entry.unreadable for entry in entries),
        sets=((QUARTER, "WER, quarter"), (BENCHMARK, "WER, benchmark")),
        why=_why,
        quarter_title=quarter_title,
    )


def _why(entry: Entry) -> list[str]:
    """Why an entry stands where it stands, in a few words each."""
    why = []
    if entry.corpus_failed:
        why.append(f"corpus: {', '.join(name.replace('_', ' ') for name in entry.corpus_failed)}")
        if entry.scores:
            why.append("the figures are of the corpus before")
    elif entry.verdict:
        failed = list(dict.fromkeys(gate_title(gate) for gate in entry.verdict.failures))
        more = [f"{len(failed) - GATES_NAMED} more"] if len(failed) > GATES_NAMED else []
        why += ["; ".join([*failed[:GATES_NAMED], *more])] if failed else []
    elif not entry.unreadable:
        why.append("not judged yet" if entry.scores else "not evaluated yet")
    if entry.stale:
        why.append("judged before the last evaluation: materialise `verdict`")
    return [*why, *entry.unreadable]
