"""What the importers share: the names that columns go by, and how the cells of a row become an utterance."""

import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote, urlparse

from speech.corpus.lookup import Lookup
from speech.corpus.manifest import RejectedRow, Utterance, age_band, quarter_of
from speech.corpus.rows import (
    PathLike,
    as_channel,
    as_seconds,
    as_split,
    cell_text,
    is_uri,
    parse_date,
)
from speech.corpus.sources import Defaults
from speech.scripts import primary_language

COLUMN_ALIASES: Mapping[str, tuple[str, ...]] = {
    "audio": ("path", "file", "audio", "file_name", "filename", "audio_path", "audio_filepath", "audio_file", "wav"),
    "text": ("text", "transcript", "sentence", "transcription"),
    "id": ("id", "utt_id", "utterance_id", "utterance"),
    "speaker": ("speaker", "client_id", "speaker_id", "spk_id"),
    "language": ("language", "locale", "lang"),
    "domain": ("domain", "sentence_domain"),
    "recorded_at": ("recorded_at", "date", "recorded_on", "recording_date"),
    "gender": ("gender", "sex"),
    "age": ("age",),
    "age_band": ("age_band",),
    "accent": ("accent", "accents"),
    "offset": ("offset", "start", "begin", "tmin"),  # the last as in tables of Praat
    "offset_ms": ("offset_ms", "start_ms", "begin_ms"),
    "end": ("end", "stop", "tmax"),
    "end_ms": ("end_ms", "stop_ms"),
    "duration": ("duration",),
    "duration_ms": ("duration_ms",),
    "channel": ("channel", "channel_id", "audio_channel"),
    "split": ("split",),
}
MAX_ID_BYTES = 180  # leaves room for a suffix within the 255 bytes of a file name
_SEPARATORS = re.compile(r"(?<!^)[\s_.,:/()\[\]-]+")  # one at the beginning means another column: _id
_TIME = re.compile(  # a name without its separators
    r"(?:(?:segment|seg|utterance|utt|turn)|audio(?!duration))?"
    r"(?P<what>start|begin|offset|end|stop|duration)(?:times?)??"
    r"(?:in)??(?:(?P<seconds>s|secs?|seconds?)|(?P<milliseconds>ms|msecs?|millis|milliseconds?)|(?P<unread>"
    r"samples?|frames?|ticks?|[uµμ]s|[uµμ]secs?|micros|microseconds?|ns|nsecs?|nanos|nanoseconds?|mins?|minutes?|"
    r"h|hrs?|hours?|hms|timecode|timestamp|ts|offset))?"
)
_SAFE = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_ID_BYTES - 2}}}(?<![.-])")
_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
_LANGUAGE_NAMES = {  # some corpora name the language in English instead of by its tag
    "english": "en", "german": "de", "french": "fr", "spanish": "es", "italian": "it", "portuguese": "pt",
    "dutch": "nl", "polish": "pl", "russian": "ru", "japanese": "ja", "korean": "ko", "mandarin": "zh",
    "chinese": "zh", "arabic": "ar", "hindi": "hi", "turkish": "tr", "ukrainian": "uk", "swedish": "sv",
}  # fmt: skip
_GENDERS = {
    "m": "male", "man": "male", "male_masculine": "male", "f": "female", "woman": "female", "female_feminine": "female",
}  # fmt: skip
_DECADES = {  # Common Voice gives decades, of which two straddle our bands and keep their own
    "teens": "13-19", "twenties": "18-29", "thirties": "30-44", "fourties": "40-49", "forties": "40-49",
    "fifties": "45-59", "sixties": "60+", "seventies": "60+", "eighties": "60+", "nineties": "60+",
}  # fmt: skip
ROUNDING_S = 0.05  # by which a duration and the distance from start to end may differ


Imported = Utterance | RejectedRow
Importer = Callable[[PathLike, Defaults], Iterator[Imported]]


@functools.lru_cache(4096)
def folded(name: str) -> str:
    """A name as all its spellings have it: `Speaker ID`, `speaker-id` and `speakerId` are `speakerid`."""
    return _SEPARATORS.sub("", name.strip().lower())


_COLUMNS = {folded(alias): column for column, aliases in COLUMN_ALIASES.items() for alias in aliases}


