"""Words from tokens: their text, their times and how sure the model is of each.

Word times come from CTC: a word lasts from the start of its first token's first output frame to the
end of its last token's last one, where an output frame stands for the audio that became known with it
(80 ms in this family; the encoder is causal, so nothing else has to be taken off). CTC places a token
where the network is sure of it, mostly in the later part of the sound, and often in one frame: a word
of many letters is therefore taken to begin no later than fast speech would need, and starts are good
to a few frames and not phone boundaries.

Scripts without spaces have a word a token: a character, or the few that the model writes at once.

A word's confidence is that of its least sure token, and a token's is its highest softmax value; the
bundle's calibration, where it has one, turns that into the probability that the word is right.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from speech.bundle import TOKENIZER, BundleError, ModelBundle
from speech.recognition.decoder import Token
from speech.scripts import is_unspaced, join_words, may_part
from speech.spelling import UNREADABLE, goes_on
from speech.text import spoken_length
from speech.transcript import Word

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes the start of a word
LETTER_S = 0.05  # nobody says twenty letters a second


class WordSpeller:
    """Turns tokens into words with times and confidence, by the bundle's tokenizer and calibration."""

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

    def pieces_of(self, text: str) -> list[int]:
        """Return the symbols that write a normalised text."""
        return self._tokenizer.EncodeAsIds(text)

    def words(self, tokens: Sequence[Token], duration_s: float | None = None) -> tuple[Word, ...]:
        """Return the words of tokens in order of time; no time lies after `duration_s`.

        Where a script sets no spaces, a word is a token, or those of a character that takes several. Tokens that
        make no character give a word of confidence 0 that shows it (`speech.spelling.UNREADABLE`).
        """
        groups: list[list[Token]] = []
        apart = True  # sentencepiece sets spaces around the unknown piece
        for token in tokens:
            unknown = self._tokenizer.IsUnknown(token.symbol)
            if apart or unknown or self._bundle.vocabulary[token.symbol].startswith(_SPACE):
                groups.append([])
            groups[-1].append(token)
            apart = unknown
        spelled = [(text, group) for together in groups for text, group in self._units(together) if text]
        confidences = np.array([min(token.probability for token in group) for _, group in spelled])
        if self._bundle.calibration is not None:
            confidences = self._bundle.calibration.apply(confidences)
        words: list[Word] = []
        for (text, group), confidence in zip(spelled, confidences, strict=True):
            start, end = self._times(group, duration_s)
            # a long word that is written at once was not said at once
            begun = round(end - LETTER_S * spoken_length(text), 3)
            start = min(start, max(begun, words[-1].end_s if words else 0.0))
            words.append(Word(text, start, end, 0.0 if UNREADABLE in text else min(1.0, float(confidence))))
        return tuple(words)

    def _units(self, group: Sequence[Token]) -> list[tuple[str, list[Token]]]:
        """Return what stands between two spaces as words: one, but for scripts that set no spaces."""
        whole = self._spell(group)
        if not any(map(is_unspaced, whole)):
            return [(whole, list(group))]
        units: list[tuple[str, list[Token]]] = []
        for token in group:
            text = self._spell([token])
            if units:
                before, held = units[-1]
                apart = may_part(before[-1:], text[:1])
                if not before or not text or self._goes_on(token) or not apart:
                    units[-1] = (self._spell([*held, token]), [*held, token])
                    continue
            units.append((text, [token]))
        return units

    def _goes_on(self, token: Token) -> bool:
        """Tell whether a token begins within a character."""
        symbol = self._bundle.vocabulary[token.symbol]
        if self._tokenizer.IsByte(token.symbol):
            return 0x80 <= int(symbol[3:5], 16) < 0xC0  # "<0x80>": a byte of UTF-8 that is not the first
        return goes_on(symbol)

    def _spell(self, group: Sequence[Token]) -> str:
        """Return the text of tokens; sentencepiece joins what spells a character."""
        return join_words(self._tokenizer.Decode([token.symbol for token in group]).split())

    def _times(self, group: Sequence[Token], duration_s: float | None) -> tuple[float, float]:
        span = self._bundle.geometry.frame_span
        frame_s = self._bundle.features.frame_s
        start, end = round(span(group[0].first)[0] * frame_s, 3), round(span(group[-1].last)[1] * frame_s, 3)
        return (start, end) if duration_s is None else (min(start, duration_s), min(end, duration_s))
