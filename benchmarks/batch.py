"""An hour of audio in many files through the hourly assets: how fast each stage is, and what the graph adds to them.

    python benchmarks/batch.py [--minutes 60] [--files 60] [--workers N] [--home FOLDER]

The recordings are utterances of the embedded corpus joined with pauses, in five formats, and are heard by the champions
that `make demo` left in its data store (copied, so that it stays as it is). Printed are the seconds of each stage and
how many times faster than the audio it is (RTFx), once as the assets of a run in Dagster, and once as the bare stages
over a pool whose models are warm. The bar is what the graph may cost beside the stages' own work.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from bars import Bar, end

ROOT = Path(__file__).parents[1]
OVERHEAD_BAR = 1.15
PAUSE_S = 0.8
FORMATS = ("wav", "flac", "mp3", "opus", "m4a")
KEPT = ("bundles", "ledger", "verdicts", "mlflow", "launchers")  # of the demo's data store
SETTINGS = """
home = "store"
languages = ["en"]
first_quarter = "2024-01"
[registry]
tracking_uri = "{tracking}"
[inference]
first_hour = "2026-01-01-00"
workers = {workers}
"""


def write_recordings(folder: Path, files: int, seconds: float) -> float:
    """So many recordings of about so many seconds each; returns the seconds of all."""
    from speech.corpus.synthetic import Voicebox, encoded, speaker_of

    box = Voicebox()
    sentences = ("please tell me how the weather will be", "transfer twenty dollars to my account", "call maria today")
    said = [
        box.say(sentence, speaker_of(f"voice {number}", "en"), 16_000) for number in range(12) for sentence in sentences
    ]
    box.close()
    draw, pause, all_s = np.random.default_rng(0), np.zeros(round(PAUSE_S * 16_000), np.float32), 0.0
    (folder / "en").mkdir(parents=True)
    for number in range(files):
        pieces: list[np.ndarray] = [pause]
        while sum(map(len, pieces)) < seconds * 16_000:
            pieces += [said[draw.integers(len(said))], pause]
        audio = np.concatenate(pieces)
        audio = (audio + draw.normal(0, 0.001, len(audio))).astype(np.float32)
        form = FORMATS[number % len(FORMATS)]
        (folder / "en" / f"{number:03}.{form}").write_bytes(encoded(0.5 * audio / np.abs(audio).max(), 16_000, form))
        all_s += len(audio) / 16_000
    return all_s


def graph(workspace: Any, hour: str) -> dict[str, float]:
    """Seconds of each asset in one run, and of the run."""
    import dagster as dg

    from speech_assets.definitions import build

    job = build(workspace.settings).resolve_job_def("transcribe_hour")
    took: dict[str, float] = {}
    with dg.DagsterInstance.ephemeral() as instance:
        began = time.monotonic()
        result = job.execute_in_process(
            partition_key=hour,
            instance=instance,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
        took["the run"] = time.monotonic() - began
        for step in instance.get_run_step_stats(result.run_id):
            took[step.step_key] = step.end_time - step.start_time
    return took


def stages(workspace: Any, hour: str, workers: int) -> dict[str, float]:
    """Seconds of the stages alone, over a pool in which every model is open."""
    from deployment.batch.engine import Pool
    from deployment.batch.stages.models import Models
    from deployment.batch.stages.normalization import normalized
    from deployment.batch.stages.recognition import batches, pieces_of, recognized
    from deployment.batch.stages.speech import speech_in
    from speech_assets.defs.inference.recognition import champion

    heard_by = champion(workspace, "en")
    assert heard_by is not None
    kept, bundles, took = workspace.hour(hour), {"en": heard_by}, {}
    arrivals, recordings, settings = kept.arrivals(), kept.recordings(), workspace.settings.inference
    sounds = [sound for row in recordings for sound in row.sounds]
    pieces = pieces_of(recordings, kept.languages(), {choice.spoken: choice for choice in kept.chosen()})
    with tempfile.TemporaryDirectory() as folder, Pool(Models(workspace.objects, bundles), workers) as pool:
        work: tuple[tuple[str, Any, Sequence[Any]], ...] = (
            ("normalized_recordings", partial(normalized, folder=Path(folder), settings=settings), arrivals),
            ("speech_segments", partial(speech_in, settings=settings.vad), sounds),
            ("recognized_segments", recognized, batches(pieces)),
        )
        for name, stage, items in work:
            list(pool.each(stage, items[: 2 * workers]))  # opens what it needs
            began = time.monotonic()
            list(pool.each(stage, items))
            took[name] = time.monotonic() - began
    return took


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a bar falls short, 2 where there is no champion to hear with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--home", type=Path, default=ROOT / ".soundstage", help="data store with a champion for 'en'")
    options = parser.parse_args(arguments)
    if not (options.home / "ledger" / "en").is_dir():
        print(f"there is no champion for 'en' in {options.home}: run `make demo` first, or name another --home")
        return 2
    with tempfile.TemporaryDirectory(prefix="batch-") as name:
        folder = Path(name)
        (folder / "store").mkdir()
        for kept in KEPT:
            if (options.home / kept).exists():
                shutil.copytree(options.home / kept, folder / "store" / kept)
        tracking = f"sqlite:///{folder}/store/mlflow/mlflow.db"
        settings = folder / "soundstage.toml"
        settings.write_text(SETTINGS.format(workers=options.workers, tracking=tracking))
        os.environ["SOUNDSTAGE_CONFIG"] = str(settings)
        from deployment.batch.arrivals import hours_with_arrivals, receive
        from deployment.settings import Settings
        from speech_assets.defs.resources import Workspace

        workspace = Workspace(Settings.load())
        audio_s = write_recordings(folder / "uploads", options.files, 60 * options.minutes / options.files)
        time.sleep(3)  # uploads that are just being written are left for later
        receive(folder / "uploads", workspace.objects, ("en",))
        (hour,) = hours_with_arrivals(workspace.objects)
        assets = graph(workspace, hour)
        alone = stages(workspace, hour, options.workers)
        words = sum(len(transcript.words) for transcript in workspace.hour(hour).transcripts())
    print(f"{audio_s / 3600:.2f} h of audio in {options.files} files, {options.workers} workers, {words:,} words\n")
    print(f"{'':24} {'in the run, s':>14} {'RTFx':>8} {'alone, s':>10} {'RTFx':>8}")
    for asset, took_s in assets.items():
        own_s = alone.get(asset)
        beside = f"{own_s:10.2f} {audio_s / own_s:8.0f}" if own_s else ""
        print(f"{asset:24} {took_s:14.2f} {audio_s / took_s:8.0f} {beside}")
    ratio = assets["the run"] / sum(alone.values())
    print(json.dumps({"audio_s": audio_s, "run_s": assets["the run"], "stages_s": sum(alone.values())}))
    return end([Bar("the run, times its stages' own work", ratio, OVERHEAD_BAR)])


if __name__ == "__main__":
    sys.exit(main())
