"""What a quarter's corpus has to look like before a model is trained on it.

Exports go wrong in ways that no loader notices: transcripts shifted by a row against the audio, a language filed under
another, a partner's recordings delivered twice, one speaker in train and test. A model trained on that is bad, or
looks good for the wrong reason, and the hours spent on it are gone. So each partition is held against a suite of Great
Expectations, whose Data Docs say what was expected, found, and why it matters.

- Blocking expectations stop the partition. Drift against the previous quarter only warns, as quarters may differ; it
  blocks where it is so large that the source itself must be another one.
- A partition without a row fails for that, and is judged by nothing else: nothing more about it is known.
- A figure that varies by chance is held against a limit that good partitions of any size meet: the rate at which any
  of them fails, `false_alarm_rate`, is shared among these checks (CHANCE). Each says beside it what it finds in 95 %,
  and one that could find nothing in so few rows says that it was not judged.
- Transcripts moved against their audio are told by lengths (evaluation.corpus.alignment), in the order in which the
  source listed its rows. Rows of other quarters between two of them, and rows that were rejected, break that order at
  their place only.

Not covered: whether a transcript is right word by word. Training and evaluation show that.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, field_validator

from evaluation.corpus.alignment import Lengths, Moved
from evaluation.corpus.chance import Judgement, by_speaker, effective_rows, share
from evaluation.corpus.data_docs import write_index
from evaluation.corpus.drift import UNMEASURED, change, known_share, stability
from evaluation.corpus.profile import CorpusProfile, known_words, profile_corpus, words_by_speaker
from evaluation.corpus.suite import Expectation, run_suites
from evaluation.corpus.validation import CorpusValidation, ExpectationOutcome
from speech.audio.decode import SAMPLE_RATE, AudioError, probe
from speech.corpus.manifest import SPLITS, Utterance, quarter_of, quarter_title
from speech.corpus.normalize import CONTRADICTION, DELIVERED, DUPLICATE, MARKERS, MAX_DURATION_S, MIN_DURATION_S
from speech.markers import DEFAULT_MARKERS
from speech.settings import Section, Share
from speech.text import normalize, speech_rate, spoken_length, unexpected_characters, words_of

if TYPE_CHECKING:
    import pandas

# Checks of figures that vary by chance; the others hold row by row, and never fail a good partition.
CHANCE = (
    "speech_rate", "duplicate_share", "text_charset", "marker_share", "rejected_share", "text_audio_correlation",
    "transcripts_in_place", "drift_duration", "drift_snr", "drift_telephone", "drift_vocabulary", "drift_extreme",
)  # fmt: skip

UNKNOWN = dict.fromkeys(CHANCE, Judgement(math.nan, 0.0, ""))  # of a partition without a row

Locate = Callable[[Utterance], str | os.PathLike[str]]


class CorpusSettings(Section):
    """What a corpus partition must meet, as `[corpus]` in soundstage.toml."""

    split: Literal["speaker", "given"] = Field(
        "speaker",
        description="speaker: by a hash of the speaker, so that nobody is in two sets; given: the source's own column, "
        "for corpora with an official split, where a speaker in two sets only warns.",
    )
    dev_share: float = Field(0.1, gt=0, lt=1, description="Share of the speakers whose utterances tune a training.")
    test_share: float = Field(0.2, gt=0, lt=1, description="Share of the speakers whose utterances judge a model.")
    false_alarm_rate: float = Field(
        0.001,
        gt=0,
        lt=0.5,
        description="Chance that any check of a figure fails a good partition, of whatever size; limits below are "
        "widened accordingly (probability).",
    )
    min_hours: float = Field(0.1, ge=0, description="Least speech in a partition (hours).")
    min_speakers: int = Field(5, ge=1, description="Fewest speakers in a partition (speakers).")
    min_duration_s: float = Field(MIN_DURATION_S, gt=0, description="Shortest utterance (seconds).")
    max_duration_s: float = Field(MAX_DURATION_S, gt=0, description="Longest utterance (seconds).")
    max_duplicate_share: Share = Field(
        0.01, description="Highest share of utterances whose audio is in the partition already (share)."
    )
    max_charset_share: Share = Field(
        0.005,
        description="Highest share of transcripts with characters foreign to the language, or with digits and signs "
        "that cannot be read aloud (share).",
    )
    markers: tuple[str, ...] = Field(
        DEFAULT_MARKERS,
        description="Regular expressions of what stands in transcripts and was not said, such as [noise] or <unk>: it "
        "is taken out.",
    )
    max_marker_share: Share = Field(
        0.05, description="Share of transcripts with such markers above which it warns (share)."
    )
    min_speech_rate: float = Field(
        2.0, ge=0, description="Slowest plausible speech (normalised characters per second)."
    )
    max_speech_rate: float = Field(
        30.0, gt=0, description="Fastest plausible speech (normalised characters per second)."
    )
    max_speech_rate_share: Share = Field(
        0.05, description="Highest share of utterances outside the plausible speech rate (share)."
    )
    max_rejected_share: Share = Field(
        0.1, description="Highest share of delivered rows that went to quarantine (share)."
    )
    probed_files: int = Field(
        2_000, ge=1, description="How many audio files are opened to check their sample rate, spread evenly (files)."
    )
    max_drift: float = Field(
        0.25, ge=0, description="Population stability index against the previous quarter that warns (index)."
    )
    extreme_drift: float = Field(
        4.0, ge=0, description="Population stability index that blocks: the source must be another one (index)."
    )
    max_telephone_change: Share = Field(
        0.3, description="Change of the share of telephone recordings that warns (share)."
    )
    min_known_words: Share = Field(
        0.7,
        description="Share of words also common in the previous quarter below which it warns, of what that quarter's "
        "speakers know of each other's words (share).",
    )
    extreme_known_words: Share = Field(0.2, description="The same share below which it blocks (share).")

    @field_validator("markers")
    @classmethod
    def _markers_are_patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(
                    f"'{pattern}' is no regular expression ({error}): write a backslash before brackets"
                ) from None
        return patterns


# ----------------------------------------------------------------------------------------------------------- measures


def _utterance_table(
    utterances: Sequence[Utterance], language: str, settings: CorpusSettings, locate: Locate
) -> "pandas.DataFrame":
    """One row an utterance: its own fields and what is derived from them."""
    import pandas

    step = max(1, math.ceil(len(utterances) / settings.probed_files))
    rows = []
    for position, utterance in enumerate(utterances):
        text = normalize(utterance.text, language)
        duration_s = utterance.duration_s
        present, sample_rate = _audio_facts(utterance, locate, position % step == 0)
        rows.append(
            {
                "id": utterance.id or None,
                "speaker": utterance.speaker or None,
                "language": utterance.language,
                "domain": utterance.domain or None,
                "quarter": quarter_of(utterance.recorded_at),
                "split": utterance.split,
                "digest": utterance.digest or None,
                "duration_s": duration_s,
                "audio_present": present,
                "sample_rate_hz": sample_rate,
                "words": len(words_of(utterance.text, language)),
                "unexpected_characters": "".join(sorted(unexpected_characters(utterance.text, language))),
                "characters_per_second": speech_rate(text, duration_s) if duration_s else None,
            }
        )
    return pandas.DataFrame(rows, columns=list(_COLUMNS))


_COLUMNS = (
    "id", "speaker", "language", "domain", "quarter", "split", "digest", "duration_s", "audio_present",
    "sample_rate_hz", "words", "unexpected_characters", "characters_per_second",
)  # fmt: skip


def _audio_facts(utterance: Utterance, locate: Locate, look_inside: bool) -> tuple[bool, float | None]:
    """Whether the audio is there, and its sample rate when it was opened (0 when it cannot be)."""
    place = locate(utterance)
    if "://" not in os.fspath(place) and not os.path.isfile(place):
        return False, None
    if not look_inside:
        return True, None
    try:
        return True, float(probe(place).sample_rate)
    except (AudioError, OSError):
        return True, 0.0


def in_delivered_order(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Utterances as their source listed them; by id where it was not noted."""
    return sorted(utterances, key=lambda u: (int(u.attributes.get(DELIVERED, 0)), u.id))


