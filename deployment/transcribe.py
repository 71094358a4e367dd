"""Recordings to transcripts on this machine, without a server: one bundle, one file after the other."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from deployment.promotion.assembly import promotions_of
from deployment.serving.transcription import segments_from_words
from deployment.settings import Settings
from speech.audio.decode import decode_chunks
from speech.bundle import ModelBundle
from speech.recognition.offline import Recognizer
from speech.transcript import Transcript

FORMATS = ("text", "json", "srt", "vtt", "ctm")
CHUNK_S = 30.0  # decoded at once: memory stays bounded on recordings of hours


def champion_bundle(settings: Settings, language: str) -> Path:
    """The folder of the bundle that people put into production for a language, its verdict read again.

    Raises:
        PromotionRefused, GateRefused, LedgerError, RegistryError, BundleError: there is none, it may not be used, or
            its bytes are not those that were approved.
    """
    promotions = promotions_of(settings)
    decision = promotions.releasable(language)
    return promotions.registry.obtain(decision.digest, decision.model, decision.version)


@dataclass(frozen=True)
class Transcriber:
    """A bundle, opened."""

    bundle: ModelBundle
    recognizer: Recognizer

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> "Transcriber":
        """Verify and open a bundle; BundleError when it is not one."""
        bundle = ModelBundle.load(folder)
        return cls(bundle, Recognizer(bundle, threads=threads))

    def transcribe(self, path: Path) -> Transcript:
        """The transcript of a file; AudioError when it is not audio that can be used, OSError when it is not there."""
        with path.open("rb") as audio:
            digest = hashlib.file_digest(audio, "sha256").hexdigest()
            audio.seek(0)
            heard = self.recognizer.transcribe_chunks(decode_chunks(audio, chunk_s=CHUNK_S, name=path.name))
        return Transcript(
            language=self.bundle.language,
            segments=segments_from_words(heard.words),
            confidence=heard.confidence,
            source_digest=digest,
            duration_s=heard.duration_s,
            models={"recognition": self.bundle.name, "bundle": self.bundle.digest},
        )


def written(transcript: Transcript, form: str, recording: str) -> str:
    """A transcript in one of `FORMATS`, ended by a line break; JSON is one line."""
    if form == "json":
        return json.dumps(transcript.to_json(), ensure_ascii=False) + "\n"
    if form == "ctm":
        return transcript.to_ctm(recording)
    return {"srt": transcript.to_srt, "vtt": transcript.to_vtt, "text": lambda: f"{transcript.text}\n"}[form]()
