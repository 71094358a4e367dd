"""Ten languages in seven scripts through corpus checks, training, export and subtitles, by the embedded synthesiser.

    python benchmarks/languages.py [--languages en,ko,...] [--home FOLDER]

For each language two quarters are drawn alike, normalised and checked as `utterances` does, and the recipe `tiny` is
fitted to the first for a hundred steps: far too few to recognise anything, enough to see what a step and a bundle cost.
Subtitles are therefore not the model's: the pieces that its tokenizer makes of transcripts are placed where they were
said, six utterances with a second between them, and go through the bundle's speller, segments and cues. They are the
longest of those that one cue can hold; a longer one would have to be cut where nobody pauses.

A step's cost is processor time on one thread, which other programs on the machine change little. Everything runs in one
process, as importing NeMo takes longer than a hundred steps. Exit code 1 where a bar falls short.
"""

import argparse
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bars import Bar, end

from evaluation.corpus.expectations import CorpusSettings, validate
from evaluation.corpus.profile import CorpusProfile
from speech.bundle import ModelBundle
from speech.corpus.importers import Defaults
from speech.corpus.importers.tables import import_table
from speech.corpus.manifest import Utterance, assign_splits, write_manifest
from speech.corpus.normalize import normalize_audio, select_utterances
from speech.corpus.synthetic import VOCABULARY, write_quarter
from speech.scripts import join_words
from speech.segments import PAUSE_S
from speech.text import normalize, spoken_length
from speech.transcript import CUE_COLUMNS, CUE_SECONDS, Transcript, columns
from training.recipe import Recipe, load_recipe

LANGUAGES = ("en", "de", "ru", "el", "tr", "ar", "hi", "ko", "ja", "zh")
QUARTERS = ("2023-07", "2023-10")  # before the embedded corpus begins to drift
MINUTES = 4.0
SPEAKERS = 12
STEPS = 100
MOST_TIMES_ENGLISH = 1.3
CUED_UTTERANCES = 6
CUE_PAUSE_S = 1.0


@dataclass
class Row:
    """What was measured of a language."""

    language: str
    characters: int
    asked: int
    pieces: int
    step_s: float  # processor seconds, the median
    bundle_mb: float
    known_words: float
    failed: tuple[str, ...]  # blocking checks of either quarter
    cues: int
    cues_at_pauses: int
    dev_wer: float
    seconds: float

    @property
    def cued(self) -> bool:
        """Whether each utterance is one cue that ends where the utterance does."""
        return self.cues == self.cues_at_pauses == CUED_UTTERANCES


def quarter_of_corpus(quarter: str, language: str, folder: Path) -> tuple[list[Utterance], Counter[str], Path]:
    """A quarter of the embedded corpus as the assets leave it: utterances, codes of what was refused, manifest."""
    here = Path(__file__).parent / "vocabulary"
    vocabulary = VOCABULARY if (VOCABULARY / f"{language}.yaml").is_file() else here
    source = write_quarter(
        folder / "source", quarter, language, minutes=MINUTES, speakers=SPEAKERS, vocabulary=vocabulary
    )
    rows = [row for row in import_table(source.table, Defaults()) if isinstance(row, Utterance)]
    normalized = normalize_audio(rows, folder / "normalized", workers=2)
    normalized.write(folder / "normalized")
    chosen = select_utterances(normalized.kept, language)
    kept = assign_splits([replace(row, split=None) for row in chosen.kept])
    kept = [replace(row, audio=str(folder / "normalized" / row.audio)) for row in kept]
    manifest = folder / "normalized" / "utterances.jsonl"
    write_manifest(manifest, kept)
    return kept, Counter(row.code for row in (*normalized.quarantined, *chosen.quarantined)), manifest


def cues_of(bundle: ModelBundle, rows: Sequence[Utterance]) -> tuple[int, int]:
    """How many cues a recording of these utterances gets, and how many of them end where an utterance does."""
    from deployment.serving.transcription import segments_from_words
    from speech.recognition.decoder import Token
    from speech.recognition.words import WordSpeller

    speller = WordSpeller(bundle)
    frame_s = bundle.features.frame_s * bundle.geometry.subsampling
    tokens: list[Token] = []
    ends: list[float] = []
    begin_s = 0.0
    for row in rows:
        text = join_words(normalize(row.text, bundle.language).split())
        symbols = speller.pieces_of(text)
        duration_s = row.duration_s or 0.0
        # a piece is written at the end of its sound, which takes its share of the letters
        letters = [spoken_length(bundle.vocabulary[symbol]) for symbol in symbols]
        said = itertools.accumulate(letters)
        frames = [int((begin_s + duration_s * done / sum(letters)) / frame_s) - 1 for done in said]
        tokens += [Token(symbol, frame, frame, 0.9) for symbol, frame in zip(symbols, frames, strict=True)]
        ends.append(frames[-1] * frame_s)
        begin_s += duration_s + CUE_PAUSE_S
    words = speller.words(tokens)
    transcript = Transcript(
        language=bundle.language,
        segments=segments_from_words(words),
        confidence=0.9,
        source_digest="0" * 64,
        duration_s=begin_s,
    )
    found = re.findall(r"--> (\d+):(\d+):(\d+\.\d+)", transcript.to_vtt())
    at_pauses = 0
    for hours, minutes, seconds in found:
        end_s = int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        at_pauses += any(abs(end_s - end) < PAUSE_S / 2 for end in ends)
    return len(found), at_pauses


