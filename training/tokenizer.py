"""BPE pieces of a language, learnt from its training text: the same for the same text in any order."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from speech.text import charset
from training.recipe import TrainingError


def train_tokenizer(texts: Iterable[str], language: str, folder: Path, size: int, sentences: int = 1_000_000) -> Path:
    """Learn at most `size` BPE pieces from normalised text; write tokenizer.model and vocab.txt.

    Small vocabularies end in whole words, which suit the 80 ms frames of the encoder. Every character of
    the language gets a piece, heard or not. Equal texts give equal bytes, in whatever order they come.
    """
    import io

    import sentencepiece

    lines = sorted(set(texts))
    if len(lines) > sentences:
        lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
        lines = sorted(lines[:sentences])
    heard = {character for line in lines for character in line if not character.isspace()}
    characters = heard | {character for character in charset(language) if not character.isspace()}

    def learn(pieces: int) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=pieces,
            character_coverage=1.0,
            required_chars="".join(sorted(characters)),
            normalization_rule_name="identity",
            add_dummy_prefix=True,
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            unk_id=0,
            num_threads=1,
            max_sentence_length=65_536,
            minloglevel=3,
        )
        return model.getvalue()

    least = len(characters) + 2  # the unknown piece and the word boundary
    # A corpus of few words has fewer merges than asked for, and sentencepiece refuses instead of
    # stopping there: search for the largest vocabulary that it supports.
    low, high = least, max(size, least)
    best = None
    try:
        best = learn(high)
    except RuntimeError:
        while low <= high:
            middle = (low + high) // 2
            try:
                best = learn(middle)
                low = middle + 1
            except RuntimeError:
                high = middle - 1
    if best is None:
        raise TrainingError("No tokenizer can be learnt from the training text: it holds too little of the language.")
    return write_tokenizer(best, folder)


def write_tokenizer(model: bytes, folder: Path) -> Path:
    """Write a sentencepiece model as NeMo reads it: tokenizer.model, and its pieces in vocab.txt."""
    import sentencepiece

    folder.mkdir(parents=True, exist_ok=True)
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = "".join(f"{_wordpiece(pieces.id_to_piece(index))}\n" for index in range(1, len(pieces)))
    for name, content in (("tokenizer.model", model), ("vocab.txt", vocabulary.encode())):
        # Every device of a run writes the same bytes at the same time.
        unfinished = folder / f".{name}.{os.getpid()}"
        unfinished.write_bytes(content)
        os.replace(unfinished, folder / name)
    return folder / "tokenizer.model"


def _wordpiece(piece: str) -> str:
    """Spell a piece as NeMo's vocab.txt does: continuations carry '##', word starts nothing."""
    return piece[1:] if piece.startswith("▁") and len(piece) > 1 else f"##{piece}"