def lengths_of(utterances: Sequence[Utterance], language: str) -> Lengths:
    """Lengths of the measured utterances' texts and speech, in the order of their delivery."""
    rows = [u for u in in_delivered_order(utterances) if u.duration_s]
    return Lengths(
        np.array([spoken_length(normalize(u.text, language)) for u in rows], dtype=float),
        np.array(
            [(u.duration_s or 0.0) * (1 - (u.quality.silence_share if u.quality else 0.0)) for u in rows], dtype=float
        ),
        [u.speaker for u in rows],
    )


def _judgements(
    utterances: Sequence[Utterance],
    table: "pandas.DataFrame",
    language: str,
    rejected: Mapping[str, int],
    unreadable_share: float,
    profile: CorpusProfile,
    previous: CorpusProfile | None,
    settings: CorpusSettings,
) -> Mapping[str, Judgement]:
    """Every figure that varies by chance (CHANCE), with its limit and what that finds."""
    rate = settings.false_alarm_rate / len(CHANCE)
    rows = len(utterances)
    if not rows:
        return UNKNOWN
    delivered = rows + sum(rejected.values())
    in_source = delivered / max(1 - unreadable_share, 1e-9)
    twins = table["digest"].count() - table["digest"].nunique()
    twins += rejected.get(DUPLICATE, 0) + rejected.get(CONTRADICTION, 0)
    foreign = (table["unexpected_characters"] != "").sum() + rejected.get("charset", 0)
    pace = table["characters_per_second"]
    odd = ((pace < settings.min_speech_rate) | (pace > settings.max_speech_rate)).to_numpy()
    odd_by_speaker = by_speaker([u.speaker for u in utterances], odd, 2)
    lengths = lengths_of(utterances, language)
    marked = sum(MARKERS in u.attributes for u in utterances)
    return {
        "marker_share": share(marked / rows, rows, settings.max_marker_share, rate),
        "speech_rate": share(odd.mean(), effective_rows(odd_by_speaker), settings.max_speech_rate_share, rate),
        "duplicate_share": share(twins / delivered, delivered, settings.max_duplicate_share, rate),
        "text_charset": share(foreign / delivered, delivered, settings.max_charset_share, rate),
        "rejected_share": share(1 - rows / in_source, delivered, settings.max_rejected_share, rate),
        "text_audio_correlation": lengths.relation(rate),
        "transcripts_in_place": _in_place(lengths.moved(rate), utterances),
        **_drift(utterances, language, profile, previous, settings, rate),
    }


