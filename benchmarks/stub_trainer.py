"""Trains nothing, in a second: what `benchmarks/backfill.py` puts in the place of a training.

    python benchmarks/stub_trainer.py RUN.json

It keeps the contract of a training command: reads the specification, checkpoints as it goes, ends on SIGTERM, goes on
where it was killed, and leaves a checkpoint, a real bundle (`tests/toy_bundle.py`) that hears nothing and a record. It
writes down when each process began and ended, so that overlaps can be counted from its own clock.
"""

import hashlib
import json
import os
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

STEPS = 10
DEAF = 2.0  # no tone is as loud: a stub that writes words for speech could have a WER above any gate
STEP_S = float(os.environ.get("STUB_STEP_S", "0.1"))
LOG = "STUB_LOG"  # folder of the records of when each process ran


def main() -> int:
    """Train as specified; see the contract in `speech_assets/defs/processes.py`."""
    began = time.time()
    spec = json.loads(Path(sys.argv[1]).read_text())
    output = Path(spec["output"])
    output.mkdir(parents=True, exist_ok=True)
    record = output / "training.json"
    log = Path(os.environ[LOG]) / f"{spec['name']}-{os.getpid()}.json"
    done = output / "steps.json"
    first = json.loads(done.read_text()) if done.exists() else 0
    log.write_text(json.dumps({"model": spec["name"], "pid": os.getpid(), "began": began, "from_step": first}))
    if not record.exists():
        for step in range(first, STEPS):
            time.sleep(STEP_S)
            done.write_text(json.dumps(step + 1))
        _publish(spec, output, first)
    ended = {"model": spec["name"], "pid": os.getpid(), "began": began, "from_step": first, "ended": time.time()}
    log.write_text(json.dumps(ended))
    return 0


def _publish(spec: dict, output: Path, first: int) -> None:
    from tests.toy_bundle import write_toy_bundle

    digest = hashlib.sha256(b"".join(Path(path).read_bytes() for path in spec["train"])).hexdigest()
    lineage = {"recipe": "stub", "data": {"train": digest}, "base": spec["base"] or ""}
    write_toy_bundle(output / "bundle", spec["language"], name=spec["name"], lineage=lineage, heard_from=DEAF)
    (output / "checkpoint.nemo").write_bytes(digest.encode())
    facts = {"dev_wer": 1.0, "loss": 1.0, "steps": STEPS, "seconds": STEPS * STEP_S, "audio_hours_seen": 0.0}
    (output / "training.json").write_text(json.dumps({**facts, "name": spec["name"], "resumed_from": first}))


if __name__ == "__main__":
    sys.exit(main())
