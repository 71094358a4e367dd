"""Recordings to transcripts on this machine, without a server: one bundle, one file after the other."""

import json
from pathlib import Path

from deployment.promotion.decisions import Promotions
from deployment.serving.transcription import transcript_of
from deployment.settings import Settings
from speech.recognition.offline import Recognizer
from speech.transcript import Transcript


def champion_bundle(settings: Settings, language: str) -> Path:
    """The folder of the bundle that people put into production for a language, its verdict read again.

    Raises:
        PromotionRefused, GateRefused, LedgerError, RegistryError, BundleError: there is none, it may not be used, or
            its bytes are not those that were approved.
    """
    promotions = Promotions.of(settings, settings.objects)
    decision = promotions.releasable(language)
    return promotions.registry.obtain(decision.digest, decision.model, decision.version)


def transcribe_file(path: Path, recognizer: Recognizer) -> Transcript:
    """The transcript of a file; AudioError when it is not audio that can be used, OSError when it is not there."""
    with path.open("rb") as audio:
        return transcript_of(audio, path.name, recognizer, recognizer.bundle.name)


def written(transcript: Transcript, form: str, recording: str) -> str:
    """A transcript as text, json, amazon.json, srt, vtt, ctm or rttm, ended by a line break; JSON is one line."""
    if form == "json":
        return json.dumps(transcript.to_json(), ensure_ascii=False) + "\n"
    if form == "amazon.json":
        return json.dumps(transcript.to_amazon(recording), ensure_ascii=False) + "\n"
    if form in ("ctm", "rttm"):
        return transcript.to_ctm(recording) if form == "ctm" else transcript.to_rttm(recording)
    return {"srt": transcript.to_srt, "vtt": transcript.to_vtt, "text": lambda: f"{transcript.text}\n"}[form]()
