"""Stands in for the training of label models: leaves toy bundles where the real command leaves real ones.

`STUB_LOG` names a folder in which each call leaves a file; `STUB_SHARPNESS` makes the language model better or worse.
"""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

from speech.labels import LabelDescription, write_label_bundle
from tests.toy_labels import write_toy_labels


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    log = Path(os.environ["STUB_LOG"])
    (log / f"{len(list(log.iterdir()))}.json").write_text(json.dumps(spec))
    for kind in spec["kinds"]:
        folder = Path(spec["output"]) / kind
        bundle = write_toy_labels(
            folder / "bundle", kind, ("de", "en"), kind, sharpness=float(os.environ["STUB_SHARPNESS"])
        )
        described = LabelDescription(**{name: getattr(bundle, name) for name in LabelDescription.__dataclass_fields__})
        write_label_bundle(bundle.path, replace(described, parity={"clips": 40, "equal": 1.0}))
        (folder / "checkpoint.nemo").write_bytes(f"{kind}".encode())
        record = {"classes": 2, "steps": 1, "loss": 0.5, "seconds": 0.1, "parameters": 7}
        (folder / "training.json").write_text(json.dumps(record))


main()
