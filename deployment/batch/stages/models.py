"""The networks that stages listen with."""

from collections.abc import Mapping
from typing import Any

from speech.bundle import ModelBundle
from speech.labels import Kind, LabelBundle, LabelNetwork
from speech.recognition.offline import Recognizer
from speech.store.objects import Objects
from speech.vad import SpeechDetector

BATCH = 16  # stretches that are handed to a worker together


class Models:
    """The networks of the stages, each opened once in a process, when it is first asked for."""

    def __init__(
        self,
        objects: Objects,
        bundles: Mapping[str, ModelBundle],
        labels: Mapping[Kind, LabelBundle] | None = None,
    ) -> None:
        """`bundles`: the champion of each language that has one; `labels`: the label models that there are."""
        self.objects, self.bundles, self.labels = objects, bundles, labels or {}
        self.detector = SpeechDetector()
        self._recognizers: dict[str, Recognizer] = {}
        self._label_networks: dict[Kind, LabelNetwork] = {}

    def __reduce__(self) -> tuple[Any, ...]:  # open networks do not travel to another process
        return type(self), (self.objects, self.bundles, self.labels)

    def recognizer(self, language: str) -> Recognizer:
        """Of the champion of a language, which has to be there."""
        if language not in self._recognizers:
            # One stretch a run of the network: sums are then in the same order whatever else is in the hour.
            self._recognizers[language] = Recognizer(self.bundles[language], max_batch=1)
        return self._recognizers[language]

    def label_network(self, kind: Kind) -> LabelNetwork:
        """Of the label model of a kind, which has to be there."""
        if kind not in self._label_networks:
            self._label_networks[kind] = LabelNetwork(self.labels[kind])
        return self._label_networks[kind]
