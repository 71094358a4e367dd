"""From what a source holds to utterances fit to train and test on, each rejected row kept with its reason.

Two steps, both total: every row that goes in comes out kept or quarantined, so `rows in = kept + quarantined` can be
checked by whoever calls. A bad file or row never stops the others.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import chain, groupby, islice
from pathlib import Path

import numpy as np

from speech.audio.decode import SAMPLE_RATE, AudioError, decode_chunks, write_flac_chunks
from speech.corpus.manifest import Utterance, read_manifest, write_manifest
from speech.corpus.rows import is_uri
from speech.markers import DEFAULT_MARKERS, without_markers
from speech.quality import measure
from speech.store.outputs import Published, digest_file, write_atomically
from speech.text import normalize, unexpected_characters

AUDIO_FOLDER = "audio"
MANIFEST = "manifest.jsonl"
QUARANTINE = "quarantine.jsonl"
NO_SUCH_CHANNEL = "no-such-channel"
DUPLICATE = "duplicate"  # its audio is in another row, which is kept
CONTRADICTION = "contradiction"  # its audio is in another row that says something else of it
MARKERS = "markers"  # attribute of a selected row: what its transcript held that was not said
SOURCE_DIGEST = "source_digest"  # attribute of a normalised row: SHA-256 of the file it came from
REVIEWED = "reviewed"  # attribute of a row that people wrote on the review page: why they were asked
DELIVERED = "delivered"  # attribute of a row: its place among those that the source listed for the partition, from 0
MIN_DURATION_S = 0.2  # shorter audio holds no word; two frames of an 80 ms model
MAX_DURATION_S = 40.0  # longer utterances belong segmented: attention memory grows with the square
TOLERANCE = SAMPLE_RATE // 10  # samples by which a segment may end beside its file's end: annotation tools round


@dataclass(frozen=True)
class Quarantined:
    """A row that was kept out, and why."""

    id: str
    source: str
    code: str
    reason: str


@dataclass(frozen=True)
class Sorted:
    """What became of the rows of one step."""

    kept: tuple[Utterance, ...]
    quarantined: tuple[Quarantined, ...]

    def write(self, folder: Path) -> None:
        """Write the manifest and the quarantine into `folder`, with the same bytes for the same rows."""
        write_manifest(folder / MANIFEST, self.kept)
        lines = (json.dumps(asdict(row), ensure_ascii=False, sort_keys=True) + "\n" for row in self.quarantined)
        write_atomically(folder / QUARANTINE, "".join(lines))


def read_quarantine(folder: Path) -> list[Quarantined]:
    """The quarantine that `Sorted.write` left in `folder`."""
    return [Quarantined(**json.loads(line)) for line in (folder / QUARANTINE).read_text().splitlines()]


def rows_of(output: Published) -> Iterator[Utterance]:
    """The rows of an output's manifest; audio that lies beside it is named by its key in the data store."""
    for row in read_manifest(output.file(MANIFEST)):
        beside = not is_uri(row.audio) and not Path(row.audio).is_absolute()
        yield replace(row, audio=output.reference(row.audio)) if beside else row


def source_digests(rows: Iterable[Utterance], workers: int = 4) -> dict[str, str]:
    """The digest of each audio file that rows without a digest name; empty where a file cannot be read."""
    paths = sorted({row.audio for row in rows if not row.digest})

    def digest(path: str) -> str:
        try:
            return digest_file(Path(path))
        except (AudioError, OSError):  # normalisation meets the same file and says why
            return ""

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(paths, pool.map(digest, paths), strict=True))


def normalize_audio(rows: Iterable[Utterance], folder: Path, workers: int = 4) -> Sorted:
    """Decode every row's audio to 16 kHz mono PCM16 FLAC under `folder/audio`, with its quality measured.

    A file that holds several segments is decoded once for each channel that they name; a row that names a channel gets
    that one and no other. A row's digest becomes that of its normalised audio, so that
    the same audio is recognised in whatever container it comes; the attribute `source_digest` keeps the file's own.
    """
    (folder / AUDIO_FOLDER).mkdir(parents=True, exist_ok=True)
    ordered = sorted(rows, key=lambda row: (row.audio, row.offset_s, row.id))
    recordings = [list(group) for _, group in groupby(ordered, key=lambda row: row.audio)]
    with ThreadPoolExecutor(workers) as pool:
        outcomes = list(pool.map(lambda rows: _normalize_recording(rows, folder), recordings))
    kept = [row for outcome in outcomes for row in outcome.kept]
    quarantined = [row for outcome in outcomes for row in outcome.quarantined]
    return Sorted(tuple(sorted(kept, key=lambda r: r.id)), tuple(sorted(quarantined, key=lambda r: r.id)))


