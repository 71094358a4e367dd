"""Which reading of a number was said, told by the base model.

"1984" in a transcript is "nineteen eighty four" or "one nine eight four", and a network that is trained on the wrong
one learns that sounds mean other words. Where a training continues from a base model, that model has heard the audio:
of all readings the one that it finds likeliest is trained on, by the CTC loss. From scratch nobody can tell, and the
commonest reading stands.

Only utterances with several readings cost anything: one pass of the network each, and one loss for each reading. Each
stretch of a text is decided with the others as they stand, from left to right, so that many numbers in a text cost the
sum of their readings and not the product.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from speech.store.outputs import parse_json, write_json
from speech.text import readings
from training.batches import Corpus, collate

if TYPE_CHECKING:
    from nemo.collections.asr.models.ctc_bpe_models import EncDecCTCModelBPE


@dataclass(frozen=True)
class Readings:
    """What was chosen for a corpus; `texts` are normalised, in the order of its utterances."""

    texts: tuple[str, ...]
    several: int  # utterances with several readings
    other: int  # of those, trained on another than the commonest

    @property
    def digest(self) -> str:
        """SHA-256 of the texts."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()


def readings_said(model: "EncDecCTCModelBPE", corpus: Corpus, language: str, remembered: Path) -> Readings:
    """The corpus's texts with each number read as the model hears it; equal models and corpora give equal texts.

    A run that goes on finds its choice in the file `remembered`, and one that begins writes it there.
    """
    texts = list(corpus.texts)
    every = ((index, readings(row.text, language)) for index, row in enumerate(corpus.utterances))
    open_ones = {index: pieces for index, pieces in every if any(len(piece) > 1 for piece in pieces)}
    known = _remembered(remembered)
    chosen: dict[str, str] = {}
    if open_ones:
        model.eval()
    for index, pieces in open_ones.items():
        name = corpus.utterances[index].id
        before = known.get(name)
        chosen[name] = before if _is_reading(before, pieces) else _likeliest(model, corpus, index, pieces)
        texts[index] = chosen[name]
    if chosen and chosen != known:
        write_json(remembered, chosen)  # every device writes the same
    other = sum(after != before for after, before in zip(texts, corpus.texts, strict=True))
    return Readings(tuple(texts), len(open_ones), other)


def _remembered(file: Path) -> dict[str, Any]:
    """What a run chose before, by utterance; nothing where the file is damaged, since it can be chosen again."""
    try:
        found = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_reading(text: Any, pieces: Sequence[Sequence[str]]) -> TypeGuard[str]:
    """Whether a remembered text is one of the readings that there are; a damaged one is not."""
    if not isinstance(text, str):
        return False
    spaced, ends = f"{text} ", {0}
    for piece in pieces:
        ends = {end + len(said) + 1 for end in ends for said in piece if spaced.startswith(f"{said} ", end)}
    return len(spaced) in ends


def _likeliest(model: "EncDecCTCModelBPE", corpus: Corpus, index: int, pieces: Sequence[Sequence[str]]) -> str:
    import torch

    batch = collate([corpus.cache.samples(corpus.utterances[index]).astype("float32") / 32_768], [[]])
    device = next(model.parameters()).device
    with torch.inference_mode():
        log_probs, lengths, _ = model.forward(
            input_signal=batch["audio"].to(device), input_signal_length=batch["audio_lengths"].to(device)
        )
    heard = log_probs[0, : int(lengths[0])].float().cpu()
    said = [piece[0] for piece in pieces]
    unknown = int(model.tokenizer.tokenizer.unk_id())
    for place, piece in enumerate(pieces):
        if len(piece) > 1:
            texts = [" ".join([*said[:place], reading, *said[place + 1 :]]) for reading in piece]
            losses = _losses(heard, [model.tokenizer.text_to_ids(text) for text in texts], unknown)
            said[place] = piece[min(range(len(piece)), key=losses.__getitem__)]
    return " ".join(said)


def _losses(heard: Any, candidates: Sequence[Sequence[int]], unknown: int) -> list[float]:
    """How unlikely each row of pieces is for the log probabilities [frames, pieces + 1]; infinite if it cannot be."""
    import torch

    targets = torch.nn.utils.rnn.pad_sequence([torch.tensor(list(one), dtype=torch.long) for one in candidates], True)
    losses: list[float] = torch.nn.functional.ctc_loss(
        heard[:, None].expand(-1, len(candidates), -1),
        targets,
        torch.full((len(candidates),), len(heard)),
        torch.tensor(list(map(len, candidates))),
        blank=heard.shape[-1] - 1,
        reduction="none",
    ).tolist()
    # What the base cannot write it cannot have heard.
    return [float("inf") if unknown in candidate else loss for loss, candidate in zip(losses, candidates, strict=True)]
