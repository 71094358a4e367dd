"""Who speaks when, in real mixes of two speakers: DER and cpWER of the diariser, of a baseline, and of a ready network.

    SOUNDSTAGE_REAL_DATA=/data python benchmarks/diarization.py [--speaker-model FOLDER] [--dvector FILE]

The mixes are 32 of LibriSpeechMix (`diarization`: sounds, RTTM, words). The network is trained first, with
`soundstage train-labels`, on speechocean762 (other people, other microphones, a foreign accent), and its threshold is
the one of its dev speakers; `--speaker-model` takes a finished bundle. Nothing is chosen on the mixes.

Beside it stand everybody taken for one speaker, which two people who rarely change places make look good, and the
d-vector that the package `resemblyzer` 0.1.4 brings (its weights alone, in torch's LSTM), which learnt from thousands
of people: what a user could take instead. It is fetched by its hash, and left out with a reason where it cannot be.

cpWER is of the reference's own words, spread evenly over their time: so it counts words given to another, and nothing
that a recogniser does.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import soundfile
from bars import Bar, end

from evaluation.diarization import Diarized, cpwer, diarization_errors, turns_of_rttm
from evaluation.labels import Clips, calibrated, clips_of_rows, windowed
from speech.attribution import attributed
from speech.audio.decode import SAMPLE_RATE, decode
from speech.corpus.importers import Defaults
from speech.corpus.importers.kaldi import import_kaldi
from speech.corpus.manifest import Utterance, assign_splits, write_manifest
from speech.diarization import DiarizationSettings, Embed, Turn, diarized
from speech.labels import LabelBundle, LabelNetwork
from speech.transcript import Segment, Transcript, Word
from speech.vad import SpeechDetector, Stretch, stretches

DER_BAR = 0.30
DVECTOR = "resemblyzer==0.1.4 --hash=sha256:8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f"
TWO = DiarizationSettings(speakers=2)
OVERLAP = DiarizationSettings(overlap_margin=0.05)


@dataclass(frozen=True)
class Mix:
    """A recording with what is really said in it."""

    samples: np.ndarray
    speech: Sequence[Stretch]  # as the detector finds it
    turns: Sequence[Turn]
    said: Transcript  # words in order of time, of nobody
    by_speaker: dict[str, str]

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / SAMPLE_RATE


def mixes(folder: Path) -> list[Mix]:
    """All mixes, with the speech that is found in them."""
    found, detector = [], SpeechDetector()
    for path in sorted((folder / "rttm").glob("*.rttm")):
        samples, rate = soundfile.read(folder / "flac" / f"{path.stem}.flac", dtype="float32")
        assert rate == SAMPLE_RATE
        speech = stretches(detector.probabilities([samples]), len(samples) / rate)
        words, by_speaker = [], defaultdict(list)
        for row in json.loads((folder / "seglst" / f"{path.stem}.seglst.json").read_text()):
            said = row["words"].split()
            times = np.linspace(row["start_time"], row["end_time"], len(said) + 1)
            words += [Word(w, float(a), float(b), 1.0) for w, a, b in zip(said, times, times[1:], strict=False)]
            by_speaker[row["speaker"]] += said
        words.sort(key=lambda word: word.start_s)
        whole = Segment(tuple(words), words[0].start_s, words[-1].end_s)
        said = Transcript(
            language="en", confidence=1.0, duration_s=len(samples) / rate, source_digest="0" * 64, segments=(whole,)
        )
        spoken = {speaker: " ".join(theirs) for speaker, theirs in by_speaker.items()}
        found.append(Mix(samples, speech, turns_of_rttm(path.read_text()), said, spoken))
    return found


def one_speaker(mix: Mix) -> list[Turn]:
    """All speech as one speaker's."""
    return [Turn(stretch.start_s, stretch.end_s, "speaker_0") for stretch in mix.speech]


def by(embed: Embed, threshold: float, settings: DiarizationSettings | None = None) -> Callable[[Mix], list[Turn]]:
    """The diariser with a network."""

    def turns_of(mix: Mix) -> list[Turn]:
        def samples_of(stretch: Stretch) -> np.ndarray:
            return mix.samples[round(stretch.start_s * SAMPLE_RATE) : round(stretch.end_s * SAMPLE_RATE)]

        said, _ = diarized(mix.speech, samples_of, embed, threshold, settings)
        return [Turn(start_s, end_s, f"speaker_{speaker}") for start_s, end_s, speaker in said]

    return turns_of


