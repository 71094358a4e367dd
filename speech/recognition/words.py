"""Words from decoded pieces: their text, their times and how sure the model is of each.

Word times come from CTC: a word lasts from the start of its first piece's first output frame to the
end of its last piece's last one, where an output frame stands for the audio that became known with it
(80 ms in this family; the encoder is causal, so nothing else has to be taken off). CTC places a piece
where the network is sure of it, mostly in the later part of the sound, and often in one frame: take
starts as good to a few frames and not as phone boundaries.

A word's confidence is that of its least sure piece, and a piece's is its highest softmax value; the
bundle's calibration, where it has one, turns that into the probability that the word is right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from speech.bundle import TOKENIZER, BundleError, ModelBundle
from speech.recognition.ctc import Piece
from speech.transcript import Word

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes the start of a word


class WordSpeller:
    """Turns pieces into words with times and confidence, by the bundle's tokenizer and calibration."""

    def __init__(self, bundle: ModelBundle) -> None:
        """Open the tokenizer; BundleError when it is not the one of the vocabulary."""
        from sentencepiece import SentencePieceProcessor

        self._bundle = bundle
        self._tokenizer: Any = SentencePieceProcessor()
        try:
            self._tokenizer.LoadFromSerializedProto(bundle.read(TOKENIZER))
        except RuntimeError as error:
            raise BundleError(f"{bundle.path}: {TOKENIZER} is not a sentencepiece model") from error
        pieces = tuple(self._tokenizer.IdToPiece(index) for index in range(self._tokenizer.GetPieceSize()))
        if pieces != bundle.vocabulary:
            raise BundleError(
                f"{bundle.path}: {TOKENIZER} has other pieces than the vocabulary; export the model again"
            )

    def words(self, pieces: Sequence[Piece], duration_s: float | None = None) -> tuple[Word, ...]:
        """Return the words of pieces in order of time; no time lies after `duration_s`."""
        groups: list[list[Piece]] = []
        apart = True  # sentencepiece sets spaces around the unknown piece
        for piece in pieces:
            unknown = self._tokenizer.IsUnknown(piece.symbol)
            if apart or unknown or self._bundle.vocabulary[piece.symbol].startswith(_SPACE):
                groups.append([])
            groups[-1].append(piece)
            apart = unknown
        spelled = [(self._spell(group), group) for group in groups]
        spelled = [(text, group) for text, group in spelled if text]
        confidences = np.array([min(piece.probability for piece in group) for _, group in spelled])
        if self._bundle.calibration is not None:
            confidences = self._bundle.calibration.apply(confidences)
        return tuple(
            Word(text, *self._times(group, duration_s), confidence=min(1.0, float(confidence)))
            for (text, group), confidence in zip(spelled, confidences, strict=True)
        )

    def _spell(self, group: Sequence[Piece]) -> str:
        """Return the text of a word's pieces; sentencepiece joins bytes into characters."""
        return " ".join(self._tokenizer.Decode([piece.symbol for piece in group]).split())

    def _times(self, group: Sequence[Piece], duration_s: float | None) -> tuple[float, float]:
        span = self._bundle.geometry.frame_span
        frame_s = self._bundle.features.frame_s
        start, end = round(span(group[0].first)[0] * frame_s, 3), round(span(group[-1].last)[1] * frame_s, 3)
        return (start, end) if duration_s is None else (min(start, duration_s), min(end, duration_s))
