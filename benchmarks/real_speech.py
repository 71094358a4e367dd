"""Real speech through the real assets, from recordings to a registered model or a refusal.

    SOUNDSTAGE_REAL_DATA=/data python benchmarks/real_speech.py [--corpus fsdd | speechocean762] [--home FOLDER]

`fsdd`: digit strings from the Free Spoken Digit Dataset (https://github.com/Jakobovski/free-spoken-digit-dataset, in
`fsdd/recordings`). Its takes of single digits (6 speakers, 8 kHz) are joined into strings of one speaker, keeping the
official split: takes 0-4 are for testing, 5-49 for training. The model is expected to pass its gates.

`speechocean762`: read sentences of non-native speakers aged 6 to 43 (https://www.openslr.org/101), a Kaldi directory.
An hour and a quarter of it teaches a small model next to nothing: the gates are expected to refuse.
"""

import argparse
import csv
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from bars import Bar, end

from speech_assets.chain import CORPUS, JUDGEMENT, LANGUAGE_BASE, MODELS
from speech_assets.partition_keys import partition_of

RATE_HZ = 8_000
DIGITS = "zero one two three four five six seven eight nine".split()
TAKES = {"test": range(5), "dev": range(5, 8), "train": range(8, 50)}
STRINGS_A_SPEAKER = {"test": 60, "dev": 40, "train": 1_000}
LENGTHS = (2, 6)  # digits in a string
GAP_S = (0.05, 0.25)  # silence between digits
LEVEL_DBFS = -60.0  # noise in the gaps: digital silence would give the joints away
QUARTER, LANGUAGE = "2024-01", "en"
PARTITION = partition_of(QUARTER, LANGUAGE)


def write_strings(recordings: Path, folder: Path, seed: int = 0) -> None:
    """Join takes of one speaker into strings and write them as a table of transcripts."""
    takes: dict[tuple[str, str], dict[int, list[np.ndarray]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(recordings.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        split = next(name for name, numbers in TAKES.items() if int(take) in numbers)
        takes[split, speaker][int(digit)].append(soundfile.read(path, dtype="float32")[0])
    chance = random.Random(seed)
    noise = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    with (folder / "transcripts.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(("path", "text", "speaker", "split", "domain"))
        for (split, speaker), by_digit in sorted(takes.items()):
            for number in range(STRINGS_A_SPEAKER[split]):
                digits = chance.choices(range(10), k=chance.randint(*LENGTHS))
                parts: list[np.ndarray] = []
                for digit in digits:
                    gap = round(chance.uniform(*GAP_S) * RATE_HZ)
                    parts += [np.zeros(gap, dtype=np.float32), chance.choice(by_digit[digit])]
                samples = np.concatenate([*parts, np.zeros(round(GAP_S[1] * RATE_HZ), dtype=np.float32)])
                samples += noise.normal(0, 10 ** (LEVEL_DBFS / 20), len(samples)).astype(np.float32)
                name = f"{split}-{speaker}-{number:04d}.wav"
                soundfile.write(folder / name, samples, RATE_HZ, subtype="PCM_16")
                table.writerow((name, " ".join(DIGITS[d] for d in digits), speaker, split, "digits"))


def write_settings(home: Path, kind: str, source: Path, split: str) -> None:
    """Settings of a deployment with one source."""
    path = home / "soundstage.toml"
    path.write_text(
        f"""
home = "store"
languages = ["{LANGUAGE}"]
first_quarter = "{QUARTER}"

[[sources]]
kind = "{kind}"
path = "{source}"
language = "{LANGUAGE}"
recorded_at = {QUARTER}-15

[corpus]
split = "{split}"  # given: the data set's own split, by take, so that the same speakers train and test

[training]
window = 1
"""
    )
    os.environ["SOUNDSTAGE_CONFIG"] = str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; exit code 0 when the word error rate is within the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=("fsdd", "speechocean762"), default="fsdd")
    parser.add_argument("--home", type=Path, help="where everything is kept (default: a temporary folder)")
    parser.add_argument("--wer", type=float, default=0.05, help="highest word error rate that passes (share)")
    options = parser.parse_args(arguments)
    data = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not data:
        parser.error("set SOUNDSTAGE_REAL_DATA to the folder that holds fsdd/recordings")
    home = options.home or Path(tempfile.mkdtemp(prefix="real-speech-"))
    home.mkdir(parents=True, exist_ok=True)
    if options.corpus == "fsdd":
        source = home / "source"
        if not source.exists():
            write_strings(Path(data) / "fsdd" / "recordings", source)
        write_settings(home, "table", source, "given")
        return materialize(home, options.wer)
    write_settings(home, "kaldi", Path(data).absolute() / "speechocean762", "speaker")
    return materialize(home, None)


def materialize(home: Path, bar: float | None) -> int:
    """Materialise the assets one after the other and print what came out; without a bar, a refusal is the success."""
    import dagster as dg

    from deployment.settings import Settings
    from evaluation.results import Evaluation
    from speech.store.outputs import DataStore
    from speech_assets.definitions import build

    definitions = build(Settings.load())
    took: dict[str, float] = {}
    (home / "dagster").mkdir(exist_ok=True)
    with dg.DagsterInstance.local_temp(str(home / "dagster")) as instance:
        accepted = False
        for asset in (*CORPUS, *LANGUAGE_BASE, *MODELS, *JUDGEMENT):
            key = LANGUAGE if asset in LANGUAGE_BASE else PARTITION
            started = time.monotonic()
            result = definitions.resolve_implicit_global_asset_job_def().execute_in_process(
                asset_selection=[dg.AssetKey(asset)],
                partition_key=key,
                instance=instance,
                raise_on_error=False,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            took[asset] = time.monotonic() - started
            print(f"{asset:18} {'ok' if result.success else 'REFUSED':8} {took[asset]:7.1f} s", flush=True)
            accepted = result.success
            if not result.success:
                failed = [e.step_failure_data for e in result.all_events if e.is_step_failure]
                for why in failed:
                    described = why.user_failure_data.description if why.user_failure_data else why.error_display_string
                    print(f"  {str(described)[:400]}")
                if asset not in ("verdict", "registered_model"):
                    return 1
    published = DataStore(home / "store").current("evaluation", QUARTER, LANGUAGE)
    evaluation = Evaluation.load(published.path)
    result_set = evaluation.sets["benchmark"]
    score = result_set.score
    training_s = took["base_model"] + took["finetuned_model"]
    print()
    print(f"{'':14} {'WER':>7} {'95 % interval':>18} {'CER':>7} {'words':>6}")
    for name, part in {"all": score, **result_set.slices}.items():
        interval = f"{part.wer_interval.low:.2%} - {part.wer_interval.high:.2%}"
        print(f"{name:14.30} {part.wer:7.2%} {interval:>18} {part.cer:7.2%} {part.words:6d}")
    from evaluation.scoring import score as score_of

    for speaker in sorted({row.speaker for row in result_set.rows}):
        part = score_of([row for row in result_set.rows if row.speaker == speaker], LANGUAGE)
        print(f"{speaker:14} {part.wer:7.2%} {'':18} {part.cer:7.2%} {part.words:6d}")
    print(f"\ntraining {training_s / 60:.1f} min; bundle and checkpoint agree on {evaluation.parity['equal']:.2%}")
    if bar is None:
        return end([Bar("models registered that nobody should use", int(accepted), 0)])
    return end([Bar("WER on the benchmark set, %", 100 * score.wer, 100 * bar)])


if __name__ == "__main__":
    sys.exit(main())
