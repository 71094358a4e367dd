"""The pieces that a model writes with, learnt from its training text: the same for the same text in any order.

Each character that the text uses gets a piece while there is room, the frequent ones first, and so does each letter of
the language's alphabet where one is known; the others are spelt (`speech.spelling`). What is left of the vocabulary
goes to sequences that are frequent. How a character is spelt is written into the sentencepiece model, as its rules of
normalisation and denormalisation: whoever encodes and decodes with it, NeMo or a served bundle, sees whole characters.

Text of which too little would be covered is refused, with the size to ask for.
"""

import hashlib
import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speech.scripts import is_unspaced, scripts_of
from speech.spelling import digits_for, hangul, is_syllable, reading, spelt
from speech.store.outputs import write_atomically
from speech.text import alphabet, charset
from training.recipe import TrainingError

LEAST_COVERAGE = 0.95  # of the text's characters; below it hardly a sentence goes without one that is spelt
FULL_COVERAGE = 0.9995  # what sentencepiece advises for scripts of many characters
SPELLING_SHARE = 1 / 8  # of a vocabulary may serve characters of the script that the text does not hold
LONGEST_UNSPACED_PIECE = 2  # characters: a piece is a word with times of its own, and four last a second
_SERVICE_PIECES = 2  # the unknown piece, and the start of a word


@dataclass(frozen=True)
class Coverage:
    """Which characters of a training text get a piece of their own, and how the others are written."""

    own: str  # characters with a piece, frequent or not, in order
    spelling: Mapping[str, str]  # the others, with the characters that have pieces in their stead
    size: int  # pieces asked for
    share: float  # of the text's characters (a syllable that is taken apart counts by its letters) that have a piece
    characters: int  # distinct ones in the text
    advised: int  # the size that covers FULL_COVERAGE of the text

    @property
    def symbols(self) -> str:
        """All characters that need a piece, in order."""
        return "".join(sorted({*self.own, *(symbol for code in self.spelling.values() for symbol in code)}))

    @property
    def finding(self) -> str:
        """What there is to say about it before training; empty where every character has its piece."""
        if self.share == 1:
            return ""
        return (
            f"the text uses {self.characters:,} distinct characters, of which the {len(self.own):,} that have a piece"
            f" in a vocabulary of {self.size:,} cover {self.share:.1%} of it; the rest is spelt in three pieces a"
            f" character. tokenizer.vocabulary_size {self.advised:,} covers {FULL_COVERAGE:.2%}"
        )


def coverage_of(texts: Iterable[str], language: str, size: int) -> Coverage:
    """Divide `size` pieces among the characters of normalised texts. Raises TrainingError where they do not suffice."""
    heard = Counter(character for text in texts for character in text if not character.isspace())
    scripts = scripts_of(language)
    korean = sum(count for character, count in heard.items() if is_syllable(character)) * 2 > heard.total()
    syllables = hangul() if "Hang" in scripts or (not scripts and korean) else {}
    counts: Counter[str] = Counter()
    for character, count in heard.items():
        for symbol in syllables.get(character, character):
            counts[symbol] += count
    letters = set(alphabet(language) or "") | {symbol for code in syllables.values() for symbol in code}
    wanted = set(counts) | letters
    ranked = sorted(wanted, key=lambda character: (-counts[character], character))
    room = size - _SERVICE_PIECES
    script = wanted
    if not letters:
        script = wanted | {letter for letter in charset(language) if " " < letter <= "\uffff"}
        if sum(digits_for(len(script))) > size * SPELLING_SHARE or not scripts:
            script = wanted
    digits = sum(digits_for(len(script)))
    fitting = room - digits
    if len(wanted) <= room and (fitting < len(wanted) or script == wanted):
        own, script = ranked, wanted
    else:
        own = ranked[: max(0, fitting)]
    total = sum(counts.values())
    share = sum(counts[character] for character in own) / total if total else 1.0
    coverage = Coverage(
        own="".join(sorted(own)),
        spelling=syllables | spelt(sorted(script - set(own))),
        size=size,
        share=share,
        characters=len(heard),
        advised=_SERVICE_PIECES + min(len(wanted), _sufficient(ranked, counts) + digits),
    )
    if share < LEAST_COVERAGE:
        raise TrainingError(f"Too few pieces for '{language}': {coverage.finding}; ask for that, or more.")
    return coverage


def _sufficient(ranked: Sequence[str], counts: Mapping[str, int]) -> int:
    """How many characters, the frequent ones first, make up FULL_COVERAGE of a text."""
    missing = total = sum(counts.values())
    for taken, character in enumerate(ranked):
        if missing <= (1 - FULL_COVERAGE) * total:
            return taken
        missing -= counts[character]
    return len(ranked)


