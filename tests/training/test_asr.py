"""What a training run rests on: its recipe, its text units, the order of its data, its checkpoints."""

import datetime as dt
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest

from speech.corpus.manifest import Utterance
from speech.text import charset
from tests.training.toy_corpus import write_toy_corpus
from training.asr import fit
from training.batches import AudioCache, Augmentation, BatchMaker, Corpus, Example, StepSampler, epoch_of
from training.data import SplitRows, read_split, require_disjoint_speakers
from training.loop import load_state, rate_of, save_state, word_errors
from training.recipe import AugmentationSettings, JoinSettings, TrainingError, load_recipe, recipe_names
from training.run import drop_foreign_checkpoints
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    rows = read_split([write_toy_corpus(tmp_path_factory.mktemp("toy"))], "train", "en")
    durations = [row.duration_s or 0.0 for row in rows.utterances]
    tokens = [[len(word) for word in text.split()] for text in rows.texts]
    return Corpus(list(rows.utterances), list(rows.texts), durations, AudioCache(2**24), tokens)


@pytest.mark.parametrize("name", ["tiny", "small", "finetune"])
def test_every_shipped_recipe_is_valid(name: str) -> None:
    """A recipe that does not load would be found by the first person to choose it."""
    assert name in recipe_names()
    assert load_recipe(name).name == name


def test_an_override_reaches_a_nested_field_and_leaves_the_rest() -> None:
    """A quarter's settings change single fields without copying a recipe."""
    plain = load_recipe("tiny")
    changed = load_recipe("tiny", {"optimizer.learning_rate": 0.01, "max_steps": 7, "batch": {"seconds": 5}})
    assert (changed.optimizer.learning_rate, changed.max_steps, changed.batch.seconds) == (0.01, 7, 5)
    assert changed.model == plain.model
    assert changed.batch.utterances == plain.batch.utterances


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        ("huge", {}, "choose one of finetune, small, tiny"),
        ("tiny", {"learning_rate": 1}, "learning_rate"),
        ("tiny", {"max_steps": 0}, "max_steps"),
        ("tiny", {"model.heads": 5}, "multiple of heads"),
        ("missing.yaml", {}, "cannot be read"),
    ],
)
def test_a_wrong_recipe_is_refused_with_what_is_wrong(recipe: str, overrides: dict[str, object], said: str) -> None:
    """A misspelt setting that is ignored trains another model than the one asked for."""
    with pytest.raises(TrainingError, match=said):
        load_recipe(recipe, overrides)


def test_the_learning_rate_rises_then_falls_to_its_final_value() -> None:
    """The rate is a function of the step alone: a resumed run goes on where it was."""
    recipe = load_recipe("tiny", {"max_steps": 100, "optimizer.warmup_steps": 10})
    rates = [rate_of(step, recipe) for step in range(101)]
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1
    assert rates[-1] == recipe.optimizer.final_share


def test_the_tokenizer_is_the_same_whatever_the_order_of_its_text(tmp_path: Path) -> None:
    """Two trainings on the same data must agree on what an output number means."""
    texts = ["play the news", "stop", "play some jazz", "yes please"] * 3
    first = train_tokenizer(texts, "en", tmp_path / "a", 64).read_bytes()
    assert train_tokenizer(texts[::-1], "en", tmp_path / "b", 64).read_bytes() == first