@functools.lru_cache(4096)
def column_of(name: str) -> str:
    """The column that a header's name stands for, however it is spelt; empty where it stands for none.

    A time is a start, an end or a duration with nothing after it but a unit: `Start Time (sec)`, `segment_end_ms`; what
    goes on otherwise (`start_date`, `end_reason`) is none. Raises ValueError for a time in a unit that is not read:
    passed over, whole files would be learnt as one utterance.
    """
    plain = folded(name)
    if plain in _COLUMNS:
        return _COLUMNS[plain]
    time = _TIME.fullmatch(plain)
    if time is None:
        return ""
    what = time["what"]
    if time["unread"]:
        raise ValueError(
            f"'{name}' is a time in a unit that is not read: give seconds as {what} or milliseconds as {what}_ms"
        )
    return _COLUMNS[what] + ("_ms" if time["milliseconds"] else "")


class Intake:
    """Turns the cells of one row into an utterance, and knows which ids an import has already given out.

    Whether the audio is there is not looked at: it may come and go while the manifest stays as it is.
    """

    def __init__(self, defaults: Defaults, base: Path) -> None:
        self.defaults = defaults
        self.base = os.path.abspath(defaults.audio_root or base)
        self._known = Lookup()

    def utterance(self, cells: Mapping[str, Any], number: int) -> Utterance:
        """The utterance of a row and its number. Raises ValueError with one sentence for a row that cannot be one."""
        values = {
            column: value.strip() if type(value) is str else cell_text(value)
            for column, value in cells.items()
            if column in COLUMN_ALIASES
        }
        row = "\n".join(values.values())
        if "\x00" in row or (not row.isascii() and _UNUSABLE.search(row)):
            column = next(column for column, value in values.items() if _UNUSABLE.search(value))
            problem = "holds a NUL character" if "\x00" in values[column] else "is not UTF-8"
            raise ValueError(f"column {column} {problem}")
        given = values.get
        if not (location := given("audio")):
            raise ValueError("there is no audio path")
        if not (text := given("text")):
            raise ValueError("there is no transcript")
        speaker = given("speaker") or self.defaults.speaker or _missing("speaker", "a speaker")
        date = given("recorded_at")
        recorded_at = (
            parse_date(date)
            if date
            else self.defaults.recorded_at or _missing("recording date", "a date (recorded_at)")
        )
        language, locale = _language(given("language") or self.defaults.language or _missing("language", "a language"))
        offset, duration = _times(values)
        channel = as_channel(given("channel") or None)
        split = as_split(given("split") or None)
        audio = self.locate(location)
        attributes: dict[str, str] = {}
        if gender := given("gender", "").lower():
            attributes["gender"] = _GENDERS.get(gender, gender)
        if given("age") or given("age_band"):
            attributes |= _age(given("age", ""), given("age_band", ""))
        if accent := given("accent"):
            attributes["accent"] = accent
        if locale:
            attributes["locale"] = locale
        return Utterance(
            id=self._identity(given("id", ""), location, audio, offset, channel),
            audio=audio,
            duration_s=duration,
            text=text,
            speaker=speaker,
            language=language,
            domain=given("domain") or self.defaults.domain,
            recorded_at=recorded_at,
            offset_s=offset,
            channel=channel,
            split=split,
            attributes=attributes,
            row=number,
        )

    def refused(
        self,
        source: Path,
        number: int,
        reason: str,
        identity: str | None = None,
        cells: Mapping[str, Any] | None = None,
    ) -> RejectedRow:
        """A row that is refused, with the quarter and the language of its cells, or else of its source."""
        said, default = cells or {}, self.defaults
        quarter = _known(lambda date: quarter_of(parse_date(date)), said.get("recorded_at"), default.recorded_at)
        language = _known(lambda tag: _language(tag)[0], said.get("language"), default.language)
        return RejectedRow(str(source), number, reason, identity or None, quarter, language)

    def locate(self, location: str) -> str:
        """The audio's absolute path, or its URI. Raises ValueError for what would have to be run or unpacked."""
        if location.endswith("|") or location.startswith("|"):
            raise ValueError("the audio is a command; commands are never run, write its output to a file")
        if location == "-":
            raise ValueError("the audio is standard input; give a file")
        if ":" in location:
            if re.search(r"\.ark:\d+$", location):
                raise ValueError("the audio lies inside a Kaldi archive; extract it to a file")
            if location.lower().startswith("file://"):
                location = unquote(urlparse(location).path)
            elif is_uri(location):
                return location
        return os.path.normpath(os.path.join(self.base, location))

    def _identity(self, named: str, location: str, audio: str, offset: float, channel: int | None) -> str:
        """The given id made safe as a file name, or one from the audio's path; raises ValueError where it is taken."""
        if named:
            identity = _safe_name(named)
            taken = not self._known.add(identity, 0, named)
            if taken and self._known.text(identity) != named:  # another id is the same file name
                identity = _safe_name(f"{identity}-{hashlib.sha256(named.encode()).hexdigest()[:8]}")
                taken = not self._known.add(identity, 0, named)
            if taken:
                raise ValueError(f"id '{named}' comes twice; the first row counts")
            return identity
        source = f"{audio}\0{offset}\0{channel}"
        relative = os.path.relpath(audio, self.base) if not is_uri(audio) else location
        relative = Path(audio).name if relative.startswith("..") else relative
        mark = (f"@{offset:.3f}" if offset else "") + (f"@{channel}" if channel is not None else "")
        identity = _safe_name(os.path.splitext(relative)[0] + mark)
        taken = not self._known.add(identity, 0, source)
        if taken and self._known.text(identity) != source:
            identity = _safe_name(f"{relative}{mark}-{hashlib.sha256(audio.encode()).hexdigest()[:8]}")
            taken = not self._known.add(identity, 0, source)
        if taken:
            raise ValueError(f"the audio '{location}' comes twice; the first row counts")
        return identity


