"""Training of intent models: log-linear weights from labelled sentences, calibrated on ways to say it left out.

Ways to say an intent are few, so none is spared for calibration alone: each is once left out of a training, and what
those trainings say of it is what temperature and threshold are fitted on. Nothing is drawn at random: the same
sentences give the same model.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from speech.corpus.intents import LabelledSentence, digest_of, folds, split
from speech.settings import Section
from speech.understanding.intents import UNKNOWN, IntentModel, Linear, features_of, word_features

WEIGHT_DIGITS = 4  # what sums in another order is equal
TEMPERATURES = (0.05, 20.0)  # searched
MOST_ITERATIONS = 500
FOLDS = 4
THRESHOLDS = tuple(step / 20 for step in range(1, 20))


class IntentTrainingError(Exception):
    """Sentences from which no model can be learnt; the message says what is missing."""


class IntentSettings(Section):
    """What intent models learn from, as `[intents]` in soundstage.toml."""

    sentences: dict[str, str] = Field(
        default_factory=dict,
        description='By language the file of labelled sentences, JSON lines or CSV, e.g. {"fr" = "calls.jsonl"}. '
        "Without one English and German have those of the embedded corpus, and other languages no intents.",
    )
    penalty: float = Field(
        0.1, gt=0, description="Of large weights (inverse of scikit-learn's C): more where sentences are few or wrong."
    )


def train(sentences: Sequence[LabelledSentence], language: str, settings: IntentSettings) -> IntentModel:
    """The model of a language's sentences, learnt from all but those that are kept to judge by.

    Raises:
        IntentTrainingError: there are too few intents, or ways to say them, to leave any out.
    """
    learnt, _ = split(sentences)
    counts = Counter(intent for intent, _ in {each.way for each in learnt})
    if sum(count > 1 for count in counts.values()) < 2 or max(counts.values()) < FOLDS:
        raise IntentTrainingError(
            f"labelled sentences in '{language}': {len(learnt)}, of {len(counts)} intents; at least two intents are "
            f"needed that are said in two ways, and {FOLDS} ways to say one of them: add some, with `unknown` ones"
        )
    intents = _intents(learnt, settings.penalty)
    heard: list[LabelledSentence] = []
    logits = []
    for ways in folds(learnt, FOLDS):
        others = _intents([each for each in learnt if each.way not in ways], settings.penalty)
        places = [others.labels.index(label) if label in others.labels else -1 for label in intents.labels]
        for each in learnt:
            if each.way in ways:
                told = np.append(others.logits(features_of(each.words, each.before)), -np.inf)
                heard.append(each)
                logits.append(told[places])
    temperature, threshold = _calibrated(intents.labels, heard, np.array(logits))
    return IntentModel(
        language=language,
        intents=intents,
        slots=_slots(learnt, settings.penalty),
        temperature=temperature,
        threshold=threshold,
        lineage={"sentences": digest_of(sentences), "learnt": len(learnt), "penalty": settings.penalty},
    )


def _intents(learnt: Sequence[LabelledSentence], penalty: float) -> Linear:
    features = [features_of(each.words, each.before) for each in learnt]
    return _fitted(features, [each.intent for each in learnt], penalty)


def _slots(learnt: Sequence[LabelledSentence], penalty: float) -> Linear | None:
    features: list[dict[str, float]] = []
    tags: list[str] = []
    for sentence in learnt:
        features += [word_features(sentence.words, place, sentence.intent) for place in range(len(sentence.words))]
        tags += sentence.tags
    return _fitted(features, tags, penalty) if len(set(tags)) > 1 else None


def _fitted(features: Sequence[Mapping[str, float]], labels: Sequence[str], penalty: float) -> Linear:
    """Weights by multinomial logistic regression; every label counts alike, however many sentences it has."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    terms = sorted({term for each in features for term in each})
    places = {term: place for place, term in enumerate(terms)}
    columns = [places[term] for each in features for term in each]
    rows = np.repeat(np.arange(len(features)), [len(each) for each in features])
    values = [value for each in features for value in each.values()]
    matrix = csr_matrix((values, (rows, columns)), shape=(len(features), len(terms)))
    fit = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=MOST_ITERATIONS)
    fit.fit(matrix, labels)
    weights, bias = fit.coef_, fit.intercept_
    if len(fit.classes_) == 2:  # told by the second's weights alone
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    table = np.round(np.vstack([weights.T, bias]), WEIGHT_DIGITS).astype(np.float32)
    return Linear(tuple(terms), tuple(map(str, fit.classes_)), table)


def _calibrated(labels: Sequence[str], heard: Sequence[LabelledSentence], logits: np.ndarray) -> tuple[float, float]:
    """The temperature under which what was heard is likeliest, and the threshold that serves it best.

    The threshold is where most ways end rightly: those with an intent told it, the others told none. `logits`
    [sentences, labels] are of models that did not learn the sentence; each way counts alike.
    """
    from scipy.optimize import minimize_scalar

    right = np.array([labels.index(each.intent) for each in heard])
    ways = [each.way for each in heard]
    weights = np.array([1 / ways.count(way) for way in ways])
    told = np.isfinite(logits[np.arange(len(heard)), right])  # by a model that knows the intent

    def loss(log_temperature: float) -> float:
        scaled = logits[told] / np.exp(log_temperature)
        losses = np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(scaled)), right[told]]
        return float(np.average(losses, weights=weights[told]))

    found: Any = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    temperature = round(float(np.exp(found.x)), WEIGHT_DIGITS)
    scaled = logits / temperature
    sure = np.exp(scaled.max(axis=1) - np.logaddexp.reduce(scaled, axis=1))
    best = scaled.argmax(axis=1)
    unknown = labels.index(UNKNOWN) if UNKNOWN in labels else -1

    def share_right(threshold: float) -> float:
        answers = np.where(sure >= threshold, best, unknown)
        return float(np.average(answers == right, weights=weights))

    threshold = max(THRESHOLDS, key=lambda threshold: (round(share_right(threshold), 6), -threshold))
    return temperature, threshold