@pytest.mark.parametrize("texts", [["yes"], ["yes no", "no yes yes"], ["a"]])
def test_a_vocabulary_larger_than_the_text_supports_is_cut_not_refused(tmp_path: Path, texts: list[str]) -> None:
    """A new language begins with little text, and sentencepiece refuses sizes beyond what that supports."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_proto=train_tokenizer(texts, "en", tmp_path, 1000).read_bytes())
    assert len(pieces) < 1000
    for word in {word for text in texts for word in text.split()}:
        assert len(pieces.encode(word)) == 1, "frequent words of a small corpus are single pieces"


def test_every_character_of_the_language_has_a_piece(tmp_path: Path) -> None:
    """A letter that the training text happened not to hold must not make a fine-tune impossible."""
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(
        model_proto=train_tokenizer(["yes", "no"], "en", tmp_path, 64).read_bytes()
    )
    for character in charset("en") - {" "}:
        assert pieces.unk_id() not in pieces.encode(character), character


def test_an_epoch_holds_every_utterance_once_and_joins_only_one_speaker(corpus: Corpus) -> None:
    """Joined examples of two speakers would teach a model that voices change in mid-sentence."""
    examples = epoch_of(corpus, 3, 0, JoinSettings(probability=0.8, parts=4, longest_s=6.0))
    assert sorted(part for example in examples for part in example.parts) == list(range(len(corpus.utterances)))
    assert any(len(example.parts) > 1 for example in examples)
    for example in examples:
        assert len({corpus.utterances[part].speaker for part in example.parts}) == 1
        assert example.duration_s <= 6.0


def test_the_same_seed_gives_the_same_batches_and_a_later_start_their_rest(corpus: Corpus) -> None:
    """Resuming is going on with the very batch that would have come: this is what makes a kill harmless."""
    recipe = load_recipe("tiny", {"batch.seconds": 6})
    maker = BatchMaker(corpus, recipe.augmentation, seed=5)

    def batches(start: int, count: int) -> list[dict[str, object]]:
        order = iter(StepSampler(corpus, recipe.batch, recipe.augmentation.join, seed=5, start=start))
        return [maker[next(order)] for _ in range(count)]

    whole, rest = batches(0, 12), batches(7, 5)
    for expected, actual in zip(whole[7:], rest, strict=True):
        assert np.array_equal(expected["audio"], actual["audio"])
        assert np.array_equal(expected["tokens"], actual["tokens"])
    assert not all(np.array_equal(a["audio"], b["audio"]) for a, b in zip(whole[:5], rest, strict=True))


def test_two_devices_share_the_data_and_never_a_batch(corpus: Corpus) -> None:
    """Devices that see the same batch do the same work twice."""
    recipe = load_recipe("tiny", {"batch.seconds": 6})

    def names(rank: int) -> list[list[str]]:
        order = iter(StepSampler(corpus, recipe.batch, recipe.augmentation.join, seed=0, rank=rank, world_size=2))
        return [[example.id for example in next(order)[1]] for _ in range(6)]

    first, second = names(0), names(1)
    assert not {name for batch in first for name in batch} & {name for batch in second for name in batch}


def test_short_utterances_come_first_in_batches_of_about_one_length_and_each_as_often() -> None:
    """What is padded costs as much as what is heard: batches drawn from all lengths were three quarters silence."""
    recipe = load_recipe("tiny")
    durations = np.random.default_rng(0).uniform(0.6, 6.0, 1_000).tolist()
    rows = [Utterance(f"u{n}", "a", None, "a", "s", "en", "d", dt.date(2024, 1, 1)) for n in range(1_000)]
    corpus = Corpus(rows, [], durations, AudioCache(0))

    def graded(step_s: float, share: float) -> list[tuple[int, list[Example]]]:
        """The batches of the last share of the steps until utterances of any length occur."""
        sampler = StepSampler(corpus, recipe.batch, recipe.augmentation.join, 0, 0, 0, 1, 1.2, step_s)
        sampler.start = round((1 - share) * sampler.graded_steps)
        return list(itertools.islice(iter(sampler), sampler.graded_steps - sampler.start))

    heard = padded = 0.0
    for step, batch in graded(0.01, 1.0):
        longest = max(example.duration_s for example in batch)
        assert longest <= 1.2 + 0.01 * step
        heard += sum(example.duration_s for example in batch)
        padded += longest * len(batch)
    assert padded < 1.25 * heard
    drawn = [example.parts[0] for _, batch in graded(0.0002, 0.02) for example in batch]
    thirds = [np.isin(drawn, third).sum() for third in np.array_split(np.argsort(durations), 3)]
    assert max(thirds) < 1.6 * min(thirds)  # buckets drawn alike would make it six


def test_augmentation_is_drawn_from_the_example_and_stays_within_full_scale() -> None:
    """A worker process must draw what the training process would; clipping would be a fault of our own."""
    loud = np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    settings = AugmentationSettings(
        speed_probability=1, noise_probability=1, telephone_probability=1, gain_db=(6, 6), noise_snr_db=(0, 5)
    )
    first, second = Augmentation(settings, 1), Augmentation(settings, 1)
    assert np.array_equal(first(loud, "x-0"), second(loud, "x-0"))
    assert not np.array_equal(first(loud, "x-0")[:9000], first(loud, "x-1")[:9000])
    assert np.abs(first(loud, "x-0")).max() <= 1
    assert first(np.zeros(800, np.float32), "silence").max() == 0


def test_the_asked_share_of_examples_is_sound_without_words() -> None:
    """Without them a model writes words for noise; too many would leave no speech to learn from."""
    speech = np.sin(np.arange(16_000) * 0.3).astype(np.float32)
    augment = Augmentation(AugmentationSettings(nonspeech_probability=0.25), 1)
    drawn = [augment.nonspeech(speech, f"x-{number}") for number in range(400)]
    sounds = [sound for sound in drawn if sound is not None]
    assert 70 <= len(sounds) <= 130
    assert all(len(sound) == len(speech) and np.abs(sound).max() <= 1 for sound in sounds)
    levels_db = [20 * np.log10(np.sqrt(np.mean(sound**2))) for sound in sounds]
    assert min(levels_db) < -60
    assert max(levels_db) > -20
    first = next(number for number, sound in enumerate(drawn) if sound is not None)
    assert np.array_equal(augment.nonspeech(speech, f"x-{first}"), drawn[first])
    silence = [augment.nonspeech(np.zeros(800, np.float32), f"x-{number}") for number in range(400)]
    assert all(np.isfinite(sound).all() for sound in silence if sound is not None)
    assert Augmentation(AugmentationSettings(nonspeech_probability=0), 1).nonspeech(speech, "x-0") is None


def test_audio_beyond_the_cache_is_read_again_and_equal(tmp_path: Path) -> None:
    """A corpus larger than memory trains, only slower."""
    rows = read_split([write_toy_corpus(tmp_path)], "train", "en").utterances
    small, large = AudioCache(0), AudioCache(2**24)
    large.fill(rows)
    assert small.bytes == 0 < large.bytes
    for row in rows[:3]:
        assert np.array_equal(small.samples(row), large.samples(row))


def test_unreadable_audio_names_the_utterance(tmp_path: Path) -> None:
    """Among a hundred thousand files, "format not recognised" helps nobody."""
    manifest = write_toy_corpus(tmp_path)
    rows = read_split([manifest], "train", "en").utterances
    (tmp_path / "s0-0.flac").write_bytes(b"not audio")
    (tmp_path / "s0-1.flac").unlink()
    for row, said in ((rows[0], "cannot be read"), (rows[1], "is missing")):
        with pytest.raises(TrainingError, match=f"{row.id}.*{said}"):
            AudioCache(0).samples(row)


def test_a_speaker_in_both_train_and_dev_is_refused(tmp_path: Path) -> None:
    """A dev WER of known voices flatters, and the best weights would be chosen by it."""
    manifest = write_toy_corpus(tmp_path)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[-1]["speaker"] = lines[0]["speaker"]
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match="speaker-0"):
        require_disjoint_speakers(read_split([manifest], "train", "en"), read_split([manifest], "dev", "en"))


def test_rows_without_text_or_of_another_language_are_counted_not_learnt(tmp_path: Path) -> None:
    """What is left out is said, so that a number that shrinks is noticed."""
    manifest = write_toy_corpus(tmp_path)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    lines[0]["text"], lines[1]["language"] = "...", "de"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = read_split([manifest], "train", "en")
    assert dict(rows.left_out) == {"no text": 1, "other language": 1}
    assert len(rows.utterances) == 22


@pytest.mark.parametrize(
    ("language", "said"),
    [
        ("de", "No train rows in 'de' in {manifest}, but 24 in 'en': name their language, or manifests in this one."),
        ("English", "'English' is not a language: write its tag, such as en or de."),
        ("english-us", "'english-us' is not a language: write its tag, such as en or de."),
    ],
)
def test_a_manifest_of_another_language_is_told_by_the_language_that_it_has(
    tmp_path: Path, language: str, said: str
) -> None:
    """More speakers would not help."""
    manifest = write_toy_corpus(tmp_path)
    with pytest.raises(TrainingError, match=re.escape(said.format(manifest=manifest))):
        read_split([manifest], "train", language)


def test_what_is_said_of_a_split_without_rows_is_why_they_were_left_out(tmp_path: Path) -> None:
    manifest = write_toy_corpus(tmp_path)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    for line in lines:
        line["text"] = "..."
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(TrainingError, match="No train rows with words in .*: none of its 24 transcripts has a word"):
        read_split([manifest], "train", "en")
    with pytest.raises(TrainingError, match="none of its 6 speakers is in the test split; add speakers"):
        read_split([manifest], "test", "en")


def test_a_torn_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    """A disk that loses the end of the newest file costs minutes, not the run."""
    import torch

    for step in (10, 20, 30):
        save_state(tmp_path, {"step": step, "weights": torch.full((1000,), float(step))})
    newest = sorted(tmp_path.glob("step-*.pt"))
    assert len(newest) == 2, "older checkpoints are dropped"
    newest[-1].write_bytes(newest[-1].read_bytes()[:-900])
    state = load_state(tmp_path)
    assert state is not None
    assert state["step"] == 20


def test_a_damaged_checkpoint_is_never_gone_on_from(tmp_path: Path) -> None:
    """A flipped bit makes other weights, which nobody would see again: torch itself reads them without a word."""
    import torch

    saved = {"step": 20, "weights": {"w": torch.arange(20.0)}, "history": [{"step": 10, "wer": 0.5}], "loss": None}
    save_state(tmp_path, {"step": 10})
    newest = save_state(tmp_path, saved)
    whole = newest.read_bytes()
    said: list[str] = []
    found = load_state(tmp_path, said.append)
    assert found is not None
    assert torch.equal(found["weights"]["w"], torch.arange(20.0))
    assert said.pop() == "going on at step 20"
    for place in range(0, len(whole), 7):
        newest.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        assert (load_state(tmp_path, said.append) or {})["step"] == 10, f"byte {place} of {len(whole)} is another"
    assert set(said) == {
        "step-000000020.pt is passed over (its bytes are not those that were written); going on at step 10"
    }
    (tmp_path / "step-000000010.pt").write_bytes(b"")
    assert load_state(tmp_path, said.append) is None
    assert said[-1].endswith("starting from the beginning")


def test_a_run_goes_on_from_its_own_checkpoints_alone(tmp_path: Path) -> None:
    """Weights of another recipe would be trained on as if they were its own."""
    folder = tmp_path / "checkpoints"
    for fingerprint, kept in (("a", 0), ("a", 1), ("b", 0)):
        drop_foreign_checkpoints(folder, fingerprint, None)
        assert len(list(folder.glob("step-*.pt"))) == kept
        save_state(folder, {"step": 10})


def test_word_errors_add_up_over_batches() -> None:
    """Devices and batches report counts; rates of parts cannot be averaged."""
    assert word_errors(["yes no", "stop"], ["yes", "stop stop"], "en") == {
        "word_edits": 2,
        "words": 3,
        "character_edits": 3 + 5,
        "characters": 10,
    }


def test_the_dev_errors_of_a_script_without_spaces_are_those_of_its_characters() -> None:
    """Whole sentences as words are all wrong until the last character is right: such a score chooses no checkpoint."""
    counts = word_errors(["今日は晴れ", "東京"], ["今日 は", "東京"], "ja")
    assert (counts["word_edits"], counts["words"]) == (2, 7)
    assert (counts["character_edits"], counts["characters"]) == (2, 7)


def test_what_a_script_needs_is_said_before_audio_is_read_or_nemo_imported(tmp_path: Path) -> None:
    """A refusal that comes after an hour of decoding is hardly better than one after the training."""
    characters = "".join(chr(0x4E00 + n) for n in range(1_500))
    texts = tuple(characters[n : n + 15] for n in range(0, 1_500, 15))
    rows = tuple(
        Utterance(
            id=str(n), audio=str(tmp_path / "none.flac"), duration_s=3.0, text=text, speaker="s", language="zh",
            domain="x", recorded_at=dt.date(2024, 1, 1), digest="", split="train",
        )
        for n, text in enumerate(texts)
    )  # fmt: skip
    split = SplitRows(rows, texts, {}, {})
    with pytest.raises(TrainingError, match=r"vocabulary_size 1,502 covers"):
        fit(load_recipe("tiny"), split, split, language="zh", checkpoints=tmp_path)
    said: list[str] = []
    with pytest.raises(TrainingError, match=r"none\.flac"):
        fit(
            load_recipe("tiny", {"tokenizer.vocabulary_size": 1_490}), split, split, language="zh",
            checkpoints=tmp_path, report=lambda progress: said.append(progress.finding),
        )  # fmt: skip
    assert any("1,500 distinct characters" in finding for finding in said)
