"""How often the corpus checks stop good corpora, and which shifted transcripts they find, from 1 k to 1 M rows.

    SOUNDSTAGE_REAL_DATA=/data python benchmarks/corpus_checks.py [--rows 1000 10000 100000 1000000] [--quick]

Three corpora: sentences read by 60 non-native speakers (speechocean762), digit strings joined from the takes of the
Free Spoken Digit Dataset (its texts and durations; no audio is joined), and the embedded corpus. Each is resampled:
speakers are drawn with replacement and get new names, and keep their rows in order from any row on; where the corpus
lists one speaker after the other so does the draw, and where they take turns they do. Of each draw a quarter before
is drawn alike, for drift.

Then one delivery, a run of 2, 5, 10 or 20 % of the rows or all of them, has its transcripts shifted by one row. Bars:
a draw as delivered is refused or warned about in at most 1 %, and a shift is found in at least 95 % from 5 % of the
rows on (from 10 % at 1 k rows), of every corpus at every size. Strings of one length and one command said over and over
show where lengths cannot tell.

What is drawn are the statistics, not Great Expectations around them; a few whole validations come first.
"""

import argparse
import datetime as dt
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import soundfile
from bars import Bar, end
from numpy.typing import NDArray

from evaluation.corpus.alignment import Lengths
from evaluation.corpus.chance import Judgement, by_speaker, effective_rows, numbered, share
from evaluation.corpus.drift import change, known_share, stability
from evaluation.corpus.expectations import CHANCE, CorpusSettings, in_delivered_order, validate
from evaluation.corpus.profile import DURATION_EDGES_S, SNR_EDGES_DB, VOCABULARY_WORDS
from speech.corpus.importers import IMPORTERS, Defaults
from speech.corpus.manifest import Utterance, assign_splits
from speech.corpus.normalize import DELIVERED, normalize_audio, select_utterances
from speech.quality import measure
from speech.text import normalize

DIGITS = "zero one two three four five six seven eight nine".split()
STRINGS_A_SPEAKER = 100
GAP_S = (0.05, 0.25)  # silence between two digits
SHIFTED = (0.02, 0.05, 0.1, 0.2, 1.0)
DRAWS = {1_000: (400, 150), 10_000: (300, 60), 100_000: (30, 20), 1_000_000: (8, 3)}  # as delivered, shifted
MOST_ALARMS, LEAST_FOUND = 1.0, 95.0  # per cent of draws
CORRELATION = "text_audio_correlation"
DAY = dt.date(2024, 5, 1)
RATE = CorpusSettings().false_alarm_rate / len(CHANCE)


@dataclass(frozen=True)
class Corpus:
    """Rows in the order of their delivery, as arrays, and what drift compares, by speaker."""

    name: str
    characters: NDArray[np.float64]
    duration_s: NDArray[np.float64]
    speech_s: NDArray[np.float64]
    speaker: NDArray[np.int64]
    durations: NDArray[np.int64]  # [speakers, bins]
    ratios: NDArray[np.int64]
    telephone: NDArray[np.int64]  # [speakers, 2]
    words: NDArray[np.int64]  # [speakers, vocabulary]

    @classmethod
    def of(cls, name: str, rows: Sequence[Utterance]) -> "Corpus":
        """A corpus of utterances whose quality is measured."""
        rows = in_delivered_order(rows)
        texts = [normalize(row.text, "en") for row in rows]
        duration = np.array([row.duration_s for row in rows])
        quality = [row.quality for row in rows if row.quality]
        vocabulary = {word: place for place, word in enumerate(sorted({w for text in texts for w in text.split()}))}
        speaker = numbered([row.speaker for row in rows])
        spoken = [(who, vocabulary[word]) for who, text in zip(speaker, texts, strict=True) for word in text.split()]

        def binned(values: Sequence[float] | np.ndarray, edges: Sequence[float]) -> np.ndarray:
            return by_speaker(speaker, np.clip(np.searchsorted(edges, values, "right") - 1, 0, None), len(edges))

        return cls(
            name=name,
            characters=np.array([len(text) for text in texts], dtype=float),
            duration_s=duration,
            speech_s=duration * np.array([1 - found.silence_share for found in quality]),
            speaker=speaker,
            durations=binned(duration, DURATION_EDGES_S),
            ratios=binned([found.snr_db for found in quality], SNR_EDGES_DB),
            telephone=by_speaker(speaker, [found.narrow_band for found in quality], 2),
            words=by_speaker([who for who, _ in spoken], [word for _, word in spoken], len(vocabulary)),
        )


