"""The last part of the demo: an hour of uploads in many formats, and a table of where each recording went.

What is uploaded are recordings of test speakers, as they were delivered, a call of two of them on a channel each, the
same two on one channel, one that noise makes hard to hear, and what arrives by mistake: silence and half a file. Only
those of the first language say by their folder what is spoken in them.
"""

import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from rich.markup import escape
from rich.table import Table

from deployment.batch.hour import Hour
from evaluation.results import Scored
from evaluation.scoring import WORD_EDITS, WORDS, count_edits
from speech.audio.decode import SAMPLE_RATE, decode
from speech.corpus.manifest import Utterance
from speech.store.outputs import write_atomically
from speech.transcript import Transcript

FORMATS = (".mp3", ".opus", ".m4a", ".flac", ".wav")
CALL_RATE = 8_000
PAUSE_S = 1.0
NOISE = 0.4  # of the speech's own level


@dataclass(frozen=True)
class Spoken:
    """A test speaker's utterance, and the file that it was delivered in."""

    utterance: Utterance
    delivered: Path


def write_uploads(folder: Path, spoken: Mapping[str, Iterable[Spoken]]) -> dict[str, str]:
    """Put the uploads into the folder, by language; returns what is said in each, by name.

    One that is there already is left as it is, so that it is not another upload.
    """
    truth: dict[str, str] = {}
    files: dict[str, bytes] = {}
    for place, (language, found) in enumerate(spoken.items()):
        longest_first = sorted(found, key=lambda one: (-(one.utterance.duration_s or 0.0), one.utterance.id))
        for form in FORMATS[: None if place == 0 else 2]:
            one = next((one for one in longest_first if one.delivered.suffix == form), None)
            if one is not None:
                folder_of = f"{language}/" if place == 0 else ""
                name = f"{folder_of}{one.utterance.id.rsplit('-', 1)[-1]}{form}"
                files[name], truth[name] = one.delivered.read_bytes(), one.utterance.text
        if place == 0:
            agent = longest_first[0]
            customer = next((o for o in longest_first if o.utterance.speaker != agent.utterance.speaker), agent)
            call, street, room = (f"{language}/{name}.wav" for name in ("call", "street", "room"))
            sides = _call(agent, customer)
            files[call], files[room] = _wav(sides), _wav(sides.mean(axis=1))
            truth[call] = truth[room] = f"{agent.utterance.text} {customer.utterance.text}"
            files[street], truth[street] = _wav(_in_noise(agent)), agent.utterance.text
            files["broken.wav"] = files[call][: len(files[call]) // 2]
    files["silence.wav"] = _wav(np.zeros(5 * CALL_RATE, np.float32))
    for name, data in files.items():
        if not (folder / name).is_file():
            write_atomically(folder / name, data)
    return truth


def outcome(hour: Hour, truth: Mapping[str, str]) -> Table:
    """A row for each recording of the hour: what it was, how well it was heard, where it went."""
    table = Table(title=f"Recordings of {hour.key} (UTC)")
    for column in ("recording", "language", "speakers", "seconds", "WER", "confidence", "where it went"):
        table.add_column(column)
    heard = {transcript.source_digest: transcript for transcript in hour.transcripts()}
    asked = Counter(task.transcript for task in hour.tasks())
    for row in hour.recordings():
        said = heard[row.recording.digest]
        count = asked[str(said.id)]
        people = f"{count} segment{'s' if count > 1 else ''}"
        went = f"[yellow]to people: {people}[/yellow]" if count else "[green]published[/green]"
        language = f"{said.language} (none of its own)" if "language" in said.degraded else said.language
        speakers = len({word.speaker for word in said.words})
        wer = _wer(said, truth.get(row.name))
        seconds = f"{said.duration_s:.1f}"
        table.add_row(escape(row.name), language, str(speakers), seconds, wer, f"{said.confidence:.2f}", went)
    for letter in hour.dead_letters():
        table.add_row(escape(letter.name), *5 * "-", f"[red]dead letter: {letter.code}[/red]")
    return table


def _wer(said: Transcript, truth: str | None) -> str:
    if truth is None:
        return "-" if said.words else "silent"
    one = Scored("", truth, said.text, said.confidence, said.duration_s, "", "")
    edits = count_edits([one], said.language).table[0]
    return f"{edits[WORD_EDITS].sum() / max(1, edits[WORDS]):.0%}"


def _call(agent: Spoken, customer: Spoken) -> np.ndarray:
    """Two people in turn, each on a channel of their own, as a telephone exchange records it: [n, 2]."""
    sides = [_by_telephone(one) for one in (agent, customer)]
    pause = np.zeros(round(PAUSE_S * CALL_RATE), np.float32)
    first, second = (np.zeros_like(side) for side in sides)
    left = np.concatenate([sides[0], pause, second])
    right = np.concatenate([first, pause, sides[1]])
    sides_apart: np.ndarray = np.stack([left, right], axis=1)
    return sides_apart


def _in_noise(one: Spoken) -> np.ndarray:
    speech = _by_telephone(one)
    level = float(np.sqrt(np.mean(speech**2)))
    noise = np.random.default_rng(0).normal(0.0, NOISE * level, len(speech))
    return np.clip(speech + noise, -1.0, 1.0).astype(np.float32)


def _by_telephone(one: Spoken) -> np.ndarray:
    import soxr

    return soxr.resample(decode(one.delivered).samples, SAMPLE_RATE, CALL_RATE)


def _wav(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, CALL_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()