def _normalize_recording(rows: Sequence[Utterance], folder: Path) -> Sorted:
    """The rows of one file, channel by channel, the last first.

    Where one row names a channel that is not there, whoever wrote the rows counted otherwise, and what the others name
    is not what they mean: none of them is cut.
    """
    kept: list[Utterance] = []
    quarantined: list[Quarantined] = []
    channels = sorted(
        {row.channel for row in rows}, key=lambda channel: -1 if channel is None else channel, reverse=True
    )
    absent: Quarantined | None = None
    for channel in channels:
        named = [row for row in rows if row.channel == channel]
        if absent is not None and channel is not None:
            quarantined += [replace(absent, id=row.id) for row in named]
            continue
        outcome = _normalize_channel(named, folder)
        kept += outcome.kept
        quarantined += outcome.quarantined
        absent = next((row for row in outcome.quarantined if row.code == NO_SUCH_CHANNEL), absent)
    return Sorted(tuple(kept), tuple(quarantined))


def _normalize_channel(rows: Sequence[Utterance], folder: Path) -> Sorted:
    path = rows[0].audio
    try:
        if len(rows) == 1 and rows[0].offset_s == 0:
            return Sorted((_write_utterance(rows[0], _beginning(path, rows[0]), folder),), ())
        return _cut_segments(path, rows, folder)
    except AudioError as error:
        for row in rows:  # what is wrong with a file may show at its end only, when its first segments are written
            _place(row, folder).unlink(missing_ok=True)
        return Sorted((), tuple(Quarantined(row.id, path, error.code, error.reason) for row in rows))
    except _OutsideFile as outside:
        return Sorted((), (Quarantined(rows[0].id, path, "segment-outside", str(outside)),))


def _write_utterance(row: Utterance, chunks: Iterable[np.ndarray], folder: Path) -> Utterance:
    path = _place(row, folder)
    duration_s = write_flac_chunks(chunks, path)
    return replace(
        row,
        audio=path.relative_to(folder).as_posix(),
        offset_s=0.0,
        channel=None,
        duration_s=round(duration_s, 6),
        digest=digest_file(path),
        attributes={**row.attributes, SOURCE_DIGEST: row.digest},
        quality=measure(decode_chunks(path)),
    )


def _place(row: Utterance, folder: Path) -> Path:
    return folder / AUDIO_FOLDER / f"{_file_name(row.id)}.flac"


class _OutsideFile(Exception):
    """A segment whose times are not in its file; the message says so to who can correct them."""

    def __init__(self, row: Utterance, end: int, samples: int) -> None:
        super().__init__(
            f"the segment {row.offset_s:.2f}-{end / SAMPLE_RATE:.2f} s lies outside the file, "
            f"which holds {samples / SAMPLE_RATE:.2f} s: correct its times at the source"
        )


def _beginning(path: str, row: Utterance) -> Iterator[np.ndarray]:
    """The audio of a row that is the only one of its file and starts with it; never held whole.

    A file that goes on for no longer than the tolerance after the row's end belongs to the row: durations are rounded.
    """
    end, position = _segment_end(row), 0
    beyond: list[np.ndarray] = []
    for chunk in decode_chunks(path, channel=row.channel):
        inside = len(chunk) if end is None else max(0, min(len(chunk), end - position))
        position += len(chunk)
        if inside:
            yield chunk[:inside]
        if end is not None and position > end:
            beyond.append(chunk[inside:])
            if position - end > TOLERANCE:
                return
    if end is not None and end - position > TOLERANCE:
        raise _OutsideFile(row, end, position)
    yield from beyond


def _cut_segments(path: str, rows: Sequence[Utterance], folder: Path) -> Sorted:
    """Cut one file's segments in a single pass that holds only the segments still open."""
    pending = [(row, round(row.offset_s * SAMPLE_RATE), _segment_end(row)) for row in rows]
    held: dict[str, list[np.ndarray]] = {row.id: [] for row, _, _ in pending}
    kept: list[Utterance] = []
    quarantined: list[Quarantined] = []

    def close(row: Utterance) -> None:
        chunks = held.pop(row.id)
        if any(len(chunk) for chunk in chunks):
            kept.append(_write_utterance(row, chunks, folder))
        else:
            reason = f"the segment at {row.offset_s:.2f} s holds no sample: correct its times at the source"
            quarantined.append(Quarantined(row.id, path, "segment-empty", reason))

    position = 0
    for chunk in decode_chunks(path, channel=rows[0].channel):
        open_segments = []
        for row, start, end in pending:
            if start < position + len(chunk) and (end is None or end > position):
                stop = len(chunk) if end is None else end - position
                held[row.id].append(chunk[max(0, start - position) : stop])
            if end is not None and end <= position + len(chunk):
                close(row)
            else:
                open_segments.append((row, start, end))
        pending = open_segments
        position += len(chunk)
    for row, start, end in pending:
        if start < position and (end is None or end - position <= TOLERANCE):
            close(row)
        else:
            quarantined.append(
                Quarantined(row.id, path, "segment-outside", str(_OutsideFile(row, end or start, position)))
            )
    return Sorted(tuple(kept), tuple(quarantined))


