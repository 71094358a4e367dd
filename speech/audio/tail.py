"""What stands behind the sound that a header declares: tags, padding and further chunks are none, anything else may be.

A recorder that died before it wrote the final size leaves a header of its first seconds, and two recordings that were
written one behind the other look like the first alone. Whoever decodes what is declared loses speech that nobody
misses. So whatever follows has to be something that holds no sound, and is a refusal otherwise.
"""

import struct

from speech.audio.source import AudioError, OpenAudio

_RECORDINGS = frozenset({b"RIFF", b"RIFX", b"RF64", b"FORM", b"fLaC", b"OggS"})  # each begins a recording of its own
_SAMPLES = frozenset({b"data", b"SSND"})
_NO_SOUND = frozenset({b"LIST", b"bext", b"cue ", b"fact", b"smpl", b"inst", b"PEAK", b"iXML", b"id3 ", b"ID3 "})
_FLAC_START = b"fLaC\x00\x00\x00\x22"  # with the block that has to come first (RFC 9639, 8.2)
_READ_AHEAD = 1 << 14  # bytes that libFLAC may have buffered
_PIECE = 1 << 20


def end_of_sound(recording: OpenAudio) -> int:
    """Where a recording ends without the tags that players append: ID3v1, APEv2 and Lyrics3."""
    end = recording.size
    while end > 128:
        footer = recording.peek(end - 128, 128)
        if footer[:3] == b"TAG":
            shorter = end - 128
        elif footer[96:104] == b"APETAGEX":
            length, _, flags = struct.unpack("<III", footer[108:120])
            shorter = end - length - (32 if flags >> 31 else 0)
        elif footer[119:] == b"LYRICS200" and footer[113:119].isdigit():
            shorter = end - 15 - int(footer[113:119])
        else:
            break
        if not 0 < shorter < end:
            break
        end = shorter
    return end


def refuse_more_behind(recording: OpenAudio, start: int, length: int) -> None:
    """Refuse a WAV or AIFF with more behind its `length` bytes of samples, which end at `start`, than chunks and tags.

    Raises:
        AudioError: what follows may be sound.
    """
    order = ">" if recording.head[:4] in (b"FORM", b"RIFX") else "<"
    spare = 8 + length // 100
    end = end_of_sound(recording)
    place = _chunk_at(recording, start)
    while place + 8 <= end:
        tag, size = struct.unpack(f"{order}4sI", recording.peek(place, 8))
        if tag in _RECORDINGS:
            raise _another(recording, place)
        behind = place + 8 + size
        if tag in _SAMPLES or not _printable(tag) or (behind > end + 1 and tag not in _NO_SOUND):
            break
        place = _chunk_at(recording, behind)
    if end - place > spare and not _is_padding(recording, place, end):
        raise recording.refuse(
            "unreadable",
            f"the header declares {length:,} bytes of samples, but {end - place:,} more follow; mend the header and "
            "retry",
        )


def refuse_more_behind_flac(recording: OpenAudio, place: int) -> None:
    """Refuse a FLAC with more behind its last declared sample than padding; its decoder has read up to `place`.

    Raises:
        AudioError: what follows may be sound.
    """
    end = recording.size  # its tags are taken off before it is opened
    behind = recording.peek(max(4, place - _READ_AHEAD), _READ_AHEAD + len(_FLAC_START)).find(_FLAC_START)
    if behind >= 0:
        raise _another(recording, max(4, place - _READ_AHEAD) + behind)
    if end - place > 8 + place // 100 and not _is_padding(recording, place, end):
        raise recording.refuse(
            "unreadable", f"{end - place:,} bytes follow the last sample that the header declares; deliver it again"
        )


def refuse_second_movie(recording: OpenAudio) -> None:
    """Refuse an MP4 that another one follows (ISO/IEC 14496-12: a file has one `moov` box).

    Raises:
        AudioError: there is a second one.
    """
    place, found = 0, 0
    while place + 8 <= recording.size:
        head = recording.peek(place, 16)
        size, name = struct.unpack(">I4s", head[:8])
        if size == 1 and len(head) == 16:
            size = int.from_bytes(head[8:], "big")
        found += name == b"moov"
        if found > 1:
            raise _another(recording, place)
        if size < 8 or not _printable(name):
            return
        place += size


def _another(recording: OpenAudio, place: int) -> AudioError:
    return recording.refuse(
        "unreadable", f"another recording follows the first one at byte {place:,}; deliver them as files of their own"
    )


def _chunk_at(recording: OpenAudio, place: int) -> int:
    """Where the chunk behind `place` starts: at an even byte, unless its writer forgot the padding."""
    padded = place + (place & 1)
    return place if padded != place and _printable(recording.peek(place, 4)) else padded


def _printable(tag: bytes) -> bool:
    return len(tag) == 4 and all(32 <= byte < 127 for byte in tag)


def _is_padding(recording: OpenAudio, place: int, end: int) -> bool:
    if recording.peek(place, 3) == b"ID3":
        return True
    while place < end:
        piece = recording.peek(place, min(_PIECE, end - place))
        if not piece or piece.count(0) != len(piece):
            return False
        place += len(piece)
    return True