def resampled(corpus: Corpus, rows: int, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of the corpus by number, the new speaker of each, and which speaker was drawn for each new one."""
    order = np.argsort(corpus.speaker, kind="stable")
    sizes = np.bincount(corpus.speaker)
    own = np.split(order, np.cumsum(sizes)[:-1])
    turns = np.count_nonzero(np.diff(corpus.speaker)) > len(corpus.speaker) / 4
    picked, names, drawn, total = [], [], [], 0
    while total < rows:
        cast = chance.integers(len(own), size=len(own))
        # Two copies of a speaker begin at different rows: nobody says one sentence twice in a row, mishaps and all.
        taken = np.concatenate([np.roll(own[who], chance.integers(sizes[who])) for who in cast])
        name = np.repeat(np.arange(len(cast)) + len(drawn), sizes[cast])
        if turns:
            turn = np.concatenate([np.arange(sizes[who]) + chance.random(sizes[who]) for who in cast])
            by_turn = np.argsort(turn, kind="stable")
            taken, name = taken[by_turn], name[by_turn]
        picked.append(taken)
        names.append(name)
        drawn += list(cast)
        total += len(taken)
    name = np.concatenate(names)[:rows]
    return np.concatenate(picked)[:rows], name, np.array(drawn[: int(name.max()) + 1])


def lengths(corpus: Corpus, picked: np.ndarray, names: np.ndarray, characters: np.ndarray | None = None) -> Lengths:
    """Lengths of drawn rows, with the texts given or their own."""
    texts = corpus.characters[picked] if characters is None else characters
    return Lengths(texts, corpus.speech_s[picked], names.tolist())


def shifted(characters: np.ndarray, part: float, chance: np.random.Generator) -> np.ndarray:
    """Lengths of the texts with those of one delivery moved by one row."""
    count = round(part * len(characters))
    start = chance.integers(len(characters) - count + 1)
    moved = characters.copy()
    moved[start : start + count] = np.roll(moved[start : start + count], chance.choice((-1, 1)))
    return moved


def failing(corpus: Corpus, rows: int, chance: np.random.Generator) -> tuple[set[str], set[str]]:
    """The blocking and the warning checks that a draw as delivered fails, against another draw as the quarter before.

    Duplicates, foreign characters and rejects are drawn for a source that has just as many as the settings allow.
    """
    settings = CorpusSettings()
    picked, names, now = resampled(corpus, rows, chance)
    before = resampled(corpus, rows, chance)[2]
    said = lengths(corpus, picked, names)
    pace = corpus.characters[picked] / corpus.duration_s[picked]
    odd = (pace < settings.min_speech_rate) | (pace > settings.max_speech_rate)
    worth = effective_rows(by_speaker(names.tolist(), odd, 2))

    def drifted(table: np.ndarray, limit: float, rate: float = RATE) -> Judgement:
        tables = (table[now], table[before])
        counts = [each.sum(axis=0).tolist() for each in tables]
        return stability(counts[0], counts[1], (effective_rows(tables[0]), effective_rows(tables[1])), limit, rate)

    def vocabulary(limit: float, rate: float = RATE) -> Judgement:
        spoken = corpus.words[before]
        usual = np.zeros(spoken.shape[1], dtype=bool)
        usual[np.argsort(-spoken.sum(axis=0), kind="stable")[:VOCABULARY_WORDS]] = True
        usual &= spoken.any(axis=0)
        ours, theirs = (
            np.stack([each[:, ~known].sum(axis=1), each[:, known].sum(axis=1)], axis=1)
            for each, known in ((corpus.words[now], usual), (spoken, usual & (np.count_nonzero(spoken, axis=0) > 1)))
        )
        worth = effective_rows(ours), effective_rows(theirs)
        return known_share(share_of(ours), share_of(theirs), worth, limit, rate)

    lines = (corpus.telephone[now], corpus.telephone[before])
    telephone = change(
        share_of(lines[0]), share_of(lines[1]), (effective_rows(lines[0]), effective_rows(lines[1])),
        settings.max_telephone_change, RATE,
    )  # fmt: skip
    extreme = (
        beyond(drifted(corpus.durations, settings.extreme_drift, RATE / 3)),
        beyond(drifted(corpus.ratios, settings.extreme_drift, RATE / 3)),
        beyond(vocabulary(settings.extreme_known_words, RATE / 3), at_least=True),
    )
    allowed = (settings.max_duplicate_share, settings.max_charset_share, settings.max_rejected_share)
    duplicates, charset, rejects = (
        beyond(share(chance.binomial(rows, part) / rows, rows, part, RATE)) for part in allowed
    )
    blocking = {
        "speech_rate": beyond(share(float(odd.mean()), worth, settings.max_speech_rate_share, RATE)),
        "duplicate_share": duplicates,
        "text_charset": charset,
        "rejected_share": rejects,
        "text_audio_correlation": beyond(said.relation(RATE), at_least=True),
        "transcripts_in_place": said.moved(RATE).found,
        "drift_extreme": any(extreme),
    }
    warning = {
        "drift_duration": beyond(drifted(corpus.durations, settings.max_drift)),
        "drift_snr": beyond(drifted(corpus.ratios, settings.max_drift)),
        "drift_telephone": beyond(telephone),
        "drift_vocabulary": beyond(vocabulary(settings.min_known_words), at_least=True),
    }
    return {name for name, failed in blocking.items() if failed}, {name for name, failed in warning.items() if failed}


def share_of(table: np.ndarray) -> float:
    """The share of the second of two kinds."""
    return float(table[:, 1].sum() / table.sum())


def beyond(judgement: Judgement, at_least: bool = False) -> bool:
    """Whether a figure fails its limit."""
    if judgement.untold:
        return False
    return judgement.value < judgement.limit if at_least else judgement.value > judgement.limit


def interval(count: int, draws: int) -> str:
    """A share of draws with its 95 % interval (Clopper and Pearson)."""
    from scipy.stats import binomtest

    found = binomtest(count, draws).proportion_ci(0.95, "exact")
    return f"{count / draws:6.1%} ({found.low:.1%}-{found.high:.1%})"


# ------------------------------------------------------------------------------------------------------- corpora


def read_speech(data: Path) -> list[Utterance]:
    """speechocean762: a Kaldi directory of read sentences."""
    rows = []
    defaults = Defaults(language="en", domain="reading", recorded_at=DAY)
    for row in IMPORTERS["kaldi"](data / "speechocean762", defaults):
        assert isinstance(row, Utterance)
        samples, rate_hz = soundfile.read(row.audio, dtype="float32")
        assert rate_hz == 16_000
        rows.append(listed(row, len(rows), duration_s=len(samples) / rate_hz, quality=measure(samples)))
    return rows


def digit_strings(data: Path, words: tuple[int, int], like: Utterance, seed: int = 0) -> list[Utterance]:
    """Strings of so many digits by each speaker of FSDD, one speaker after the other; `like` gives the other fields."""
    takes: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted((data / "fsdd" / "recordings").glob("*.wav")):
        digit, speaker, _ = path.stem.split("_")
        info = soundfile.info(path)
        takes[speaker][int(digit)].append(info.frames / info.samplerate)
    chance = random.Random(seed)
    rows: list[Utterance] = []
    assert like.quality is not None
    for speaker, by_digit in sorted(takes.items()):
        for _ in range(STRINGS_A_SPEAKER):
            digits = chance.choices(range(10), k=chance.randint(*words))
            duration_s = GAP_S[1] + sum(chance.uniform(*GAP_S) + chance.choice(by_digit[digit]) for digit in digits)
            quality = replace(like.quality, duration_s=duration_s, silence_share=0.0, snr_db=chance.gauss(20, 5))
            text = " ".join(DIGITS[digit] for digit in digits)
            place = len(rows)
            made = replace(like, id=f"{speaker}-{place}", text=text, speaker=speaker, quality=quality)
            rows.append(listed(made, place, duration_s=duration_s))
    return rows


def embedded(folder: Path) -> list[Utterance]:
    """A small quarter of the embedded corpus, normalised."""
    from speech.corpus.synthetic import write_quarter

    written = write_quarter(folder / "source", "2024-04", "en", minutes=12, speakers=40)
    found = list(IMPORTERS["table"](written.table, Defaults(language="en", domain="", recorded_at=DAY)))
    rows = [listed(row, place) for place, row in enumerate(found) if isinstance(row, Utterance)]
    kept = select_utterances(normalize_audio(rows, folder / "normal").kept, "en").kept
    return [replace(row, audio=str(folder / "normal" / row.audio)) for row in kept]


def listed(row: Utterance, place: int, **changes: object) -> Utterance:
    """A row at its place in the delivery."""
    attributes = {**row.attributes, DELIVERED: str(place)}
    return replace(row, attributes=attributes, digest=f"{place:064x}", **changes)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- tables


@dataclass(frozen=True)
class Drawn:
    """What came of a corpus at one size; shares in per cent of the draws."""

    corpus: str
    rows: int
    refused: float
    warned: float
    found: dict[float, float]  # by the part that was shifted
    failing: Counter[str]  # checks that failed as delivered

    @property
    def least_found(self) -> float:
        """The lowest share of the shifts that must be found."""
        least_part = 0.1 if self.rows <= 1_000 else 0.05
        return min(share for part, share in self.found.items() if part >= least_part)


def draw(corpus: Corpus, rows: int, draws: tuple[int, int], seed: int) -> Drawn:
    """One row of the table: false alarms and finds of a corpus at one size."""
    chance = np.random.default_rng(seed)
    refused = warned = 0
    names: Counter[str] = Counter()
    for _ in range(draws[0]):
        blocking, warning = failing(corpus, rows, chance)
        refused += bool(blocking)
        warned += bool(warning)
        names.update(blocking | warning)
    found = dict.fromkeys(SHIFTED, 0)
    for _ in range(draws[1]):
        picked, speakers, _ = resampled(corpus, rows, chance)
        for part in SHIFTED:
            found[part] += lengths(
                corpus, picked, speakers, shifted(corpus.characters[picked], part, chance)
            ).moved(RATE).found  # fmt: skip
    shares = "".join(f"{found[part] / draws[1]:7.0%}" for part in SHIFTED)
    alarms = f"{interval(refused, draws[0]):>22} {interval(warned, draws[0]):>22}"
    least = lengths(corpus, *resampled(corpus, rows, chance)[:2]).moved(RATE).judgement.finds
    print(f"{corpus.name:22} {rows:9,} {draws[0]:5} {alarms} {draws[1]:5} {shares}   {least}", flush=True)
    return Drawn(
        corpus.name,
        rows,
        100 * refused / draws[0],
        100 * warned / draws[0],
        {part: 100 * count / draws[1] for part, count in found.items()},
        names,
    )


def told(corpus: Corpus, rows: int) -> bool:
    """One row of the table: what lengths find in a corpus, or why they are not judged; whether they are."""
    judgement = lengths(corpus, *resampled(corpus, rows, np.random.default_rng(0))[:2]).moved(RATE).judgement
    said = f"not judged: {judgement.untold}" if judgement.untold else judgement.finds
    print(f"{corpus.name:22} {rows:9,} {'':{5 + 2 * 23 + 6 + 7 * len(SHIFTED)}}    {said}", flush=True)
    return not judgement.untold


def validated(name: str, rows: Sequence[Utterance], folder: Path, expected: set[str]) -> str:
    """A whole validation; what is wrong with it where other checks fail than expected."""
    started = time.monotonic()
    found = validate(
        assign_splits([replace(row, split=None) for row in rows]),
        language="en", quarter="2024-04", rejected={}, settings=CorpusSettings(probed_files=20, min_hours=0.01),
        previous=None, docs_dir=folder,
    )  # fmt: skip
    failed = {outcome.name for outcome in found.outcomes if not outcome.passed}
    said = ", ".join(sorted(failed)) or "passed"
    print(f"{name:44} {len(rows):6,} rows {time.monotonic() - started:5.1f} s   {said}", flush=True)
    return "" if failed & IN_QUESTION == expected else f"{name}: failed is {said}, not {expected or 'nothing'}"


IN_QUESTION = set(CHANCE)  # six speakers fill no three sets: that is not in question here


def moved(rows: Sequence[Utterance], start: int, count: int) -> list[Utterance]:
    """The rows with the transcripts of a run moved by one."""
    texts = [row.text for row in rows]
    texts[start : start + count] = [texts[start + count - 1], *texts[start : start + count - 1]]
    return [replace(row, text=text) for row, text in zip(rows, texts, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 when no bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", choices=DRAWS, default=list(DRAWS), help="only these sizes")
    parser.add_argument(
        "--quick", action="store_true", help="a tenth of the draws as delivered, a fifth of the shifted"
    )
    options = parser.parse_args(arguments)
    if not os.environ.get("SOUNDSTAGE_REAL_DATA"):
        parser.error("set SOUNDSTAGE_REAL_DATA to the folder that holds speechocean762 and fsdd/recordings")
    data = Path(os.environ["SOUNDSTAGE_REAL_DATA"]).absolute()
    sizes = {rows: DRAWS[rows] for rows in options.rows}
    if options.quick:
        sizes = {rows: (max(1, draws[0] // 10), max(1, draws[1] // 5)) for rows, draws in sizes.items()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read = read_speech(data)
        strings, made = digit_strings(data, (2, 6), read[0]), embedded(folder)
        of_four = digit_strings(data, (4, 4), read[0])
        command = [replace(row, text="stop now") for row in digit_strings(data, (2, 2), read[0])]
        wrong = [
            validated(title, rows, folder / "docs", fault)
            for title, rows, fault in (
                ("read sentences", read, set()),
                ("read sentences, 60 rows shifted", moved(read, 500, 60), {"transcripts_in_place"}),
                ("embedded corpus", made, set()),
                ("embedded corpus, 40 rows shifted", moved(made, 100, 40), {"transcripts_in_place"}),
                ("digit strings", strings, set()),
                ("digit strings, all shifted", moved(strings, 0, 600), {"transcripts_in_place", CORRELATION}),
            )
        ]
        print(
            f"\n{'':22} {'':9} {'as delivered':>51} {'a part shifted, found in':>41}"
            f"\n{'corpus':22} {'rows':>9} {'draws':>5} {'refused':>22} {'warned':>22} {'draws':>5} "
            + "".join(f"{part:7.0%}" for part in SHIFTED)
            + "   found in 95 % of draws"
        )
        drawn = [
            draw(Corpus.of(title, rows), size, draws, seed)
            for seed, (title, rows) in enumerate(
                (("read sentences", read), ("digit strings", strings), ("embedded", made))
            )
            for size, draws in sizes.items()
        ]
        for size in sizes:
            told(Corpus.of("strings of four digits", of_four), size)
        alike = [told(Corpus.of("one command", command), size) for size in sizes]
    missed = [sentence for sentence in wrong if sentence]
    missed += [
        f"{each.corpus} at {each.rows:,}: {name} in {count} draws"
        for each in drawn
        for name, count in each.failing.items()
        if max(each.refused, each.warned) > MOST_ALARMS
    ]
    missed += [
        f"{each.corpus} at {each.rows:,}: shifts found in {each.least_found:.0f} %"
        for each in drawn
        if each.least_found < LEAST_FOUND
    ]
    return end(
        [
            Bar("whole validations with another outcome than expected", sum(bool(each) for each in wrong), 0),
            Bar("as delivered: refused, % of draws, at worst", max(each.refused for each in drawn), MOST_ALARMS),
            Bar("as delivered: warned, % of draws, at worst", max(each.warned for each in drawn), MOST_ALARMS),
            Bar("shifted: found, % of draws, at worst", min(each.least_found for each in drawn), LEAST_FOUND, True),
            Bar("sizes at which texts that are all alike are judged by length", sum(alike), 0),
        ],
        missed,
    )


if __name__ == "__main__":
    sys.exit(main())