def measure(language: str, folder: Path, recipe: Recipe) -> Row:
    """Take one language all the way."""
    from training.asr import fit
    from training.batches import AudioCache
    from training.data import read_split
    from training.export import export

    began = time.monotonic()
    settings = CorpusSettings(min_hours=0.8 * MINUTES / 60)
    failed: set[str] = set()
    profile: CorpusProfile | None = None
    known_words = 0.0
    corpora = [quarter_of_corpus(quarter, language, folder / quarter) for quarter in QUARTERS]
    for quarter, (kept, rejected, _) in zip(QUARTERS, corpora, strict=True):
        checked = validate(
            kept,
            language=language,
            quarter=quarter,
            rejected=rejected,
            settings=settings,
            previous=profile,
            docs_dir=folder / quarter / "docs",
        )
        failed |= set(checked.failed)
        profile = checked.profile
        drift = {outcome.name: outcome.observed for outcome in checked.outcomes}["drift_vocabulary"]
        known_words = drift if isinstance(drift, float) else known_words
    kept, _, manifest = corpora[0]
    train, dev = read_split([manifest], "train", language), read_split([manifest], "dev", language)
    ticks: list[float] = []

    def tick() -> bool:
        ticks.append(time.process_time())
        return False

    fitted = fit(recipe, train, dev, language=language, checkpoints=folder / "checkpoints", should_stop=tick)
    cache = AudioCache(0)
    bundle = export(
        fitted.model,
        folder / "checkpoints" / "tokenizer" / "tokenizer.model",
        folder / "bundle",
        language,
        language,
        {},
        [cache.samples(row).astype("float32") / 32_768 for row in dev.utterances[:5]],
    )
    if bundle.parity["equal"] != 1:
        failed.add("export parity")
    fitting = [
        row
        for row in kept
        if columns(normalize(row.text, language)) <= CUE_COLUMNS and (row.duration_s or 0.0) <= CUE_SECONDS
    ]
    longest = sorted(fitting, key=lambda row: (-(row.duration_s or 0.0), row.id))[:CUED_UTTERANCES]
    cues, at_pauses = cues_of(bundle, longest)
    return Row(
        language=language,
        characters=len({character for text in train.texts for character in text if character != " "}),
        asked=recipe.tokenizer.vocabulary_size,
        pieces=len(bundle.vocabulary),
        step_s=statistics.median(after - before for before, after in itertools.pairwise(ticks)),
        bundle_mb=sum(path.stat().st_size for path in (folder / "bundle").iterdir()) / 1e6,
        known_words=known_words,
        failed=tuple(sorted(failed)),
        cues=cues,
        cues_at_pauses=at_pauses,
        dev_wer=fitted.dev_wer,
        seconds=time.monotonic() - began,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 where every language is within the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--languages", default=",".join(LANGUAGES), help="some of them, separated by commas; English always"
    )
    parser.add_argument("--home", type=Path, help="an empty folder to keep everything in (default: none is kept)")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    recipe = load_recipe(
        "tiny", {"max_steps": options.steps, "evaluate_every": options.steps, "dev_minutes": 0.5, "threads": 1}
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="languages-") as scratch:
        for language in dict.fromkeys((*LANGUAGES[:1], *options.languages.split(","))):
            row = measure(language, (options.home or Path(scratch)) / language, recipe)
            rows.append(row)
            print(f"{language}: {row.seconds:.0f} s", file=sys.stderr, flush=True)
    english = rows[0]
    print(
        f"\n{'':4} {'characters':>10} {'pieces':>6} {'asked':>5} {'s a step':>8} {'x en':>5} {'MB':>5} {'x en':>5}"
        f" {'known words':>11} {'cues at pauses':>14} {'checks':>7}"
    )
    for row in rows:
        print(
            f"{row.language:4} {row.characters:10d} {row.pieces:6d} {row.asked:5d}"
            f" {row.step_s:8.3f} {row.step_s / english.step_s:5.2f}"
            f" {row.bundle_mb:5.2f} {row.bundle_mb / english.bundle_mb:5.2f}"
            f" {row.known_words:11.1%} {row.cues_at_pauses:7d} of {row.cues:3d}"
            f" {'FAILED' if row.failed else 'passed':>7}"
        )
    missed = [f"{row.language}: checks failed: {', '.join(row.failed)}" for row in rows if row.failed]
    return end(
        [
            Bar("languages with more pieces than asked", sum(row.pieces > row.asked for row in rows), 0),
            Bar("slowest step, x English", max(row.step_s for row in rows) / english.step_s, MOST_TIMES_ENGLISH),
            Bar(
                "largest bundle, x English", max(row.bundle_mb for row in rows) / english.bundle_mb, MOST_TIMES_ENGLISH
            ),
            Bar("languages whose quarters fail a check", sum(bool(row.failed) for row in rows), 0),
            Bar("languages whose cues do not end at pauses", sum(not row.cued for row in rows), 0),
        ],
        missed,
    )


if __name__ == "__main__":
    sys.exit(main())