def _known(meant: Callable[[str], str], cell: Any, default: Any) -> str:
    """What a cell, or the default where it is empty, means; empty where it means nothing."""
    try:
        said = cell_text(cell) or str(default or "")
        return meant(said) if said else ""
    except ValueError:
        return ""


def _missing(what: str, default: str) -> NoReturn:
    raise ValueError(f"there is no {what}; add the column, or name {default} for the whole source")


def _times(values: Mapping[str, str]) -> tuple[float, float | None]:
    """Where an utterance starts and how long it is, in seconds, from any two of start, end and duration."""
    offset = _seconds(values, "offset", "offset_ms") or 0.0
    duration = _seconds(values, "duration", "duration_ms")
    if duration == 0:
        raise ValueError("the duration is zero")
    end = _seconds(values, "end", "end_ms")
    if end is None:
        return offset, duration
    if not end > offset:
        raise ValueError(f"the utterance ends at {end:g} s, which is not after its start at {offset:g} s")
    span = round(end - offset, 6)
    if duration is not None and abs(duration - span) > ROUNDING_S:
        raise ValueError(f"start and end are {span:g} s apart, but the duration is {duration:g} s; keep what is right")
    return offset, span


def _seconds(values: Mapping[str, str], column: str, in_milliseconds: str) -> float | None:
    given, thousandths = values.get(column), values.get(in_milliseconds)
    if thousandths and given:
        raise ValueError(f"{column} is given in seconds and in milliseconds; keep one")
    if thousandths:
        return as_seconds(thousandths, in_milliseconds) / 1000
    return as_seconds(given, column) if given else None


def _safe_name(name: str) -> str:
    if _SAFE.fullmatch(name):
        return name
    safe = re.sub(r"[\s/\\:*?\"<>|\x00-\x1f\x7f]+", "-", name).strip("-.") or "utterance"
    encoded = safe.encode()
    if len(encoded) > MAX_ID_BYTES:
        mark = hashlib.sha256(encoded).hexdigest()[:12]
        safe = f"{encoded[: MAX_ID_BYTES - 13].decode(errors='ignore')}-{mark}"
    return safe


@functools.lru_cache(4096)
def _language(tag: str) -> tuple[str, str]:
    """(primary tag, whole tag where it says more)."""
    tag = _LANGUAGE_NAMES.get(tag.strip().lower(), tag.strip()).replace("_", "-")
    primary = primary_language(tag)
    if primary is None:
        raise ValueError(f"{tag!r} is not a language; write a tag such as en or de-CH")
    return primary, tag if "-" in tag else ""


def _age(value: str, band: str) -> dict[str, str]:
    """Attributes from an age in years, a decade in words or a band; an age that is none of these is left out."""
    word = value.strip().lower()
    if word in _DECADES:
        return {"age_band": _DECADES[word]}
    try:
        years = float(word) if word else math.nan
    except ValueError:
        years = math.nan
    if 0 <= years <= 130:
        return {"age": f"{years:g}", "age_band": band or age_band(years)}
    return {"age_band": band} if band else {}
