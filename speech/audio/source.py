"""A recording as bytes: opened from a path, from bytes or from a stream, and read within bounds."""

import contextlib
import io
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

AudioSource = str | os.PathLike[str] | bytes | BinaryIO


class AudioError(Exception):
    """A recording that is refused.

    Attributes:
        path: the file, or the name given for bytes and streams.
        reason: one sentence for a person: what is wrong and what to do about it.
        code: "not-audio", "empty", "truncated", "too-long", "too-many-channels", "no-such-channel", "implausible-rate",
            "too-large", "unreadable" (missing, forbidden, damaged) or "unsupported" (known, but no decoder).
    """

    def __init__(self, path: str, reason: str, code: str) -> None:
        super().__init__(path, reason, code)  # all three as args, so that the error crosses process boundaries
        self.path = path
        self.reason = reason
        self.code = code

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} [{self.code}]"


@dataclass(frozen=True)
class AudioLimits:
    """What is accepted, enforced on decoded samples."""

    max_duration_s: float = 36_000.0
    max_channels: int = 16
    min_rate_hz: int = 4_000
    max_rate_hz: int = 768_000  # 16 x 48 kHz; one-bit DSD decodes to at most 705.6 kHz
    max_decoded_bytes: int = 64 << 30  # as float32 at the source's rate: 10 h of stereo at 192 kHz are 55 GB
    max_encoded_bytes: int = 32 << 30  # of the file itself; also bounds the spool of a stream that cannot seek


class _Reader:
    """A seekable byte source for libsndfile and FFmpeg that hides the name and stops endless reading.

    Both libraries call back from C, where an exception of the caller's stream would be printed or lost: it is kept in
    `failure` and reported as end of file. A demuxer that loops over damaged data is cut off the same way once it has
    read many times what the file holds.
    """

    def __init__(self, file: BinaryIO, size: int, descriptor: int | None) -> None:
        self._file = file
        self._descriptor = descriptor
        self._position = 0
        self._budget = 8 * size + (256 << 20)
        self.size = size
        self.failure: Exception | None = None

    def read(self, count: int = -1) -> bytes:
        if self.failure is not None:
            return b""
        count = self.size - self._position if count < 0 else min(count, self.size - self._position)
        if count <= 0:
            return b""
        self._budget -= count
        try:
            if self._budget < 0:
                raise OSError("its index leads in circles")
            if self._descriptor is not None:  # leaves the descriptor's own position to libsndfile
                data = os.pread(self._descriptor, count, self._position)
            else:
                self._file.seek(self._position)
                data = self._file.read(count)
        except Exception as error:
            self.failure = error
            return b""
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True


@dataclass
class OpenAudio:
    """An open recording.

    Attributes:
        name: what errors call it.
        head: its first 64 bytes.
        descriptor: of a plain file that was opened here.
        reader: what the decoders read from.
    """

    name: str
    file: BinaryIO
    size: int
    head: bytes
    descriptor: int | None
    reader: _Reader = field(init=False)

    def __post_init__(self) -> None:
        self.reader = _Reader(self.file, self.size, self.descriptor)

    def refuse(self, code: str, reason: str) -> AudioError:
        """The error to raise for this recording; a failure of reading explains all others."""
        if self.reader.failure is not None:
            return AudioError(self.name, f"reading stopped: {sentence_of(self.reader.failure)}", "unreadable")
        return AudioError(self.name, reason, code)

    def peek(self, offset: int, count: int) -> bytes:
        """Bytes from anywhere, without moving the place where a decoder reads."""
        place = self.reader.tell()
        self.reader.seek(offset)
        data = self.reader.read(count)
        self.reader.seek(place)
        return data

    def place(self) -> int:
        """Up to where libsndfile has read."""
        return self.reader.tell() if self.descriptor is None else os.lseek(self.descriptor, 0, os.SEEK_CUR)

    def end_at(self, size: int) -> None:
        """Hide what lies behind the first `size` bytes."""
        if size < self.size:
            self.size = self.reader.size = size
            self.descriptor = None  # it has no end but the file's


@contextlib.contextmanager
def opened(source: AudioSource, limits: AudioLimits, name: str | None) -> Iterator[OpenAudio]:
    """Open a source for reading from its beginning; a stream that cannot seek is spooled to a temporary file.

    Raises:
        AudioError: it cannot be read, is empty, no plain file, or larger than the limits.
    """
    with contextlib.ExitStack() as stack:
        file: BinaryIO
        descriptor = None
        if isinstance(source, bytes | bytearray | memoryview):
            label, file = name or "<bytes>", io.BytesIO(source)
        elif isinstance(source, str | os.PathLike):
            label = name or os.fspath(source)
            file = stack.enter_context(_open_regular(os.fspath(source), label))
            descriptor = file.fileno()
        else:
            label = name or str(getattr(source, "name", "<stream>"))
            file = source
        try:
            if not file.seekable():
                file = _spooled(file, stack.enter_context(tempfile.TemporaryFile()), limits, label)
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            head = file.read(64) if size else b""
        except (OSError, ValueError) as error:
            raise AudioError(label, f"cannot be read: {sentence_of(error)}", "unreadable") from error
        if not size:
            raise AudioError(label, "the file is empty (0 bytes); deliver it again", "empty")
        if size > limits.max_encoded_bytes:
            raise AudioError(label, f"{size:,} bytes exceed the limit of {limits.max_encoded_bytes:,}", "too-large")
        yield OpenAudio(label, file, size, head, descriptor)


def _open_regular(path: str, label: str) -> BinaryIO:
    """Open a path only if it is a plain file: opening a pipe would wait for a writer, a device could never end."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise AudioError(label, f"cannot be opened: {sentence_of(error)}", "unreadable") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = "a directory" if stat.S_ISDIR(mode) else "a named pipe" if stat.S_ISFIFO(mode) else "a device or socket"
        raise AudioError(label, f"is {kind}, not a file; give the path of one recording", "unreadable")
    return os.fdopen(descriptor, "rb", buffering=0)


def _spooled(stream: BinaryIO, spool: BinaryIO, limits: AudioLimits, label: str) -> BinaryIO:
    total = 0
    while data := stream.read(1 << 20):
        total += len(data)
        if total > limits.max_encoded_bytes:
            raise AudioError(label, f"the stream exceeds the limit of {limits.max_encoded_bytes:,} bytes", "too-large")
        spool.write(data)
    return spool


def sentence_of(error: Exception) -> str:
    """What an error of the operating system or of FFmpeg says, without its numbers."""
    cause = getattr(error, "strerror", None)
    return str(cause).lower() if cause else str(error) or type(error).__name__
