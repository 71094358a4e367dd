"""Labelled sentences: what people say, what they want, and which words are the values of it.

They come from a file of a team's own, JSON lines or CSV, or for the embedded languages from templates
(`vocabulary/intents/<language>.yaml`). Sentences of one template are alike, so train and test get whole templates: a
model is judged by ways to say it that it never saw. In a file the column `template` says which sentences are alike;
without it each text stands alone.
"""

import csv
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.corpus.synthetic import VOCABULARY, filled
from speech.text import words_of
from speech.understanding.intents import NO_SLOT, UNKNOWN

TEMPLATES = VOCABULARY / "intents"
HELD_OUT = 5  # one in so many templates of an intent is kept for the test; with fewer all are learnt
SENTENCES = 30  # of a template with slots
_CHOICE = re.compile(r"\(([^()]*)\)")


class SentencesError(ValueError):
    """A file of labelled sentences that cannot be used; the message names the line and what it must be."""


@dataclass(frozen=True)
class LabelledSentence:
    """A sentence as the scoring form has it, and its meaning."""

    words: tuple[str, ...]
    intent: str  # UNKNOWN: none of those that are asked for
    tags: tuple[str, ...]  # of each word the slot that it belongs to, or NO_SLOT
    template: str
    before: tuple[str, ...] = ()  # the words that the other speaker said before

    @property
    def way(self) -> tuple[str, str]:
        """Which of the ways to say it this is: its intent and template."""
        return self.intent, self.template


def embedded_languages() -> tuple[str, ...]:
    """The languages that have templates here."""
    return tuple(sorted(path.stem for path in TEMPLATES.glob("*.yaml")))


def edition() -> str:
    """A digest of the templates, so that one can tell when sentences would come out different."""
    made_by = hashlib.sha256()
    for path in sorted(TEMPLATES.glob("*.yaml")):
        made_by.update(path.read_bytes())
    return made_by.hexdigest()


def embedded_sentences(language: str, seed: int = 0) -> list[LabelledSentence]:
    """Sentences of the language's templates; the same arguments give the same ones.

    Raises:
        SentencesError: the language has no templates here.
    """
    import yaml

    path = TEMPLATES / f"{language}.yaml"
    if language not in embedded_languages():
        raise SentencesError(
            f"there are no labelled sentences in '{language}': name a file of them in `[intents] sentences`"
        )
    templates: Mapping[str, Sequence[str]] = yaml.safe_load(path.read_text(encoding="utf-8"))
    draw = random.Random(f"{language}/{seed}")
    found: dict[LabelledSentence, None] = {}
    for intent, ways in templates.items():
        for way in ways:
            for _ in range(SENTENCES if _CHOICE.search(way) or "{" in way else 1):
                chosen = _CHOICE.sub(lambda match: draw.choice(match[1].split("|")), way)
                before, _, said = chosen.rpartition(" > ")
                text, slots = filled(said, language, draw)
                found[_labelled(text, intent, slots, before, way, language)] = None
    return list(found)


def read_sentences(path: Path, language: str) -> list[LabelledSentence]:
    """The sentences of a file: `text`, `intent`, and if there are any `slots` (JSON), `before` and `template`.

    JSON lines, or CSV with a header where the name ends in `.csv`. An empty intent, or `unknown`, is a sentence that
    nothing is to be done about.

    Raises:
        SentencesError: it is not there, or a line of it is no labelled sentence.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SentencesError(f"{path} cannot be read ({error}): it must be a file of UTF-8 text") from error
    is_table = path.suffix.lower() == ".csv"
    rows: list[Any] = (
        list(csv.DictReader(text.splitlines())) if is_table else list(filter(str.strip, text.splitlines()))
    )
    found = []
    for number, row in enumerate(rows, 1):
        try:
            read = {**row, "slots": json.loads(row.get("slots") or "{}")} if is_table else json.loads(row)
            found.append(_of_row(read, language))
        except (ValueError, TypeError, AttributeError) as error:
            raise SentencesError(f"{path}, sentence {number}: {error}") from None
    if not found:
        raise SentencesError(f"{path} holds no sentence: one a line is expected, with `text` and `intent`")
    return found


def split(sentences: Iterable[LabelledSentence]) -> tuple[list[LabelledSentence], list[LabelledSentence]]:
    """What is learnt and what is kept to judge by, whole templates of each intent, the same from run to run."""
    every = list(sentences)
    kept = {
        way for ways in _by_intent(every).values() for place, way in enumerate(ways) if place < len(ways) // HELD_OUT
    }
    return [each for each in every if each.way not in kept], [each for each in every if each.way in kept]


def folds(sentences: Sequence[LabelledSentence], count: int) -> list[set[tuple[str, str]]]:
    """The templates in so many parts, each with about as many of each intent; a template is named by its `way`."""
    found: list[set[tuple[str, str]]] = [set() for _ in range(count)]
    for ways in _by_intent(sentences).values():
        for place, way in enumerate(ways):
            found[place % count].add(way)
    return found


def _by_intent(sentences: Iterable[LabelledSentence]) -> dict[str, list[tuple[str, str]]]:
    """The templates of each intent, in an order that says nothing of them."""
    found: dict[str, set[tuple[str, str]]] = {}
    for sentence in sentences:
        found.setdefault(sentence.intent, set()).add(sentence.way)
    return {
        intent: sorted(ways, key=lambda way: hashlib.sha256(way[1].encode()).digest())
        for intent, ways in sorted(found.items())
    }


def digest_of(sentences: Iterable[LabelledSentence]) -> str:
    """SHA-256 of sentences in their order."""
    made = hashlib.sha256()
    for sentence in sentences:
        made.update(json.dumps([sentence.words, sentence.intent, sentence.tags, sentence.before]).encode())
    return made.hexdigest()


def _of_row(row: Any, language: str) -> LabelledSentence:
    text, intent = row.get("text"), row.get("intent") or UNKNOWN
    slots, before = row.get("slots") or {}, row.get("before") or ""
    if not isinstance(text, str) or not isinstance(intent, str) or not isinstance(before, str):
        raise ValueError("`text`, `intent` and `before` must be texts")
    if not isinstance(slots, Mapping) or not all(isinstance(value, str) for value in slots.values()):
        raise ValueError("`slots` must be texts by their names")
    return _labelled(text, intent, slots, before, str(row.get("template") or text), language)


def _labelled(
    text: str, intent: str, slots: Mapping[str, str], before: str, template: str, language: str
) -> LabelledSentence:
    words = words_of(text, language)
    if not words:
        raise ValueError(f"{text!r} has no words in '{language}'")
    tags = [NO_SLOT] * len(words)
    for name, value in slots.items():
        said = words_of(value, language)
        for place in range(len(words) - len(said) + 1):
            if said and words[place : place + len(said)] == said and set(tags[place : place + len(said)]) == {NO_SLOT}:
                tags[place : place + len(said)] = [name.partition("_2")[0]] * len(said)
                break
        else:
            raise ValueError(f"the slot '{name}' is {value!r}, which is not in {text!r}")
    return LabelledSentence(tuple(words), intent, tuple(tags), template, tuple(words_of(before, language)))
