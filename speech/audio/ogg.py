"""The end of an Ogg file (RFC 3533), whose header states no length: whether it was cut, and whether it is marked.

Pages have a length of their own, so a file that was cut nearly always ends within one: that is a refusal. A file that
ends with a whole page, of which nothing says that it is the last, was cut between two pages, or comes from a recorder
that never says so (live captures, servers that were stopped): its end is *open*, which whoever reads may be told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from speech.audio.source import OpenAudio

_CAPTURE = b"OggS\x00"  # with the version
_HEADER = 27  # bytes before the table of segments
_CONTINUES = 255  # a segment after which its packet goes on
_BEGINS, _ENDS = 2, 4  # flags of a page
_SOUNDS = (b"\x01vorbis", b"OpusHead", b"Speex   ", b"\x7fFLAC")  # how the first page of a stream of sound begins
_PIECE = 1 << 16


Ending = Literal["marked", "open", "cut"]


@dataclass(frozen=True)
class _Page:
    flags: int
    stream: int
    end: int  # the byte behind it
    goes_on: bool  # its last packet does, in another page
    sounds: bool  # it begins a stream of sound


def ending(recording: OpenAudio) -> Ending:
    """How the last sound of an Ogg file ends."""
    last: dict[int, _Page] = {}  # of each stream, in the last link of a chain
    sounds: set[int] = set()
    end, was_head = 0, True
    for page in _pages(recording):
        is_head = bool(page.flags & _BEGINS)
        if is_head and not was_head:
            last.clear()
        was_head, end = is_head, page.end
        last[page.stream] = page
        if page.sounds:
            sounds.add(page.stream)
    behind = recording.peek(end, _HEADER) if end < recording.size else b""
    begun = 0 < len(behind) < _HEADER and _CAPTURE.startswith(behind[: len(_CAPTURE)])
    heard = [page for stream, page in last.items() if stream in sounds]
    if end > recording.size or begun or any(page.goes_on for page in heard):
        return "cut"
    return "marked" if all(page.flags & _ENDS for page in heard) else "open"


def _pages(recording: OpenAudio) -> Iterator[_Page]:
    """The pages of a file; what lies between them, such as damage, is passed over."""
    place = 0
    while True:
        head = recording.peek(place, _HEADER + 255 + 8)
        if len(head) < _HEADER:
            return
        if not head.startswith(_CAPTURE):
            found = recording.peek(place, _PIECE).find(_CAPTURE, 1)
            place += found if found > 0 else _PIECE - len(_CAPTURE)
            continue
        sizes = head[_HEADER : _HEADER + head[26]]
        body = _HEADER + head[26]
        yield _Page(
            flags=head[5],
            stream=int.from_bytes(head[14:18], "little"),
            end=place + body + sum(sizes),
            goes_on=bool(sizes) and sizes[-1] == _CONTINUES,
            sounds=bool(head[5] & _BEGINS) and head[body:].startswith(_SOUNDS),
        )
        place += body + sum(sizes)