def measured(name: str, recordings: Sequence[Mix], system: Callable[[Mix], list[Turn]]) -> float:
    """Print a system's line; returns its DER at NIST's collar without overlap."""
    began = time.monotonic()
    found = [system(mix) for mix in recordings]
    took_s = time.monotonic() - began
    errors = diarization_errors(
        [Diarized(mix.duration_s, mix.turns, turns) for mix, turns in zip(recordings, found, strict=True)]
    )
    wrong = words = 0
    for mix, turns in zip(recordings, found, strict=True):
        theirs: dict[str, list[str]] = defaultdict(list)
        for word in attributed(mix.said, {None: turns}).words:
            theirs[str(word.speaker)].append(word.text)
        errors_of, words_of = cpwer(mix.by_speaker, {speaker: " ".join(said) for speaker, said in theirs.items()})
        wrong, words = wrong + errors_of, words + words_of
    counts = [len({turn.speaker for turn in turns}) for turns in found]
    rates = " ".join(f"{100 * error.rate:8.1f}" for error in errors)
    audio_s = sum(mix.duration_s for mix in recordings)
    print(
        f"{name:34} {rates} {100 * wrong / words:8.1f} {np.mean(counts):8.2f} "
        f"{np.mean([count == 2 for count in counts]):8.0%} {audio_s / max(took_s, 1e-3):8.0f}",
        flush=True,
    )
    return errors[0].rate


def corpus_rows(folder: Path) -> list[Utterance]:
    """The utterances of the corpus, divided by speaker into those to learn from, to choose by, and others."""
    defaults = Defaults(language="en", recorded_at=date(2024, 1, 1))
    read = [row for row in import_kaldi(folder, defaults) if isinstance(row, Utterance)]
    lengths = (soundfile.info(row.audio).duration for row in read)
    return assign_splits(replace(row, duration_s=length) for row, length in zip(read, lengths, strict=True))


def trained(rows: Sequence[Utterance], folder: Path) -> LabelBundle:
    """A network that learnt the voices of the train speakers, by the command that users have."""
    write_manifest(folder / "manifest.jsonl", rows)
    command = (sys.executable, "-m", "speech_assets.cli", "train-labels", "--kind", "speaker")
    places = ("--manifest", str(folder / "manifest.jsonl"), "--output", str(folder / "trained"))
    subprocess.run([*command, *places], check=True)
    return LabelBundle.load(folder / "trained" / "speaker" / "bundle")