def _in_place(moved: Moved, utterances: Sequence[Utterance]) -> Judgement:
    """The judgement over moved transcripts, with where they are."""
    if not moved.found:
        return moved.judgement
    rows = [u.id for u in in_delivered_order(utterances) if u.duration_s]
    beside = f"{abs(moved.move)} {'row' if abs(moved.move) == 1 else 'rows'} {'before' if moved.move > 0 else 'after'}"
    note = (
        f"The {moved.stop - moved.start} utterances from {rows[moved.start]} to {rows[moved.stop - 1]} seem to hold "
        f"transcripts from {beside}: compare them by ear and export again."
    )
    return replace(moved.judgement, note=note)


def _drift(
    utterances: Sequence[Utterance],
    language: str,
    profile: CorpusProfile,
    previous: CorpusProfile | None,
    settings: CorpusSettings,
    rate: float,
) -> dict[str, Judgement]:
    """How far the partition is from the quarter before."""
    if previous is None:
        nothing = Judgement(math.nan, 0.0, "", "there is no earlier quarter to compare with")
        return {name: nothing for name in CHANCE if name.startswith("drift_")}
    worth = {name: (profile.worth[name], previous.worth[name]) for name in profile.worth}
    unmeasured = Judgement(math.nan, 0.0, "", UNMEASURED)

    durations = partial(stability, profile.duration_counts, previous.duration_counts, worth["duration"])
    ratios = partial(stability, profile.snr_counts, previous.snr_counts, worth["snr"])
    words = known_words(words_by_speaker(utterances, language), frozenset(previous.vocabulary))
    known, before = (float(words[:, 1].sum() / words.sum()) if words.sum() else None), previous.known_share

    def vocabulary(limit: float, rate: float) -> Judgement:
        if known is None or before is None:
            return unmeasured
        return known_share(known, before, (effective_rows(words), previous.worth["words"]), limit, rate)

    telephone = unmeasured
    if profile.telephone_share is not None and previous.telephone_share is not None:
        shares = profile.telephone_share, previous.telephone_share
        telephone = change(*shares, worth["telephone"], settings.max_telephone_change, rate)
    extreme = [
        durations(settings.extreme_drift, rate / 3),
        ratios(settings.extreme_drift, rate / 3),
        vocabulary(settings.extreme_known_words, rate / 3),
    ]
    told = [each for each in extreme if not each.untold]
    beyond = [each.value < each.limit if each is extreme[2] else each.value > each.limit for each in told]
    finds, untold = "; ".join(each.finds for each in told), "" if told else extreme[0].untold
    return {
        "drift_duration": durations(settings.max_drift, rate),
        "drift_snr": ratios(settings.max_drift, rate),
        "drift_telephone": telephone,
        "drift_vocabulary": vocabulary(settings.min_known_words, rate),
        "drift_extreme": Judgement(float(sum(beyond)), 0.0, finds, untold),
    }


