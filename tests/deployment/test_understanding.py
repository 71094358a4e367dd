"""What a transcript says beside its words, and what is left alone."""

from dataclasses import replace

import numpy as np

from deployment.batch.settings import InferenceSettings
from deployment.batch.stages.understanding import understood
from speech.transcript import Intent, Segment, Transcript, Word
from speech.understanding.intents import IntentModel, Linear

CALL = IntentModel(  # takes what holds "call" for a call, and the word behind it for whom
    language="en",
    intents=Linear(("w call",), ("call", "unknown"), np.array([[30.0, 0.0], [0.0, 4.0]], np.float32)),
    slots=Linear(("-1 call",), ("", "whom"), np.array([[0.0, 2.0], [1.0, 0.0]], np.float32)),
    temperature=1.0,
    threshold=0.5,
    digest="c" * 64,
)


def transcript_of(*said: str, language: str = "en") -> Transcript:
    """A segment a sentence, one a second, each word 0.1 s."""
    segments = []
    for second, sentence in enumerate(said):
        words = [Word(text, second + n / 10, second + n / 10 + 0.1, 0.9) for n, text in enumerate(sentence.split())]
        segments.append(Segment(tuple(words), float(second), second + len(words) / 10))
    return Transcript(
        language=language,
        segments=tuple(segments),
        confidence=0.9,
        source_digest="d" * 64,
        duration_s=float(len(said)),
        model_digests={"recognition": "b" * 64},
    )


def test_written_forms_stand_beside_the_words() -> None:
    said = transcript_of("pay forty two dollars", "")
    made = understood(said, InferenceSettings())
    assert [segment.written for segment in made.segments] == ["pay $42", ""]
    assert made.text == said.text
    assert [(w.text, w.start_s, w.end_s) for w in made.words] == [(w.text, w.start_s, w.end_s) for w in said.words]


def test_a_segment_is_written_in_its_own_language() -> None:
    said = transcript_of("acht euro neunundneunzig")
    other = replace(said, segments=(replace(said.segments[0], language="de"),))
    assert understood(other, InferenceSettings()).segments[0].written == "8,99 Euro"
    assert understood(said, InferenceSettings()).segments[0].written == "acht euro neunundneunzig"


def test_what_a_model_wrote_itself_and_what_nobody_asked_for_is_left_alone() -> None:
    said = transcript_of("Pay forty two dollars, please.")
    assert understood(said, InferenceSettings(), writes=True).segments == said.segments
    assert understood(said, InferenceSettings(written_forms=False)).segments == said.segments


def test_personal_data_is_found_by_written_forms_that_nobody_asked_to_see_and_in_what_a_model_wrote() -> None:
    said = transcript_of("call four one five five five five two six seven one")
    for settings in ({"written_forms": True}, {"written_forms": False}):
        made = understood(said, InferenceSettings(redact=("PHONE",), **settings))
        assert made.text == "call [PHONE]"
        assert made.segments[0].written == ("call [PHONE]" if settings["written_forms"] else None)
    wrote = understood(transcript_of("Call 415-555-2671!"), InferenceSettings(redact=("PHONE",)), writes=True)
    assert wrote.text == "Call [PHONE]"


def test_a_call_is_measured_by_all_its_words_whatever_labels_stand_for() -> None:
    said = transcript_of("call four one five five five five two six seven one", "", "thanks")
    kept, taken = understood(said, InferenceSettings()), understood(said, InferenceSettings(redact=("PHONE",)))
    assert kept.conversation == taken.conversation
    assert kept.conversation is not None
    assert kept.conversation.speakers[0].talk_s == 1.2
    assert understood(transcript_of(), InferenceSettings()).conversation is None


def test_intents_are_told_where_a_model_has_passed_and_hold_nothing_that_was_taken_out() -> None:
    said = transcript_of("call four one five five five five two six seven one", "what a day")
    made = understood(said, InferenceSettings(redact=("PHONE",)), intents={"en": CALL})
    told, nothing = (segment.intent for segment in made.segments)
    assert told == Intent("call", 1.0, {"whom": "[PHONE]"})
    assert nothing is None
    assert made.model_digests == {"recognition": "b" * 64, "intents.en": "c" * 64}
    kept = understood(said, InferenceSettings(), intents={"en": CALL}).segments[0].intent
    assert kept is not None
    assert kept.slots == {"whom": "4155552671"}
    for other in ({}, {"de": CALL}, None):
        without = understood(said, InferenceSettings(), intents=other)
        assert {segment.intent for segment in without.segments} == {None}
        assert without.model_digests == said.model_digests