class DVector:
    """The network of Wan et al. (2018), "Generalized End-to-End Loss", with the weights of resemblyzer."""

    MELS, WIDTH, WINDOW, HOP = 40, 256, 400, 160
    LOUDNESS = 10 ** (-30 / 20)  # root mean square that softer clips are brought to

    def __init__(self, weights: Path) -> None:
        import librosa
        import torch

        state = torch.load(weights, map_location="cpu", weights_only=True)["model_state"]
        self._lstm = torch.nn.LSTM(self.MELS, self.WIDTH, 3, batch_first=True)
        self._linear = torch.nn.Linear(self.WIDTH, self.WIDTH)
        for module, prefix in ((self._lstm, "lstm."), (self._linear, "linear.")):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        self._filters = librosa.filters.mel(sr=SAMPLE_RATE, n_fft=self.WINDOW, n_mels=self.MELS).astype(np.float32)
        self._taper = np.hanning(self.WINDOW + 1)[:-1].astype(np.float32)

    def embeddings(self, clips: Sequence[np.ndarray]) -> np.ndarray:
        """As `LabelNetwork.embeddings`."""
        import torch

        found = []
        with torch.inference_mode():
            for clip in clips:
                _, (hidden, _) = self._lstm(torch.from_numpy(self._frames(clip))[None])
                vector = torch.relu(self._linear(hidden[-1]))[0].numpy()
                found.append(vector / max(float(np.linalg.norm(vector)), 1e-9))
        return np.stack(found)

    def _frames(self, clip: np.ndarray) -> np.ndarray:
        loud = max(1.0, self.LOUDNESS / max(float(np.sqrt(np.mean(clip**2))), 1e-9))
        padded = np.pad(clip * loud, self.WINDOW // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, self.WINDOW)[:: self.HOP] * self._taper
        power: np.ndarray = (np.abs(np.fft.rfft(frames, axis=1)) ** 2).astype(np.float32) @ self._filters.T
        return power


def dvector(weights: Path | None, folder: Path) -> DVector | str:
    """The d-vector, from a file or from its package; or why not."""
    if weights is None:
        (folder / "requirements.txt").write_text(DVECTOR)
        fetch = ("pip", "download", "--quiet", "--no-deps", "--require-hashes", "-r", "requirements.txt")
        try:
            subprocess.run(fetch, cwd=folder, check=True, capture_output=True, text=True, timeout=120)
        except (OSError, subprocess.SubprocessError) as error:
            said = str(getattr(error, "stderr", "") or error).strip()
            return f"the package with the d-vector cannot be had: {said.splitlines()[-1]}"
        (wheel,) = folder.glob("[Rr]esemblyzer*.whl")
        with zipfile.ZipFile(wheel) as packed:
            weights = Path(packed.extract("resemblyzer/pretrained.pt", folder))
    return DVector(weights)


def threshold_of(network: DVector, dev: Clips) -> float:
    """Where the share of pairs of one speaker below is that of pairs of two above, which `calibrated` chooses, too."""
    vectors, speakers = network.embeddings(dev.sounds), np.array(dev.speakers)
    upper = np.triu_indices(len(speakers), 1)
    alike, same = (vectors @ vectors.T)[upper], (speakers[:, None] == speakers[None])[upper]
    every = np.unique(alike)
    below, of_two = (np.searchsorted(np.sort(alike[kind]), every) / kind.sum() for kind in (same, ~same))
    return float(every[np.abs(below - (1 - of_two)).argmin()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a bar falls short, 2 where there is no data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speaker-model", type=Path, help="bundle of a speaker model (default: train one)")
    parser.add_argument("--dvector", type=Path, help="resemblyzer's pretrained.pt (default: fetch the package)")
    options = parser.parse_args(arguments)
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if not root:
        print("SOUNDSTAGE_REAL_DATA is not set: there are no real mixes here")
        return 2
    with tempfile.TemporaryDirectory(prefix="diarization-") as name:
        folder = Path(name)
        rows = corpus_rows(Path(root, "speechocean762"))
        bundle = LabelBundle.load(options.speaker_model) if options.speaker_model else trained(rows, folder)
        dev = clips_of_rows(rows, "dev", lambda row: decode(row.audio).samples)
        bundle = calibrated(bundle, dev, folder / "calibrated")
        embed = LabelNetwork(bundle).embeddings
        ready = dvector(options.dvector, folder)
        recordings = mixes(Path(root, "diarization"))
        print(f"{len(recordings)} mixes, {sum(mix.duration_s for mix in recordings) / 60:.1f} min\n")
        print(f"{'':34} {'DER, %: NIST':>8} {'':>8} {'no collar':>10}")
        columns = ("alone", "+overlap", "alone", "+overlap", "cpWER, %", "speakers", "right", "RTFx")
        print(" " * 35 + " ".join(f"{column:>8}" for column in columns))
        nothing = measured("everybody as one speaker", recordings, one_speaker)
        rate = measured(f"{bundle.name} from {bundle.threshold:.2f}", recordings, by(embed, bundle.threshold))
        measured("  two speakers known", recordings, by(embed, bundle.threshold, TWO))
        measured("  two may speak at once", recordings, by(embed, bundle.threshold, OVERLAP))
        if isinstance(ready, str):
            print(f"left out: {ready}")
        else:
            least = threshold_of(ready, windowed(dev))
            measured(f"d-vector from {least:.2f}", recordings, by(ready.embeddings, least))
            measured("  two speakers known", recordings, by(ready.embeddings, least, TWO))
    return end(
        [
            Bar("DER at NIST's collar without overlap, %", 100 * rate, 100 * DER_BAR),
            Bar("the same less that of everybody as one speaker", 100 * (rate - nothing), 0.0),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