# ------------------------------------------------------------------------------------------------------- expectations


def _about_utterances(
    quarter: str, language: str, settings: CorpusSettings, judged: Mapping[str, Judgement]
) -> list[Expectation]:
    def every(name: str, kind: str, limit: str, explanation: str, observed: str = "", **arguments: Any) -> Expectation:
        return Expectation(name, "utterances", kind, arguments, limit, explanation, observed or "unexpected_count")

    def present(column: str, explanation: str) -> Expectation:
        name = f"{column.removesuffix('_s')}_present"
        return every(name, "ExpectColumnValuesToNotBeNull", "every row", explanation, column=column)

    def among(column: str, values: Sequence[Any], limit: str, explanation: str, name: str = "") -> Expectation:
        named = name or column
        return every(named, "ExpectColumnValuesToBeInSet", limit, explanation, column=column, value_set=list(values))

    def between(name: str, limit: str, explanation: str, **arguments: Any) -> Expectation:
        return every(name, "ExpectColumnValuesToBeBetween", limit, explanation, **arguments)

    rate_share = judged["speech_rate"].limit
    shortest, longest = settings.min_duration_s, settings.max_duration_s
    slowest, fastest = settings.min_speech_rate, settings.max_speech_rate
    return [
        every(
            "rows", "ExpectTableRowCountToBeBetween", "at least 1 row",
            "An empty partition trains nothing: look at what the source delivered.", "observed_value", min_value=1,
        ),
        present("id", "Without an id an utterance cannot be traced."),
        every(
            "id_unique", "ExpectColumnValuesToBeUnique", "every row",
            "Two utterances with one id would overwrite each other: rename one in the source.", column="id",
        ),
        present("speaker", "Splits and intervals go by speaker."),
        present("domain", "Scores are sliced by domain; write \"unknown\" where it is not known."),
        present("digest", "Duplicates are found by the digest of the audio."),
        present("duration_s", "A duration is measured when audio is normalised: normalise this partition again."),
        between(
            "duration_range", f"{shortest:g} to {longest:g} s",
            "Shorter audio holds no word; longer audio belongs segmented.",
            column="duration_s", min_value=shortest, max_value=longest,
        ),
        among(
            "audio_present", [True], "every row",
            "A manifest without its audio cannot be trained on: restore the files or normalise again.",
        ),
        among(
            "sample_rate_hz", [float(SAMPLE_RATE)], f"{SAMPLE_RATE} Hz in every opened file",
            "Features are computed at 16 kHz: normalise this partition again.", name="sample_rate",
        ),
        among(
            "language", [language], f"{language} in every row",
            "Another language in the partition teaches wrong words: correct the source's language column.",
        ),
        among(
            "quarter", [quarter], f"{quarter_title(quarter)} in every row",
            "A recording counts in the quarter it was made in.",
        ),
        among(
            "split", SPLITS, "train, dev or test in every row", "Every utterance belongs to one set.",
            name="split_assigned",
        ),
        present("split", "Every utterance belongs to one set."),
        every(
            "splits_filled", "ExpectColumnDistinctValuesToContainSet", "train, dev and test all occur",
            "Without a dev and a test speaker nothing can be chosen or judged: more speakers are needed.",
            "observed_value", column="split", value_set=list(SPLITS),
        ),
        between(
            "text_not_empty", "at least 1 word in every row", "An empty transcript under speech teaches silence.",
            column="words", min_value=1,
        ),
        between(
            "speech_rate", f"{slowest:g} to {fastest:g} characters/s, all but {rate_share:.3g} of rows",
            "Nobody speaks that fast or slowly: text and audio do not belong together, or the audio is cut or silent.",
            column="characters_per_second", min_value=slowest, max_value=fastest, mostly=1 - rate_share,
        ),
    ]  # fmt: skip


