"""How often the rule of channels errs (`speech/audio/channels.py`), on made-up calls with crosstalk and on scenes.

    python benchmarks/channels.py [--each 20]

Speech comes from real people where `SOUNDSTAGE_REAL_DATA` names them (speechocean762), else from the embedded corpus's
voices. For each condition: how often the channels were told apart, and for calls what became of their speech, in
windows in which Silero hears somebody: how much of what only leaked was left in, and how much of a person's own speech
was taken for an echo.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from bars import Bar, end

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # the calls of the tests

VOICES = 24
CALLS: dict[str, dict[str, object]] = {
    "call, no leak": {},
    "call, leak -30 dB after 20 ms": {"leak_db": -30.0},
    "call, leak -20 dB after 20 ms": {"leak_db": -20.0},
    "call, leak -12 dB after 5 ms": {"leak_db": -12.0, "delay_s": 0.005},
    "call, echo -20 dB after 250 ms": {"leak_db": -20.0, "delay_s": 0.25},
    "call, echo -12 dB after 250 ms": {"leak_db": -12.0, "delay_s": 0.25},
    "call, one side 18 dB softer": {"gains_db": (0.0, -18.0), "leak_db": -30.0},
    "call, noise at 15 dB": {"noise_db": -35.0, "leak_db": -20.0},
}
SCENES: dict[str, dict[str, object]] = {
    "scene, the same twice": {"pan_db": 0.0},
    "scene, panned 3 dB": {"pan_db": 3.0},
    "scene, panned 6 dB": {"pan_db": 6.0},
    "scene, microphones 0.5 m apart": {"pan_db": 1.0, "spaced_s": 0.0015},
    "scene, microphones 2 m apart": {"pan_db": 5.0, "spaced_s": 0.006},
    "scene, noise at 5 dB": {"pan_db": 3.0, "noise_db": -25.0},
}
DEAD = ("dead, zeros", "dead, hum and hiss", "dead, only an echo")


def voices() -> list[list[np.ndarray]]:
    """Some utterances of each of `VOICES` people, 16 kHz."""
    root = os.environ.get("SOUNDSTAGE_REAL_DATA")
    if root:
        folder = Path(root, "speechocean762")
        by_speaker: dict[str, list[str]] = {}
        for line in (folder / "utt2spk").read_text().splitlines():
            utterance, speaker = line.split()
            by_speaker.setdefault(speaker, []).append(utterance)
        chosen = [by_speaker[speaker] for speaker in sorted(by_speaker)[:VOICES]]
        return [
            [soundfile.read(folder / "audio" / f"{name}.flac", dtype="float32")[0] for name in some] for some in chosen
        ]
    from speech.corpus.synthetic import Voicebox, sentences, speaker_of

    box, drawn = Voicebox(), sentences("en")
    said = [
        [box.say(next(drawn).spoken, speaker_of(f"voice {number}", "en"), 16_000) for _ in range(6)]
        for number in range(VOICES)
    ]
    box.close()
    return said


def of_calls(make: Callable[[np.random.Generator], "object"], each: int) -> tuple[float, float, float]:
    """Share told apart, leaked windows of speech left in, and own ones taken out."""
    from speech.audio.channels import WINDOW, channels_apart
    from speech.vad import SpeechDetector
    from tests.calls import RATE, Call

    detector = SpeechDetector()
    right, left_in, leaked, taken_out, own = 0, 0, 0, 0, 0
    for seed in range(each):
        made = make(np.random.default_rng(seed))
        assert isinstance(made, Call)
        with tempfile.TemporaryDirectory() as folder:
            paths = written(made.samples, Path(folder))
            apart = channels_apart(paths)
            right += len(apart) == 2
            if len(apart) != 2:
                continue
            for channel, found in enumerate(apart):
                speech = detector.probabilities([made.samples[:, channel]]) >= 0.5
                count = len(speech)
                echo = np.zeros(count, bool)
                for span in found.echoes:
                    echo[round(span.start_s * RATE / WINDOW) : round(span.end_s * RATE / WINDOW)] = True
                padded = np.zeros((count * WINDOW, 2), bool)
                padded[: len(made.speaking)] = made.speaking
                speaks = padded.reshape(count, WINDOW, 2).any(axis=1)
                near = np.convolve(speaks[:, channel], np.ones(7), "same") > 0  # a fifth of a second around it
                alone = speech & speaks[:, 1 - channel] & ~near
                leaked, left_in = leaked + int(alone.sum()), left_in + int((alone & ~echo).sum())
                mine = speech & speaks[:, channel]
                own, taken_out = own + int(mine.sum()), taken_out + int((mine & echo).sum())
    return right / each, left_in / max(1, leaked), taken_out / max(1, own)


def written(samples: np.ndarray, folder: Path) -> list[Path]:
    """Each channel as a file."""
    from speech.audio.decode import write_flac_chunks

    paths = [folder / f"{channel}.flac" for channel in range(samples.shape[1])]
    for channel, path in enumerate(paths):
        write_flac_chunks([samples[:, channel]], path)
    return paths


def share_with(count: int, make: Callable[[np.random.Generator], np.ndarray], each: int) -> float:
    """How often so many channels are heard alone."""
    from speech.audio.channels import channels_apart

    right = 0
    for seed in range(each):
        with tempfile.TemporaryDirectory() as folder:
            right += len(channels_apart(written(make(np.random.default_rng(seed)), Path(folder)))) == count
    return right / each


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a bar falls short."""
    from speech.corpus.synthetic import noise
    from tests.calls import call, scene

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=20, help="recordings of each condition")
    each = parser.parse_args(arguments).each
    people = voices()

    def two(draw: np.random.Generator) -> list[list[np.ndarray]]:
        first, second = draw.choice(len(people), 2, replace=False)
        return [people[first], people[second]]

    def of_people(maker: Callable[..., object], draw: np.random.Generator, **how: object) -> object:
        return maker(two(draw), draw, **how)

    def dead(kind: str, draw: np.random.Generator) -> np.ndarray:
        samples = call(two(draw), draw).samples
        samples[:, 0] += samples[:, 1]
        samples[:, 1] = 0.0
        if "hum" in kind:
            samples[:, 1] = 0.05 * noise(len(samples), 16_000, draw)
        if "echo" in kind:
            samples[400:, 1] = 0.05 * samples[:-400, 0] + 1e-4 * draw.standard_normal(len(samples) - 400)
        return samples

    print(f"{'condition':34} {'right':>6} {'leak left in':>13} {'own taken out':>14}")
    apart, kept, lost = [], [], []
    for name, how in CALLS.items():
        right, left_in, taken_out = of_calls(partial(of_people, call, **how), each)
        apart, kept, lost = [*apart, right], [*kept, left_in], [*lost, taken_out]
        print(f"{name:34} {right:6.0%} {left_in:13.1%} {taken_out:14.1%}", flush=True)
    one = []
    for name, how in SCENES.items():
        one.append(share_with(0, partial(of_people, scene, **how), each))  # type: ignore[arg-type]
        print(f"{name:34} {one[-1]:6.0%}", flush=True)
    alone = []
    for name in DEAD:
        alone.append(share_with(1, partial(dead, name), each))
        print(f"{name:34} {alone[-1]:6.0%}", flush=True)
    return end(
        [
            Bar("calls told apart, the least, %", 100 * min(apart), 95, at_least=True),
            Bar("scenes mixed, the least, %", 100 * min(one), 95, at_least=True),
            Bar("dead channels left out, the least, %", 100 * min(alone), 95, at_least=True),
            Bar("leaked speech left in, the most, %", 100 * max(kept), 20),
            Bar("own speech taken out, the most, %", 100 * max(lost), 2),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
