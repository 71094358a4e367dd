"""The assets from a recording to a version that waits for a decision, in the order that they are made.

A group holds the assets that are made together for the same partition: quarter and language, or a language alone where
`LANGUAGE` is in the name.
"""

CORPUS = ("recordings", "normalized_audio", "utterances")
BASE_CORPUS = ("base_corpus",)  # the first quarters only
LANGUAGE_BASE = ("benchmark_set", "base_model")
LANGUAGE_INTENTS = ("intent_model",)
LABEL_MODELS = ("speaker_model", "language_id_model")  # of all languages, and of no partition
MODELS = ("finetuned_model", "model_bundle")
JUDGEMENT = ("evaluation", "verdict", "registered_model")
INFERENCE = (
    "incoming_audio",
    "normalized_recordings",
    "speech_segments",
    "speaker_turns",
    "spoken_language",
    "recognized_segments",
    "transcripts",
    "published_transcripts",
    "review_tasks",
    "hour_measures",
)