def _about_partition(settings: CorpusSettings, judged: Mapping[str, Judgement]) -> list[Expectation]:
    def whole(
        name: str, explanation: str, limit: float | None = None, *, least: bool = False, blocking: bool = True
    ) -> Expectation:
        """`limit`: of a figure that does not vary by chance; the others have theirs from how they were judged."""
        limit = judged[name].limit if limit is None else limit
        # The minimum of one value is that value; unlike a map over values it fails on one that is missing.
        arguments = {"column": name, "min_value": limit if least else None, "max_value": None if least else limit}
        told, kind = f"at {'least' if least else 'most'} {limit:.3g}", "ExpectColumnMinToBeBetween"
        return Expectation(name, "partition", kind, arguments, told, explanation, "observed_value", blocking)

    return [
        whole("hours", "Too little speech to train or to measure on.", settings.min_hours, least=True),
        whole("speakers", "Too few speakers to split by speaker.", settings.min_speakers, least=True),
        whole(
            "speakers_in_several_splits",
            "A speaker in train and test makes the test too easy: let assign_splits decide by speaker.",
            0,
            blocking=settings.split == "speaker",
        ),
        whole(
            "duplicate_share",
            "The same audio again counts twice, or says two things: ask the source why it delivered it twice.",
        ),
        whole(
            "text_charset",
            "Foreign characters are another language, markup or a broken encoding; digits and signs count where they "
            "cannot be read aloud: correct the transcripts.",
        ),
        whole(
            "marker_share",
            "Markers such as [noise] were taken out of this share of the transcripts: make sure that nothing that was "
            "said went with them ([corpus] markers).",
            blocking=False,
        ),
        whole(
            "rejected_share",
            "So many rejects mean a broken delivery, not a few broken files: read the reasons in quarantine.",
        ),
        whole(
            "text_audio_correlation",
            "Long texts must take long. Near 0, transcripts are shuffled against the audio, or are of another corpus: "
            "compare the first rows by ear and export again.",
            least=True,
        ),
        whole(
            "transcripts_in_place",
            "In a run of rows the audio lasts as long as the transcript of a row nearby asks for: one delivery in the "
            "partition has its transcripts moved against its audio. The figure is the evidence for it (nats).",
        ),
        whole("drift_duration", "Durations are distributed otherwise than in the previous quarter.", blocking=False),
        whole(
            "drift_snr",
            "Signal-to-noise ratios are distributed otherwise than in the previous quarter.",
            blocking=False,
        ),
        whole(
            "drift_telephone", "The share of telephone recordings changed since the previous quarter.", blocking=False
        ),
        whole(
            "drift_vocabulary",
            "Many words were not common in the previous quarter: new topics, or another source.",
            least=True,
            blocking=False,
        ),
        whole(
            "drift_extreme",
            "The partition differs so much from the previous quarter that it must come from another source.",
        ),
    ]


