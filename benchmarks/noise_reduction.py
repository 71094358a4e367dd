"""What noise reduction and loudness do to a champion's WER: test utterances in real noise, with and without.

    python benchmarks/noise_reduction.py [--utterances 150] [--language en] [--home FOLDER]

The utterances are the frozen benchmark set of the language, and the model is its champion, both as `make demo` left
them in its data store (copied, so that it stays as it is); the noises are those of `SOUNDSTAGE_REAL_DATA/noise`. Each
row is a signal-to-noise ratio or a level; each column what `[inference]` may ask for, as WER and as difference to the
sound as it came, with a 95 % interval over speakers. A setting helps where the whole interval is below zero, and harms
where it is above. Below stands how much of noise alone is then taken for speech.
"""

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from bars import Bar, end

ROOT = Path(__file__).parents[1]
KEPT = ("bundles", "ledger", "verdicts", "mlflow", "launchers", "benchmark_set")  # of the demo's data store
SNRS_DB = (None, 20.0, 10.0, 5.0, 0.0)  # None: as it is
LEVEL = 0.05  # RMS that utterances are brought to before noise is added: -26 dBFS
LEVELS_DB = (15.0, -10.0, -25.0)  # of the last rows, without noise: close microphones and far ones
LOUDNESS_LUFS = -23.0
SETTINGS = """
home = "store"
languages = ["{language}"]
first_quarter = "2024-01"
[registry]
tracking_uri = "sqlite:///{folder}/store/mlflow/mlflow.db"
"""

Treatment = Callable[[np.ndarray], np.ndarray]


def with_noise_reduced(samples: np.ndarray) -> np.ndarray:
    """As `noise_reduction` of `[inference]` does."""
    from speech.noise_reduction import reduced

    return np.concatenate(list(reduced([samples])))


def at_one_loudness(samples: np.ndarray) -> np.ndarray:
    """As `loudness` of `[inference]` does."""
    from speech.quality import at_loudness, measure

    return np.concatenate(list(at_loudness([samples], measure(samples), LOUDNESS_LUFS)))


TREATMENTS: dict[str, Treatment] = {
    "as it came": lambda samples: samples,
    "spectral-gating": with_noise_reduced,
    f"{LOUDNESS_LUFS} LUFS": at_one_loudness,
}


def noises() -> list[np.ndarray]:
    """Real noises, 16 kHz."""
    from speech.audio.decode import decode

    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        return []
    return [decode(path).samples for path in sorted(Path(root, "noise").iterdir()) if not path.name.startswith("RIR")]


