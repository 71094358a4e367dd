"""Lhotse manifests: supervisions with their recordings, or cuts."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from speech.corpus.importers.intake import COLUMN_ALIASES, Imported, Intake, folded
from speech.corpus.lookup import Lookup
from speech.corpus.rows import (
    BadLine,
    ManifestError,
    PathLike,
    as_seconds,
    cell_text,
    numbered_objects,
    reason_of,
    required_field,
)
from speech.corpus.sources import Defaults
from speech.store.outputs import parse_json

_CUSTOM_COLUMNS = {  # by their names in a supervision's `custom`
    folded(alias): column
    for column in ("domain", "recorded_at", "age", "accent", "gender")
    for alias in COLUMN_ALIASES[column]
}


def files(path: PathLike) -> list[Path]:
    """The manifests that are read: supervisions and recordings, or cuts.

    Raises ManifestError where it is not one manifest of supervisions or cuts that is named.
    """
    named = Path(path)
    if named.is_dir():
        found: list[Path] = []
        for kind in ("supervisions", "cuts"):
            found = found or sorted(named.glob(f"*{kind}*.jsonl")) + sorted(named.glob(f"*{kind}*.jsonl.gz"))
        if len(found) != 1:
            raise ManifestError(named, None, f"holds {len(found)} supervision files; name the one to import")
        named = found[0]
    if not named.is_file():
        raise ManifestError(named, None, "is missing; give a Lhotse supervisions or cuts file")
    if "cuts" in named.name:
        return [named]
    name = named.name.removesuffix(".gz").replace("supervisions", "recordings")
    candidates = [named.with_name(name), named.with_name(name + ".gz")]
    recordings = next((c for c in candidates if c != named and c.is_file()), None)
    if recordings is None:
        raise ManifestError(named, None, f"has no recordings beside it; expected {name} or {name}.gz")
    return [named, recordings]


def import_lhotse(path: PathLike, defaults: Defaults) -> Iterator[Imported]:
    """Lhotse supervisions (JSON lines, plain or gzipped) with their recordings beside them, or Lhotse cuts.

    ``<prefix>supervisions<suffix>`` pairs with ``<prefix>recordings<suffix>``; given a folder, its only supervisions
    file is read, or its only file of cuts. A supervision's channel is cut out of its recording; one of several channels
    of a file, but not all, is refused. Refused are recordings that are produced by a command, kept in memory or changed
    on the fly, and cuts that are mixed.
    """
    manifest, *beside = files(path)
    intake = Intake(defaults, manifest.parent)
    recordings = Lookup()
    for recordings_path in beside:
        for number, row in numbered_objects(recordings_path):
            try:
                if isinstance(row, BadLine):
                    raise ValueError(row.reason)
                recordings.add(required_field(row, "id"), number, json.dumps(row))
            except (ValueError, TypeError) as error:
                yield intake.refused(recordings_path, number, reason_of(error))

    for number, row in numbered_objects(manifest):
        identity: str | None = None
        try:
            if isinstance(row, BadLine):
                raise ValueError(row.reason)
            identity = cell_text(row.get("id")) or None
            if beside:
                cells = _cells(row, _recording_of(row, recordings, beside[0].name), 0.0)
                yield intake.utterance(cells, number)
                continue
            supervisions = _supervisions(row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            yield intake.refused(manifest, number, reason_of(error), identity, _said(row))
            continue
        for supervision in supervisions:
            try:
                identity = cell_text(supervision.get("id")) or identity
                start = as_seconds(row.get("start"), "the start of the cut")
                yield intake.utterance(_cells(supervision, row["recording"], start), number)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                yield intake.refused(manifest, number, reason_of(error), identity, _said(supervision))


def _recording_of(supervision: Mapping[str, Any], recordings: Lookup, name: str) -> Mapping[str, Any]:
    identity = required_field(supervision, "recording_id")
    text = recordings.text(identity)
    if not text:
        raise ValueError(f"recording '{identity}' is not in {name}")
    return parse_json(text)


def _supervisions(cut: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The supervisions of a cut, whose times are relative to it."""
    kind = cut.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise ValueError(f"the cut is a {kind}, which is made on the fly; export its audio to files")
    if not isinstance(cut.get("recording"), dict):
        raise ValueError("the cut names no recording; give supervisions and recordings instead")
    found: list[Mapping[str, Any]] = cut.get("supervisions") or []
    if not found:
        raise ValueError("the cut has no supervision, and so no transcript")
    return found


def _cells(supervision: Mapping[str, Any], recording: Mapping[str, Any], starts_at: float) -> dict[str, Any]:
    """The cells of a supervision in a stretch of its recording that starts at `starts_at` seconds."""
    location, channel = _source(recording, supervision.get("channel", 0))
    start = supervision.get("start")
    cells: dict[str, Any] = {
        **_said(supervision),
        "id": supervision.get("id"),
        "audio": location,
        "text": supervision.get("text"),
        "speaker": supervision.get("speaker"),
        "offset": round(starts_at + float(start), 6) if starts_at and isinstance(start, (int, float)) else start,
        "duration": supervision.get("duration"),
        "channel": channel,
    }
    if supervision.get("gender"):
        cells["gender"] = supervision["gender"]
    return cells


def _said(row: Any) -> dict[str, Any]:
    """What a supervision says of itself, wherever its audio is; nothing where the row is none."""
    if not isinstance(row, dict):
        return {}
    custom = row.get("custom")
    own = {folded(str(key)): value for key, value in (custom if isinstance(custom, dict) else {}).items()}
    known = {_CUSTOM_COLUMNS[key]: value for key, value in own.items() if key in _CUSTOM_COLUMNS}
    return {**known, "language": row.get("language")}


def _source(recording: Mapping[str, Any], channel: Any) -> tuple[str, int | None]:
    """Where the audio of a recording's channel is, and which channel of that file it is; None for all of the file."""
    if recording.get("transforms"):
        raise ValueError("the recording is transformed on the fly; export its audio to files")
    wanted = set(channel) if isinstance(channel, list) else {channel}
    sources = recording.get("sources") or []
    held = [list(source.get("channels") or [0]) for source in sources]
    place = next((place for place, channels in enumerate(held) if wanted <= set(channels)), None)
    if place is None:
        raise ValueError(f"recording '{recording.get('id')}' has no source for channel {channel}")
    source, channels = sources[place], held[place]
    if 1 < len(wanted) < len(channels):
        raise ValueError(f"the transcript covers channels {channel} of a file with {len(channels)}; split it")
    if source.get("type") not in ("file", "url"):
        raise ValueError(f"the recording is of type '{source.get('type')}', which is never run; give a file")
    return cell_text(source.get("source")), channels.index(wanted.pop()) if len(wanted) == 1 else None