def _expectations(
    quarter: str, language: str, settings: CorpusSettings, judged: Mapping[str, Judgement]
) -> list[Expectation]:
    """All expectations, with the limits of this partition; those of figures say how often they err."""
    alarms = f"Fails at most one good partition in {len(CHANCE) / settings.false_alarm_rate:,.0f}, whatever its size"
    expectations = [*_about_utterances(quarter, language, settings, judged), *_about_partition(settings, judged)]
    for place, each in enumerate(expectations):
        if each.name in CHANCE:
            judgement = judged[each.name]
            finds = f"; here {judgement.finds} is found in 95 of 100" if judgement.finds else ""
            explanation = " ".join(filter(None, (judgement.note, each.explanation, f"{alarms}{finds}.")))
            expectations[place] = replace(each, explanation=explanation)
    return expectations


def _said_of_nothing(expectation: Expectation, rejected: Mapping[str, int]) -> Expectation:
    """The expectation of at least a row, with what became of those that were delivered."""
    if not any(rejected.values()):
        return expectation
    codes = ", ".join(f"{count} for {code}" for code, count in sorted(rejected.items(), key=lambda each: -each[1]))
    explanation = f"All {sum(rejected.values())} rows went to quarantine ({codes}): read the reasons there."
    return replace(expectation, explanation=explanation)


def catalogue(settings: CorpusSettings) -> tuple[tuple[str, bool, str], ...]:
    """Name, whether it blocks, and explanation of every expectation, in the order of the outcomes."""
    return tuple(
        (each.name, each.blocking, each.explanation) for each in _expectations("2000-01", "any", settings, UNKNOWN)
    )


def validate(
    utterances: Sequence[Utterance],
    *,
    quarter: str,
    language: str,
    rejected: Mapping[str, int],
    unreadable_share: float = 0.0,
    settings: CorpusSettings,
    previous: CorpusProfile | None,
    docs_dir: Path,
    locate: Locate = lambda utterance: utterance.audio,
) -> CorpusValidation:
    """Hold a partition against the suite and write its Data Docs into `docs_dir` (replaced).

    `rejected`: rows of the delivery that went to quarantine, by their code: shares of duplicates and of foreign
    characters are shares of what was delivered. `unreadable_share`: of the rows that no importer could read. `locate`
    gives the place of an utterance's audio; by default its own path. The outcomes are the same list of names for every
    partition; a figure that can show nothing here passes, and its explanation says so.
    """
    rows = list(utterances)
    profile = profile_corpus(rows, language=language, quarter=quarter)
    table = _utterance_table(rows, language, settings, locate)
    judged = _judgements(rows, table, language, rejected, unreadable_share, profile, previous, settings)
    splits: dict[str, set[str]] = {}
    for row in rows:
        splits.setdefault(row.speaker, set()).add(row.split or "")
    measures = {
        "hours": profile.hours,
        "speakers": float(profile.speakers),
        "speakers_in_several_splits": float(sum(len(found) > 1 for found in splits.values())),
        **{name: judgement.value for name, judgement in judged.items()},
    }
    expectations = _expectations(quarter, language, settings, judged)
    untold = {name: judgement.untold for name, judgement in judged.items() if judgement.untold}
    if not rows:
        untold = {each.name: "there is no row" for each in expectations if each.name != "rows"}
        expectations = [_said_of_nothing(each, rejected) if each.name == "rows" else each for each in expectations]
    title = f"{language} {quarter_title(quarter)}"
    told = [expectation for expectation in expectations if expectation.name not in untold]
    results = run_suites(told, table, measures, title, quarter, docs_dir)
    outcomes = []
    for each in expectations:
        success, observed = results.get(each.name, (True, None))
        explanation = f"Not judged: {untold[each.name]}." if each.name in untold else each.explanation
        outcomes.append(
            ExpectationOutcome(
                name=each.name,
                passed=success,
                blocking=each.blocking,
                observed=observed if rows else "no rows",
                limit=each.limit,
                explanation=explanation,
            )
        )
    write_index(docs_dir, title, outcomes, profile)
    return CorpusValidation(tuple(outcomes), docs_dir / "index.html", profile)