def spoken(workspace: Any, language: str, count: int) -> list[tuple[Any, np.ndarray]]:
    """Utterances of the benchmark set, evenly drawn, with their samples."""
    from speech.corpus.manifest import read_manifest

    output = workspace.store.current("benchmark_set", language)
    every = list(read_manifest(output.file("manifest.jsonl")))
    chosen = every[:: max(1, len(every) // count)][:count]
    return [(one, soundfile.read(output.file(one.audio), dtype="float32")[0]) for one in chosen]


def noisy(said: np.ndarray, snr_db: float, noise: Sequence[np.ndarray], draw: np.random.Generator) -> np.ndarray:
    """An utterance in one of the noises; the ratio is that of mean powers."""
    chosen = noise[draw.integers(len(noise))]
    start = draw.integers(max(1, len(chosen) - len(said)))
    part = np.resize(chosen[start:], len(said))
    part = part / max(1e-9, float(np.sqrt(np.mean(part**2))))
    mixed: np.ndarray = said + part * np.sqrt(np.mean(said**2)) * 10 ** (-snr_db / 20)
    return np.clip(mixed, -1, 1).astype(np.float32)


def at_level(samples: np.ndarray, by_db: float) -> np.ndarray:
    """Louder or softer, as a 16 bit file holds it."""
    return (np.rint(np.clip(samples * 10 ** (by_db / 20), -1, 1) * 32_767) / 32_767).astype(np.float32)


def speech_in_noise(noise: Sequence[np.ndarray], by_db: float, treat: Treatment) -> float:
    """Share of noise without speech, at 26 dB under full scale and so much louder, in which speech is found."""
    from speech.vad import SpeechDetector, stretches

    found_s = all_s = 0.0
    for samples in noise:
        level = LEVEL / max(1e-9, float(np.sqrt(np.mean(samples**2))))
        heard = treat(at_level(samples * level, by_db))
        duration_s = len(heard) / 16_000
        found_s += sum(
            one.end_s - one.start_s for one in stretches(SpeechDetector().probabilities([heard]), duration_s)
        )
        all_s += duration_s
    return found_s / all_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a bar falls short, 2 where something to measure with is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--utterances", type=int, default=150)
    parser.add_argument("--language", default="en")
    parser.add_argument("--home", type=Path, default=ROOT / ".soundstage", help="data store with a champion")
    options = parser.parse_args(arguments)
    language = options.language
    if not (options.home / "ledger" / language).is_dir():
        print(f"there is no champion for '{language}' in {options.home}: run `make demo` first, or name another --home")
        return 2
    noise = noises()
    if not noise:
        print("SOUNDSTAGE_REAL_DATA is not set: it names the folder whose `noise` holds real noises")
        return 2
    from evaluation.results import Scored
    from evaluation.scoring import count_edits, paired_difference, score_of

    with tempfile.TemporaryDirectory(prefix="noise-") as name:
        folder = Path(name)
        (folder / "store").mkdir()
        for kept in KEPT:
            if (options.home / kept).exists():
                shutil.copytree(options.home / kept, folder / "store" / kept)
        (folder / "soundstage.toml").write_text(SETTINGS.format(language=language, folder=folder))
        os.environ["SOUNDSTAGE_CONFIG"] = str(folder / "soundstage.toml")
        from deployment.settings import Settings
        from speech.recognition.offline import Recognizer
        from speech_assets.defs.inference.recognition import champion
        from speech_assets.defs.resources import Workspace

        workspace = Workspace(Settings.load())
        bundle = champion(workspace, language)
        assert bundle is not None
        recognizer, said = Recognizer(bundle), spoken(workspace, language, options.utterances)
    said = [(one, samples * (LEVEL / max(1e-6, float(np.sqrt(np.mean(samples**2)))))) for one, samples in said]

    def heard(recordings: Sequence[np.ndarray]) -> list[Scored]:
        return [
            Scored(
                one.id, one.text, result.text, result.confidence, len(samples) / 16_000, one.speaker, one.domain or ""
            )
            for (one, samples), result in zip(said, recognizer.transcribe_batch(recordings), strict=True)
        ]

    print(f"{len(said)} utterances of the benchmark set of '{language}', heard by {bundle.name}; WER, %\n")
    print(f"{'':14}" + "".join(f"{name:>34}" for name in TREATMENTS))
    helps, harms = set(), set()
    rows: list[tuple[str, list[np.ndarray]]] = []
    for snr_db in SNRS_DB:
        draw = np.random.default_rng(0)
        mixed = [samples if snr_db is None else noisy(samples, snr_db, noise, draw) for _, samples in said]
        rows.append(("as it is" if snr_db is None else f"{snr_db:g} dB", mixed))
    rows += [(f"level {db:+g} dB", [at_level(samples, db) for _, samples in said]) for db in LEVELS_DB]
    for label, mixed in rows:
        line, before = f"{label:14}", None
        for treatment, treat in TREATMENTS.items():
            items = heard([treat(samples) for samples in mixed])
            counts = count_edits(items, language)
            wer = 100 * score_of(counts, 1, 0).wer
            if before is None:
                before = counts
                line += f"{wer:34.1f}"
                continue
            change = paired_difference(counts, before)
            low, high = 100 * change.low, 100 * change.high
            helps |= {treatment} if high < 0 else set()
            harms |= {treatment} if low > 0 else set()
            line += f"{wer:14.1f} {100 * change.estimate:+6.1f} [{low:+.1f}, {high:+.1f}]".rjust(34)
        print(line, flush=True)
    print(f"\n{'noise alone, share in which speech is found, %'}")
    for by_db in (0.0, -35.0):
        shares = [100 * speech_in_noise(noise, by_db, treat) for treat in TREATMENTS.values()]
        print(f"{f'level {by_db:+g} dB':14}" + "".join(f"{share:34.1f}" for share in shares), flush=True)
    print()
    settings = list(TREATMENTS)[1:]
    for treatment in settings:
        said_of_it = [word for word, some in (("helps", helps), ("harms", harms)) if treatment in some]
        print(f"{treatment}: {' and '.join(said_of_it) or 'changes nothing that this many words could show'}")
    off = [treatment for treatment in settings if not _is_on(treatment)]
    return end(
        [
            Bar("settings that are on and harm somewhere", len(harms.difference(off)), 0),
            Bar("settings that are off, help somewhere and harm nowhere", len((helps - harms).intersection(off)), 0),
        ]
    )


def _is_on(treatment: str) -> bool:
    """Whether `[inference]` does it unless told otherwise."""
    from deployment.batch.settings import InferenceSettings

    usual = InferenceSettings()
    return treatment in (usual.noise_reduction, f"{usual.loudness} LUFS")


if __name__ == "__main__":
    sys.exit(main())
