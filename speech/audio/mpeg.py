"""MPEG audio frame headers: whether a file is MP3 at all, and how long it says that it is."""

from dataclasses import dataclass

from speech.audio.source import OpenAudio

_KBPS = {  # (low sampling frequencies, layer) -> bit rate by index
    (False, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (False, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (False, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (True, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (True, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (True, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}


@dataclass(frozen=True)
class MpegFrame:
    """One MPEG audio frame header (ISO/IEC 11172-3, 2.4.1.3 and 13818-3)."""

    offset: int
    length: int
    samples: int
    rate: int
    side_info: int

    _SEARCH_BYTES = 1 << 16

    @classmethod
    def _parse(cls, data: bytes, offset: int, base: int = 0) -> "MpegFrame | None":
        if offset + 4 > len(data):
            return None
        header = int.from_bytes(data[offset : offset + 4], "big")
        version, layer = header >> 19 & 3, 4 - (header >> 17 & 3)
        bit_rate_index, rate_index, padding = header >> 12 & 15, header >> 10 & 3, header >> 9 & 1
        if header >> 21 != 0x7FF or version == 1 or layer == 4 or bit_rate_index in (0, 15) or rate_index == 3:
            return None
        mono = header >> 6 & 3 == 3
        low = version != 3
        rate = (44_100, 48_000, 32_000)[rate_index] // {3: 1, 2: 2, 0: 4}[version]
        kbps = _KBPS[low, layer][bit_rate_index - 1]
        samples = 384 if layer == 1 else 576 if layer == 3 and low else 1152
        slot = 4 if layer == 1 else 1
        length = (samples // 8 * kbps * 1000 // rate // slot + padding) * slot
        side = (17 if mono else 32) if not low else (9 if mono else 17)
        return cls(base + offset, length, samples, rate, side)

    @classmethod
    def chain(cls, recording: OpenAudio) -> "MpegFrame | None":
        """The first frame that two more follow (or the end of the file): three in a row are no accident."""
        start = 0
        while (head := recording.peek(start, 10))[:3] == b"ID3" and len(head) == 10:
            start += 10 + sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        data = recording.peek(start, cls._SEARCH_BYTES)
        for offset in range(len(data) - 3):
            if data[offset] != 0xFF or (first := cls._parse(data, offset, start)) is None:
                continue
            frame, position = first, offset
            for _ in range(2):
                position += frame.length
                if start + position >= recording.size - 4:
                    return first
                following = cls._parse(data, position) or cls._parse(recording.peek(start + position, 4), 0)
                if following is None or following.rate != first.rate:
                    break
                frame = following
            else:
                return first
        return None

    @classmethod
    def declared_s(cls, recording: OpenAudio) -> float | None:
        """Seconds stated by a Xing/Info or VBRI header; without one an MP3 does not say how long it is."""
        first = cls.chain(recording)
        if first is None:
            return None
        body = recording.peek(first.offset + 4, 256)
        tag = body[first.side_info :]
        frames = trimmed = 0
        if tag[:4] in (b"Xing", b"Info") and len(tag) >= 12 and tag[7] & 1:
            frames = int.from_bytes(tag[8:12], "big")
            # An encoder's extension follows the optional fields; it says how many samples players cut off both ends.
            extension = tag[12 + sum(size for bit, size in ((2, 4), (4, 100), (8, 4)) if tag[7] & bit) :]
            ends = int.from_bytes(extension[21:24], "big") if extension[:4] in (b"LAME", b"Lavf", b"Lavc") else 0
            trimmed = (ends >> 12) + (ends & 0xFFF)
        elif body[32:36] == b"VBRI":
            frames = int.from_bytes(body[46:50], "big")
        return max(0, frames * first.samples - trimmed) / first.rate if frames else None