def _segment_end(row: Utterance) -> int | None:
    return None if row.duration_s is None else round((row.offset_s + row.duration_s) * SAMPLE_RATE)


def _file_name(utterance_id: str) -> str:
    """A file name for any id: readable where the id is plain, and never leaving its folder."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in utterance_id)[:80]
    return plain if plain == utterance_id else f"{plain}-{hashlib.sha256(utterance_id.encode()).hexdigest()[:8]}"


def select_utterances(
    rows: Iterable[Utterance],
    language: str,
    *,
    min_duration_s: float = MIN_DURATION_S,
    max_duration_s: float = MAX_DURATION_S,
    markers: Sequence[str] = DEFAULT_MARKERS,
) -> Sorted:
    """The normalised rows that can be trained and tested on; the others quarantined with the reason.

    What matches `markers` (regular expressions) is taken out of the transcripts; the attribute `markers` keeps it.
    Refused are: audio too short or too long, no words in the transcript, characters that the language's scoring form
    does not know or no reading makes words of, and audio that another row of the partition holds already. Where rows of
    one audio say different things of it, in their words or of the speaker, none is kept: which is right is not known.
    """
    kept: list[Utterance] = []
    quarantined: list[Quarantined] = []
    usable: list[Utterance] = []
    for row in sorted((_without_markers(row, markers) for row in rows), key=lambda r: r.id):
        if problem := _problem(row, language, min_duration_s, max_duration_s):
            quarantined.append(Quarantined(row.id, row.audio, *problem))
        else:
            usable.append(row)
    repeated = _repeated(usable, language)
    for row in usable:
        if row.id in repeated:
            quarantined.append(Quarantined(row.id, row.audio, *repeated[row.id]))
        else:
            kept.append(row)
    return Sorted(tuple(kept), tuple(sorted(quarantined, key=lambda q: q.id)))


def _without_markers(row: Utterance, markers: Sequence[str]) -> Utterance:
    text, found = without_markers(row.text, markers)
    return replace(row, text=text, attributes={**row.attributes, MARKERS: " ".join(found)}) if found else row


def _problem(row: Utterance, language: str, min_s: float, max_s: float) -> tuple[str, str] | None:
    """The code and the reason why a row by itself is not fit to train and test on; None where it is."""
    duration_s = row.duration_s or 0.0
    if not min_s <= duration_s <= max_s:
        return "duration", f"{duration_s:.2f} s is outside {min_s:g}-{max_s:g} s: segment the recording"
    if not normalize(row.text, language):
        written = " ".join(filter(None, (row.attributes.get(MARKERS), row.text)))
        return "no-words", f"the transcript '{written[:60]}' holds no words: transcribe the recording or drop the row"
    strange = unexpected_characters(row.text, language)
    if strange:
        shown = " ".join(sorted(strange)[:8])
        return "charset", (
            f"the transcript has characters that '{language}' does not use or that cannot be read aloud ({shown}): "
            "correct it, or write numbers and signs in words"
        )
    return None


def _repeated(rows: Iterable[Utterance], language: str) -> dict[str, tuple[str, str]]:
    """The code and the reason, by its id, of each row that is not kept beside others of the same audio."""
    said: dict[str, dict[tuple[str, str], list[str]]] = {}  # by audio: the ids of those who say the same of it
    for row in rows:
        claims = said.setdefault(row.digest, {})
        claims.setdefault((normalize(row.text, language), row.speaker), []).append(row.id)
    found: dict[str, tuple[str, str]] = {}
    for claims in said.values():
        texts, speakers = zip(*claims, strict=True)
        differ = " or ".join(
            name for name, values in (("transcript", texts), ("speaker", speakers)) if len(set(values)) > 1
        )
        for claim, ids in claims.items():
            if differ:
                others = islice(chain.from_iterable(twins for other, twins in claims.items() if other != claim), 4)
                found.update(dict.fromkeys(ids, (CONTRADICTION, _contradiction(differ, list(others)))))
            elif ids[1:]:
                reason = f"the same audio is already in the partition as '{ids[0]}': drop one of the two rows"
                found.update(dict.fromkeys(ids[1:], (DUPLICATE, reason)))
    return found


def _contradiction(differ: str, others: Sequence[str]) -> str:
    named = ", ".join(f"'{other}'" for other in others[:3]) + (" and others" if others[3:] else "")
    return (
        f"the same audio is in the partition as {named} with another {differ}, and which is right is not known: drop "
        "the wrong rows at the source"
    )
