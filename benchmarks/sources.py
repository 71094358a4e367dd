"""Twelve quarters from one large manifest: how often it is read, what `recordings` costs, and how much memory it takes.

    python benchmarks/sources.py [--rows 1000000] [--home FOLDER]

A NeMo manifest of many rows over twelve quarters is written to the local disk; its rows are stretches of a few real
recordings. The asset `recordings` is materialised for each quarter through Dagster, in this process. Printed are, for
each quarter, its rows, the CPU time that it took, how often the manifest had been read to then, and the highest memory
that the process had taken. Memory may grow with the rows of a quarter, which are handed on together, and not with those
of the source: a process of its own runs a tenth of the rows, and the difference is counted by the rows of a quarter.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from bars import Bar, end

FIRST_YEAR, QUARTERS = 2022, 12
FILES, FILE_S = 8, 60.0  # recordings that the rows are stretches of
SPEAKERS = 5_000
CPU_BAR_S = 60.0
MEMORY_BAR_KIB = 2.0  # for a row of a quarter: an utterance with its texts, and the line that it is written as
WORDS = "we would like to talk about the weather of today and of the days that come after it".split()


def quarters() -> list[str]:
    """Keys of the quarters."""
    return [f"{FIRST_YEAR + n // 4}-{n % 4 * 3 + 1:02d}" for n in range(QUARTERS)]


def write_source(folder: Path, rows: int) -> Path:
    """A manifest of `rows` stretches of a few recordings, each in a random quarter."""
    folder.mkdir(parents=True)
    chance, noise = random.Random(0), np.random.default_rng(0)
    for number in range(FILES):
        soundfile.write(folder / f"{number}.flac", noise.normal(0, 0.1, round(FILE_S * 16_000)), 16_000)
    keys = quarters()
    with (folder / "manifest.jsonl").open("w") as file:
        for number in range(rows):
            row = {
                "id": f"utterance-{number:08d}",
                "audio_filepath": f"{number % FILES}.flac",
                "offset": round(chance.uniform(0, FILE_S - 5), 3),
                "duration": 3.2,
                "text": " ".join(chance.choices(WORDS, k=10)),
                "speaker": f"speaker-{chance.randrange(SPEAKERS)}",
                "date": f"{chance.choice(keys)}-15",
            }
            file.write(json.dumps(row) + "\n")
    return folder / "manifest.jsonl"


def run(home: Path, rows: int) -> tuple[int, float]:
    """Materialise `recordings` for each quarter, and print it; how often the source was read, and CPU seconds."""
    manifest = write_source(home / "source", rows)
    settings = home / "soundstage.toml"
    settings.write_text(
        f'home = "store"\nlanguages = ["en"]\nfirst_quarter = "{quarters()[0]}"\n'
        f'[[sources]]\nkind = "nemo"\npath = "{manifest}"\n'
    )
    os.environ["SOUNDSTAGE_CONFIG"] = str(settings)
    import dagster as dg

    from deployment.settings import Settings
    from speech.corpus import index
    from speech_assets.definitions import build

    readings = 0
    importer = index.IMPORTERS["nemo"]

    def counted(*arguments: Any) -> Iterator[Any]:
        nonlocal readings
        readings += 1
        yield from importer(*arguments)

    index.IMPORTERS = {**index.IMPORTERS, "nemo": counted}
    job = build(Settings.load()).resolve_implicit_global_asset_job_def()
    print(f"{'quarter':8} {'rows':>9} {'CPU s':>7} {'readings':>9} {'peak MiB':>9}")
    in_all, kept = 0.0, 0
    with dg.DagsterInstance.ephemeral() as instance:
        for quarter in quarters():
            started = time.process_time()
            result = job.execute_in_process(
                asset_selection=[dg.AssetKey("recordings")],
                partition_key=f"en|{quarter}",
                instance=instance,
                run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
            )
            took = time.process_time() - started
            in_all += took
            (event,) = result.get_asset_materialization_events()
            here = event.materialization.metadata["recordings"].value
            kept += here
            print(f"{quarter:8} {here:9,} {took:7.2f} {readings:9} {peak_mib():9.0f}", flush=True)
    if kept != rows:
        raise SystemExit(f"{kept:,} of {rows:,} rows came out")
    return readings, in_all


def peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text()  # a process inherits `ru_maxrss` from the one that starts it
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 1 where a bar falls short."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--home", type=Path, help="where everything is kept (default: a temporary folder)")
    parser.add_argument("--alone", action="store_true", help="print the figures as JSON, for the run with fewer rows")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sources-", dir=options.home) as home:
        readings, cpu_s = run(Path(home), options.rows)
    if options.alone:
        print(peak_mib())
        return 0
    fewer = options.rows // 10
    command = [sys.executable, __file__, "--rows", str(fewer), "--alone"]
    small_mib = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])
    growth_kib = (peak_mib() - small_mib) * 1024 / ((options.rows - fewer) / QUARTERS)
    print(f"\npeak {peak_mib():.0f} MiB with {options.rows:,} rows, {small_mib:.0f} MiB with {fewer:,}")
    return end(
        [
            Bar("readings of the source", readings, 1),
            Bar("CPU for recordings of all quarters, s", cpu_s, CPU_BAR_S),
            Bar("memory a row of a quarter, KiB", growth_kib, MEMORY_BAR_KIB),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