def train_tokenizer(texts: Iterable[str], language: str, folder: Path, size: int, sentences: int = 1_000_000) -> Path:
    """Learn at most `size` BPE pieces from normalised text; write tokenizer.model and vocab.txt.

    Small vocabularies end in whole words, which suit the 80 ms frames of the encoder. Equal texts give equal bytes,
    in whatever order they come. Raises TrainingError where `size` is too small for the script, see `coverage_of`.
    """
    import sentencepiece

    texts = list(texts)
    coverage = coverage_of(texts, language, size)
    lines = sorted(set(texts))
    if len(lines) > sentences:
        lines.sort(key=lambda line: hashlib.sha256(line.encode()).digest())
        lines = sorted(lines[:sentences])
    unspaced = sum(map(is_unspaced, "".join(lines))) * 2 > sum(map(len, lines))
    options: dict[str, Any] = {
        "model_type": "bpe",
        "character_coverage": 1.0,
        "required_chars": coverage.symbols,
        "normalization_rule_name": "identity",
        # also where a script has no spaces: sentencepiece drops required characters that the text does not hold, unless
        # the text holds one that is not required
        "add_dummy_prefix": True,
        "bos_id": -1,
        "eos_id": -1,
        "pad_id": -1,
        "unk_id": 0,
        "num_threads": 1,
        "max_sentence_length": 65_536,
        "minloglevel": 3,
    }
    if unspaced:
        options["max_sentencepiece_length"] = LONGEST_UNSPACED_PIECE

    def learn(pieces: int) -> bytes:
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, vocab_size=pieces, **options
        )
        return model.getvalue()

    least = len(coverage.symbols) + _SERVICE_PIECES
    with tempfile.TemporaryDirectory() as scratch:
        if coverage.spelling:
            del options["normalization_rule_name"]
            options |= {
                "normalization_rule_tsv": _rules(coverage.spelling, Path(scratch) / "spelling.tsv"),
                "denormalization_rule_tsv": _rules(reading(coverage.spelling), Path(scratch) / "reading.tsv"),
            }
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
    return write_tokenizer(without_paths(best), folder)


def write_tokenizer(model: bytes, folder: Path) -> Path:
    """Write a sentencepiece model as NeMo reads it: tokenizer.model, and its pieces in vocab.txt."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = "".join(f"{_wordpiece(pieces.id_to_piece(index))}\n" for index in range(1, len(pieces)))
    for name, content in (("tokenizer.model", model), ("vocab.txt", vocabulary)):
        write_atomically(folder / name, content)  # every device of a run writes the same at the same time
    return folder / "tokenizer.model"


# What of sentencepiece_model.proto holds places of files; all else stays as it is. sentencepiece's own protobuf classes
# are not used, as their generator must not be newer than the protobuf installed.
_PLACES = """
name: "places.proto"
message_type {
  name: "Model"
  field { name: "pieces" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
  field { name: "trainer" number: 2 type: TYPE_MESSAGE type_name: "Trainer" label: LABEL_OPTIONAL }
  field { name: "normalizer" number: 3 type: TYPE_MESSAGE type_name: "Normalizer" label: LABEL_OPTIONAL }
  field { name: "self_test" number: 4 type: TYPE_BYTES label: LABEL_OPTIONAL }
  field { name: "denormalizer" number: 5 type: TYPE_MESSAGE type_name: "Normalizer" label: LABEL_OPTIONAL }
}
message_type {
  name: "Trainer"
  field { name: "input" number: 1 type: TYPE_STRING label: LABEL_REPEATED }
  field { name: "model_prefix" number: 2 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type { name: "Normalizer" field { name: "rule_file" number: 6 type: TYPE_STRING label: LABEL_OPTIONAL } }
"""


def without_paths(model: bytes) -> bytes:
    """Drop the places of the files that a sentencepiece model was trained from; they differ from run to run.

    Raises ValueError for what is no such model.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory, text_format

    pool = descriptor_pool.DescriptorPool()
    pool.Add(text_format.Parse(_PLACES, descriptor_pb2.FileDescriptorProto()))
    read: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("Model"))()
    try:
        read.ParseFromString(model)
    except message.DecodeError as error:
        raise ValueError(str(error)) from None
    for part, field in read.ListFields():
        if part.message_type is not None:
            for place, _ in field.ListFields():
                field.ClearField(place.name)
    return bytes(read.SerializeToString(deterministic=True))


def _rules(rules: Mapping[str, str], path: Path) -> str:
    """Write replacements as sentencepiece reads them: code points in hexadecimal."""

    def code_points(text: str) -> str:
        return " ".join(f"{ord(character):X}" for character in text)

    lines = [f"{code_points(source)}\t{code_points(target)}\n" for source, target in sorted(rules.items())]
    path.write_text("".join(lines), encoding="ascii")
    return str(path)


def _wordpiece(piece: str) -> str:
    """Spell a piece as NeMo's vocab.txt does: continuations carry '##', word starts nothing."""
    return piece[1:] if piece.startswith("▁") and len(piece) > 1 else f"##{piece}"
