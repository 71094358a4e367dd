"""What a quarter's corpus has to look like before a model is trained on it.

Exports go wrong in ways that no loader notices: transcripts shifted by a row against the audio, a language filed under
another, a partner's recordings delivered twice, one speaker in train and test. A model trained on that is bad, or
looks good for the wrong reason, and the hours spent on it are gone. So each partition is held against a suite of Great
Expectations, whose Data Docs say what was expected, found, and why it matters.

- Blocking expectations stop the partition. Drift against the previous quarter only warns, as quarters may differ; it
  blocks where it is so large that the source itself must be another one.
- A partition without a row fails everything: nothing about it is known.
- Transcripts shifted against the audio are found by rank correlation of text length and speech duration. In matching
  pairs long texts take long: 0.64 over 60 non-native readers aged 6 to 43 (the hardest real corpus tried), more where
  speakers are alike. Pairs shifted by one row gave 0.20 there, shuffled ones give 0 with a standard error of
  1/sqrt(n). The limit lies between. One shifted delivery in a good quarter shows in the stretches of 100 rows, whose
  own lowest was 0.45 when matching and -0.15 when shifted. Where all utterances are about equally long (single
  commands), correlation cannot tell and says so; the speech rate is then the only guard.

Not covered: whether a transcript is right word by word. Training and evaluation show that.
"""

import datetime as dt
import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evaluation.corpus.data_docs import seal_docs, write_index
from evaluation.corpus.profile import CorpusProfile, profile_corpus, stability_index
from evaluation.corpus.validation import CorpusValidation, ExpectationOutcome
from speech.audio.decode import SAMPLE_RATE
from speech.corpus.manifest import SPLITS, Utterance, quarter_of, quarter_title
from speech.corpus.normalize import MAX_DURATION_S, MIN_DURATION_S
from speech.text import normalize, speech_rate, unexpected_characters, words_of

if TYPE_CHECKING:
    import pandas

STRETCH_ROWS = 100

Locate = Callable[[Utterance], str | os.PathLike[str]]


class CorpusSettings(BaseModel):
    """What a corpus partition must meet, as `[corpus]` in soundstage.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["speaker", "given"] = Field(
        "speaker",
        description="speaker: by a hash of the speaker, so that nobody is in two sets; given: the source's own column, "
        "for corpora with an official split, where a speaker in two sets only warns.",
    )
    dev_share: float = Field(0.1, gt=0, lt=1, description="Share of the speakers whose utterances tune a training.")
    test_share: float = Field(0.2, gt=0, lt=1, description="Share of the speakers whose utterances judge a model.")
    min_hours: float = Field(0.1, ge=0, description="Least speech in a partition (hours).")
    min_speakers: int = Field(5, ge=1, description="Fewest speakers in a partition (speakers).")
    min_duration_s: float = Field(MIN_DURATION_S, gt=0, description="Shortest utterance (seconds).")
    max_duration_s: float = Field(MAX_DURATION_S, gt=0, description="Longest utterance (seconds).")
    max_duplicate_share: float = Field(
        0.01, ge=0, le=1, description="Highest share of utterances whose audio is in the partition already (share)."
    )
    max_charset_share: float = Field(
        0.005, ge=0, le=1, description="Highest share of transcripts with characters foreign to the language (share)."
    )
    min_speech_rate: float = Field(
        2.0, ge=0, description="Slowest plausible speech (normalised characters per second)."
    )
    max_speech_rate: float = Field(
        30.0, gt=0, description="Fastest plausible speech (normalised characters per second)."
    )
    max_speech_rate_share: float = Field(
        0.05, ge=0, le=1, description="Highest share of utterances outside the plausible speech rate (share)."
    )
    min_text_audio_correlation: float = Field(
        0.4,
        ge=-1,
        le=1,
        description="Lowest rank correlation of text length and speech duration; near 0 means shifted transcripts "
        "(correlation).",
    )
    min_stretch_correlation: float = Field(
        0.2, ge=-1, le=1, description="The same within every 100 consecutive utterances (correlation)."
    )
    max_rejected_share: float = Field(
        0.1, ge=0, le=1, description="Highest share of delivered rows that went to quarantine (share)."
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
    max_telephone_change: float = Field(
        0.3, ge=0, le=1, description="Change of the share of telephone recordings that warns (share)."
    )
    min_known_words: float = Field(
        0.7, ge=0, le=1, description="Share of words also common in the previous quarter below which it warns (share)."
    )
    extreme_known_words: float = Field(
        0.2, ge=0, le=1, description="Share of words also common in the previous quarter below which it blocks (share)."
    )


@dataclass(frozen=True)
class _Expectation:
    """A promise about one of the two tables, and how to say it."""

    name: str
    table: str  # "utterances" or "partition"
    kind: str  # class name in great_expectations.expectations
    arguments: Mapping[str, Any]
    limit: str
    explanation: str
    observed: str = ""  # field of GX's result that is worth showing
    blocking: bool = True


# ----------------------------------------------------------------------------------------------------------- measures


def text_audio_correlation(characters: np.ndarray, speech_s: np.ndarray) -> float:
    """Spearman's rank correlation; NaN when there are too few rows or too little variation to tell anything."""
    from scipy.stats import rankdata

    if len(characters) < 20:
        return math.nan
    if np.std(characters) < 0.15 * np.mean(characters) or np.std(speech_s) < 0.05 * np.mean(speech_s):
        return math.nan
    return float(np.corrcoef(rankdata(characters), rankdata(speech_s))[0, 1])


def _stretches(characters: np.ndarray, speech_s: np.ndarray) -> float:
    """The lowest correlation of any stretch of rows; NaN when none can tell. Stretches overlap by half."""
    rows = len(characters)
    if rows < 2 * STRETCH_ROWS:
        return math.nan
    starts = [*range(0, rows - STRETCH_ROWS, STRETCH_ROWS // 2), rows - STRETCH_ROWS]
    parts = [slice(start, start + STRETCH_ROWS) for start in starts]
    found = [text_audio_correlation(characters[part], speech_s[part]) for part in parts]
    told = [value for value in found if math.isfinite(value)]
    return min(told, default=math.nan)


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
    from speech.audio.decode import AudioError, probe

    place = locate(utterance)
    if "://" not in os.fspath(place) and not os.path.isfile(place):
        return False, None
    if not look_inside:
        return True, None
    try:
        return True, float(probe(place).sample_rate)
    except (AudioError, OSError):
        return True, 0.0


def _partition_measures(
    utterances: Sequence[Utterance],
    table: "pandas.DataFrame",
    language: str,
    rejected: Mapping[str, int],
    unreadable_share: float,
    profile: CorpusProfile,
    previous: CorpusProfile | None,
    settings: CorpusSettings,
) -> dict[str, float]:
    """What only the whole partition has."""
    splits: dict[str, set[str]] = {}
    for utterance in utterances:
        splits.setdefault(utterance.speaker, set()).add(utterance.split or "")
    digests = Counter(u.digest for u in utterances if u.digest)
    pairs = [
        (len(normalize(u.text, language)), u.duration_s * (1 - (u.quality.silence_share if u.quality else 0.0)))
        for u in utterances
        if u.duration_s
    ]
    characters = np.array([pair[0] for pair in pairs], dtype=float)
    speech_s = np.array([pair[1] for pair in pairs], dtype=float)
    refused = sum(rejected.values())
    delivered = len(utterances) + refused
    twins = sum(count - 1 for count in digests.values()) + rejected.get("duplicate", 0)
    foreign = sum(table["unexpected_characters"] != "") + rejected.get("charset", 0)
    measures = {
        "hours": profile.hours,
        "speakers": float(profile.speakers),
        "speakers_in_several_splits": float(sum(len(found) > 1 for found in splits.values())),
        "duplicate_share": twins / delivered if delivered else math.nan,
        "text_charset": float(foreign) / delivered if delivered else math.nan,
        "rejected_share": 1 - (1 - unreadable_share) * len(utterances) / delivered if delivered else math.nan,
        "text_audio_correlation": text_audio_correlation(characters, speech_s),
        "stretch_correlation": _stretches(characters, speech_s),
    }
    if previous is not None and utterances:
        words = [word for u in utterances for word in words_of(u.text, language)]
        known = set(previous.vocabulary)
        measures["drift_duration"] = stability_index(profile.duration_counts, previous.duration_counts)
        measures["drift_snr"] = stability_index(profile.snr_counts, previous.snr_counts)
        if profile.telephone_share is not None and previous.telephone_share is not None:
            measures["drift_telephone"] = abs(profile.telephone_share - previous.telephone_share)
        if words and known:
            measures["drift_vocabulary"] = sum(word in known for word in words) / len(words)
        measures["drift_extreme"] = float(
            sum(measures.get(name, 0.0) > settings.extreme_drift for name in ("drift_duration", "drift_snr"))
            + (measures.get("drift_vocabulary", 1.0) < settings.extreme_known_words)
        )
    return measures


# ------------------------------------------------------------------------------------------------------- expectations


def _about_utterances(language: str, quarter: str, settings: CorpusSettings) -> list[_Expectation]:
    def every(name: str, kind: str, limit: str, explanation: str, observed: str = "", **arguments: Any) -> _Expectation:
        return _Expectation(name, "utterances", kind, arguments, limit, explanation, observed or "unexpected_count")

    rate_share = settings.max_speech_rate_share
    return [
        every(
            "columns", "ExpectTableColumnsToMatchSet", "exactly these columns",
            "Utterances carry every field that training and evaluation read.",
            "observed_value", column_set=list(_COLUMNS), exact_match=True,
        ),
        every(
            "rows", "ExpectTableRowCountToBeBetween", "at least 1 row",
            "An empty partition trains nothing: look at what the source delivered.", "observed_value", min_value=1,
        ),
        every(
            "id_present", "ExpectColumnValuesToNotBeNull", "every row",
            "Without an id an utterance cannot be traced.", column="id",
        ),
        every(
            "id_unique", "ExpectColumnValuesToBeUnique", "every row",
            "Two utterances with one id would overwrite each other: rename one in the source.", column="id",
        ),
        every(
            "speaker_present", "ExpectColumnValuesToNotBeNull", "every row",
            "Splits and intervals go by speaker.", column="speaker",
        ),
        every(
            "domain_present", "ExpectColumnValuesToNotBeNull", "every row",
            "Scores are sliced by domain; write \"unknown\" where it is not known.", column="domain",
        ),
        every(
            "digest_present", "ExpectColumnValuesToNotBeNull", "every row",
            "Duplicates are found by the digest of the audio.", column="digest",
        ),
        every(
            "duration_present", "ExpectColumnValuesToNotBeNull", "every row",
            "A duration is measured when audio is normalised: normalise this partition again.", column="duration_s",
        ),
        every(
            "duration_range", "ExpectColumnValuesToBeBetween",
            f"{settings.min_duration_s:g} to {settings.max_duration_s:g} s",
            "Shorter audio holds no word; longer audio belongs segmented.",
            column="duration_s", min_value=settings.min_duration_s, max_value=settings.max_duration_s,
        ),
        every(
            "audio_present", "ExpectColumnValuesToBeInSet", "every row",
            "A manifest without its audio cannot be trained on: restore the files or normalise again.",
            column="audio_present", value_set=[True],
        ),
        every(
            "sample_rate", "ExpectColumnValuesToBeInSet", f"{SAMPLE_RATE} Hz in every opened file",
            "Features are computed at 16 kHz: normalise this partition again.",
            column="sample_rate_hz", value_set=[float(SAMPLE_RATE)],
        ),
        every(
            "language", "ExpectColumnValuesToBeInSet", f"{language} in every row",
            "Another language in the partition teaches wrong words: correct the source's language column.",
            column="language", value_set=[language],
        ),
        every(
            "quarter", "ExpectColumnValuesToBeInSet", f"{quarter_title(quarter)} in every row",
            "A recording counts in the quarter it was made in.", column="quarter", value_set=[quarter],
        ),
        every(
            "split_assigned", "ExpectColumnValuesToBeInSet", "train, dev or test in every row",
            "Every utterance belongs to one set.", column="split", value_set=list(SPLITS),
        ),
        every(
            "split_present", "ExpectColumnValuesToNotBeNull", "every row",
            "Every utterance belongs to one set.", column="split",
        ),
        every(
            "splits_filled", "ExpectColumnDistinctValuesToContainSet", "train, dev and test all occur",
            "Without a dev and a test speaker nothing can be chosen or judged: more speakers are needed.",
            "observed_value", column="split", value_set=list(SPLITS),
        ),
        every(
            "text_not_empty", "ExpectColumnValuesToBeBetween", "at least 1 word in every row",
            "An empty transcript under speech teaches silence.", column="words", min_value=1,
        ),
        every(
            "speech_rate", "ExpectColumnValuesToBeBetween",
            f"{settings.min_speech_rate:g} to {settings.max_speech_rate:g} characters/s, "
            f"all but {rate_share:.0%} of rows",
            "Nobody speaks that fast or slowly: text and audio do not belong together, or the audio is cut or silent.",
            column="characters_per_second", min_value=settings.min_speech_rate, max_value=settings.max_speech_rate,
            mostly=1 - rate_share,
        ),
    ]  # fmt: skip


def _about_partition(settings: CorpusSettings) -> list[_Expectation]:
    def whole(
        name: str, explanation: str, *, at_least: float | None = None, at_most: float | None = None,
        blocking: bool = True,
    ) -> _Expectation:  # fmt: skip
        limit = f"at least {at_least:g}" if at_least is not None else f"at most {at_most:g}"
        # The minimum of one value is that value; unlike a map over values it fails on one that is missing.
        arguments = {"column": name, "min_value": at_least, "max_value": at_most}
        return _Expectation(
            name, "partition", "ExpectColumnMinToBeBetween", arguments, limit, explanation, "observed_value", blocking
        )

    return [
        whole("hours", "Too little speech to train or to measure on.", at_least=settings.min_hours),
        whole("speakers", "Too few speakers to split by speaker.", at_least=settings.min_speakers),
        whole(
            "speakers_in_several_splits",
            "A speaker in train and test makes the test too easy: let assign_splits decide by speaker.",
            at_most=0,
            blocking=settings.split == "speaker",
        ),
        whole(
            "duplicate_share",
            "The same audio again counts twice: ask the source why it delivered it twice.",
            at_most=settings.max_duplicate_share,
        ),
        whole(
            "text_charset",
            "Foreign characters are another language, markup or a broken encoding: correct the transcripts.",
            at_most=settings.max_charset_share,
        ),
        whole(
            "rejected_share",
            "So many rejects mean a broken delivery, not a few broken files: read the reasons in quarantine.",
            at_most=settings.max_rejected_share,
        ),
        whole(
            "text_audio_correlation",
            "Long texts must take long. Near 0, transcripts are shifted or shuffled against the audio: "
            "compare the first rows by ear and export again.",
            at_least=settings.min_text_audio_correlation,
        ),
        whole(
            "stretch_correlation",
            f"In one stretch of {STRETCH_ROWS} rows long texts do not take long: one delivery in the partition is "
            "shifted against its audio.",
            at_least=settings.min_stretch_correlation,
        ),
        whole(
            "drift_duration",
            "Durations are distributed otherwise than in the previous quarter.",
            at_most=settings.max_drift,
            blocking=False,
        ),
        whole(
            "drift_snr",
            "Signal-to-noise ratios are distributed otherwise than in the previous quarter.",
            at_most=settings.max_drift,
            blocking=False,
        ),
        whole(
            "drift_telephone",
            "The share of telephone recordings changed since the previous quarter.",
            at_most=settings.max_telephone_change,
            blocking=False,
        ),
        whole(
            "drift_vocabulary",
            "Many words were not common in the previous quarter: new topics, or another source.",
            at_least=settings.min_known_words,
            blocking=False,
        ),
        whole(
            "drift_extreme",
            "The partition differs so much from the previous quarter that it must come from another source.",
            at_most=0,
        ),
    ]


def catalogue(settings: CorpusSettings) -> tuple[tuple[str, bool, str], ...]:
    """Name, whether it blocks, and explanation of every expectation, in the order of the outcomes."""
    expectations = [*_about_utterances("any", "2000-01", settings), *_about_partition(settings)]
    return tuple((each.name, each.blocking, each.explanation) for each in expectations)


def validate(
    utterances: Sequence[Utterance],
    *,
    language: str,
    quarter: str,
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
    partition.
    """
    rows = list(utterances)
    profile = profile_corpus(rows, language=language, quarter=quarter)
    table = _utterance_table(rows, language, settings, locate)
    measures = _partition_measures(rows, table, language, rejected, unreadable_share, profile, previous, settings)
    expectations = [*_about_utterances(language, quarter, settings), *_about_partition(settings)]
    untold = {name: reason for name, reason in _untold(measures, len(rows), previous).items() if rows}
    judged = [expectation for expectation in expectations if expectation.name not in untold]
    title = f"{language} {quarter_title(quarter)}"
    results = _run_suites(judged, table, measures, title, quarter, docs_dir)
    outcomes = []
    for expectation in expectations:
        if expectation.name in untold:
            outcomes.append(
                ExpectationOutcome(
                    expectation.name, True, expectation.blocking, None, expectation.limit, untold[expectation.name]
                )
            )
            continue
        success, observed = results[expectation.name]
        outcomes.append(
            ExpectationOutcome(
                name=expectation.name,
                passed=success and bool(rows),
                blocking=expectation.blocking,
                observed=observed if rows else "no rows",
                limit=expectation.limit,
                explanation=expectation.explanation,
            )
        )
    write_index(docs_dir, title, outcomes, profile)
    return CorpusValidation(tuple(outcomes), docs_dir / "index.html", profile)


def _untold(measures: Mapping[str, float], rows: int, previous: CorpusProfile | None) -> dict[str, str]:
    """Expectations that this partition cannot answer, with the reason: they pass, and say that they prove nothing."""
    untold = {}
    if not math.isfinite(measures["text_audio_correlation"]):
        untold["text_audio_correlation"] = (
            "Not judged: fewer than 20 utterances, or all about equally long, so lengths cannot show a shift."
        )
    if not math.isfinite(measures["stretch_correlation"]):
        untold["stretch_correlation"] = (
            f"Not judged: fewer than {2 * STRETCH_ROWS} utterances, or all about equally long."
        )
    for name in ("drift_duration", "drift_snr", "drift_telephone", "drift_vocabulary", "drift_extreme"):
        if previous is None:
            untold[name] = "Not judged: there is no earlier quarter to compare with."
        elif not math.isfinite(measures.get(name, math.nan)):
            untold[name] = "Not judged: one of the two quarters was not measured for it."
    return untold


# --------------------------------------------------------------------------------------------------- Great Expectations


def _run_suites(
    expectations: Sequence[_Expectation],
    table: "pandas.DataFrame",
    measures: Mapping[str, float],
    title: str,
    quarter: str,
    docs_dir: Path,
) -> dict[str, tuple[bool, float | str | None]]:
    """Validate both tables and write the Data Docs: name -> (success, observed)."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations
    import pandas
    from great_expectations import expectations as library

    shutil.rmtree(docs_dir, ignore_errors=True)
    docs_dir.mkdir(parents=True)
    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name, site in list(context.list_data_docs_sites().items()):
        context.delete_data_docs_site(name)
        shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)  # made for a site nobody asked for
    context.add_data_docs_site(
        site_name="corpus",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs_dir)},
            "show_how_to_buttons": False,
        },
    )
    source = context.data_sources.add_pandas(title)
    frames = {"utterances": table, "partition": pandas.DataFrame([dict(measures)])}
    results: dict[str, tuple[bool, float | str | None]] = {}
    run = great_expectations.RunIdentifier(
        run_name=title, run_time=dt.datetime.fromisoformat(f"{quarter}-01T00:00:00+00:00")
    )
    for name, frame in frames.items():
        suite = great_expectations.ExpectationSuite(name=f"{title}, {name}")
        for expectation in expectations:
            if expectation.table == name:
                suite.add_expectation(
                    getattr(library, expectation.kind)(
                        **expectation.arguments,
                        severity="critical" if expectation.blocking else "warning",
                        description=f"{expectation.name}: {expectation.limit}. {expectation.explanation}",
                        meta={"name": expectation.name},
                    )
                )
        definition = context.validation_definitions.add(
            great_expectations.ValidationDefinition(
                name=f"{title}, {name}",
                data=source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name),
                suite=context.suites.add(suite),
            )
        )
        found = definition.run(batch_parameters={"dataframe": frame}, run_id=run, result_format="SUMMARY")
        wanted = {expectation.name: expectation for expectation in expectations}
        for result in found.results:
            expectation = wanted[result.expectation_config.meta["name"]]
            results[expectation.name] = bool(result.success), _observed(result.result, expectation)
    context.build_data_docs(site_names=["corpus"])
    seal_docs(docs_dir)
    return results


def _observed(result: Mapping[str, Any], expectation: _Expectation) -> float | str | None:
    """The figure worth showing: a measure, or how many rows are not as expected."""
    value = result.get(expectation.observed)
    if expectation.observed == "unexpected_count" and value is not None:
        examples = ", ".join(str(item) for item in result.get("partial_unexpected_list", [])[:3])
        return f"{value} of {result.get('element_count')} rows are not, such as {examples}" if value else "every row is"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
