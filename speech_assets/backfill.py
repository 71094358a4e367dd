"""Backfills from the command line, through Dagster's API: any quarters and languages, any part of the graph.

    python -m speech_assets.backfill --quarters 2024-01:2025-10 --languages en de
    python -m speech_assets.backfill --quarters 2024-04 --assets corpus
    python -m speech_assets.backfill --quarters 2024-01:2025-10 --up-to-date

The first form is what the UI's backfill does. `--up-to-date` makes only what is missing or no longer follows from its
inputs: it reads what the sources hold now, and goes on from there only in the partitions where that changed something,
down to the models that learn from them. Dagster must be running (`make up`). Its own command `dagster asset materialize
--select` cannot be used here: it reads selections with a newer antlr than NeMo's configuration library allows.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from deployment.settings import Settings, SettingsError
from speech_assets.graphql import BackfillStatus, DagsterClient, DagsterError

CORPUS = ("recordings", "normalized_audio", "utterances")
BASE_CORPUS = ("base_corpus",)
BASE = ("benchmark_set", "base_model")
MODELS = ("finetuned_model", "model_bundle")
EVALUATION = ("evaluation", "verdict", "registered_model")
GROUPS = {
    "corpus": (*CORPUS, *BASE_CORPUS, "benchmark_set"),
    "models": ("base_model", *MODELS),
    "evaluation": EVALUATION,
}
ALL = (*CORPUS, *BASE_CORPUS, *BASE, *MODELS, *EVALUATION)
UP_TO_DATE = "FRESH"


@dataclass(frozen=True)
class Scope:
    """The partitions that someone asked for."""

    quarters: tuple[str, ...]
    languages: tuple[str, ...]
    base_quarters: tuple[str, ...]

    def of(self, asset: str) -> list[str]:
        """Keys of an asset's partitions inside the scope; a language's base needs its first quarters asked for."""
        if asset in BASE:
            return list(self.languages)
        quarters = [q for q in self.quarters if q in self.base_quarters] if asset in BASE_CORPUS else self.quarters
        return [f"{language}|{quarter}" for quarter in quarters for language in self.languages]


def scope(quarters: Sequence[str], languages: Sequence[str], settings: Settings) -> Scope:
    """The scope of command-line words: quarters are keys, or ranges `first:last` with both ends.

    Raises:
        SettingsError: a quarter or a language is not one of this deployment.
    """
    from speech_assets.defs.partitions import first_quarters
    from speech_assets.defs.partitions import quarters as definition

    known = list(definition.get_partition_keys())
    chosen: list[str] = []
    for word in quarters or [f"{known[0]}:{known[-1]}"]:
        first, _, last = word.partition(":")
        last = last or first
        for key in (first, last):
            if key not in known:
                raise SettingsError(f"'{key}' is no quarter of this deployment: it has {known[0]} to {known[-1]}")
        chosen += known[known.index(first) : known.index(last) + 1]
    if unknown := set(languages) - set(settings.languages):
        raise SettingsError(
            f"{', '.join(sorted(unknown))}: no language of this deployment, which has {', '.join(settings.languages)}"
        )
    base = first_quarters(settings.training.base_quarters)
    return Scope(tuple(sorted(set(chosen))), tuple(languages or settings.languages), tuple(base))


def whole(wanted: Scope, assets: Sequence[str]) -> dict[str, list[str]]:
    """Every partition of these assets inside the scope; those without one are left out."""
    found = {asset: wanted.of(asset) for asset in assets}
    return {asset: partitions for asset, partitions in found.items() if partitions}


def outdated(dagster: DagsterClient, wanted: Scope, chain: Sequence[str]) -> dict[str, list[str]]:
    """By asset of a chain, the partitions from the first that is missing or stale on."""
    found: dict[str, list[str]] = {}
    for partition in wanted.of(chain[-1]):
        status = dagster.stale(chain, partition)
        first = next((index for index, asset in enumerate(chain) if status[asset] != UP_TO_DATE), len(chain))
        for asset in chain[first:]:
            found.setdefault(asset, []).append(partition)
    return found


def bring_up_to_date(
    dagster: DagsterClient,
    wanted: Scope,
    refused: Callable[[str], bool],
    said: Callable[[str], None],
) -> list[BackfillStatus]:
    """Make what is missing or stale, one layer after the other; returns how each backfill ended.

    `refused` says whether a partition's corpus stands refused: until its source changes, its models would be, too.
    """
    ended: list[BackfillStatus] = []

    def run(title: str, partitions: Mapping[str, Sequence[str]]) -> None:
        if not any(partitions.values()):
            said(f"{title}: up to date")
            return
        count = sum(len(keys) for keys in partitions.values())
        backfill_id = dagster.backfill(partitions, f"{title}: bring up to date")
        said(f"{title}: {count} partitions in backfill {backfill_id}")
        ended.append(dagster.wait_for_backfill(backfill_id))

    # Only reading a source shows whether it holds something new; what follows from it is asked of Dagster.
    run("what the sources hold", {"recordings": wanted.of("recordings")})
    run("corpus", outdated(dagster, wanted, CORPUS[1:]))
    if whole(wanted, BASE_CORPUS):
        run("first quarters", outdated(dagster, wanted, BASE_CORPUS))
    run("base models", outdated(dagster, wanted, BASE))
    models = outdated(dagster, wanted, (*MODELS, *EVALUATION))
    run("models", {asset: [key for key in keys if not refused(key)] for asset, keys in models.items()})
    return ended


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0 when everything that was asked for is there."""
    parser = argparse.ArgumentParser(
        prog="python -m speech_assets.backfill", description=(__doc__ or "").partition("\n\n")[0]
    )
    parser.add_argument("--quarters", nargs="+", default=[], metavar="KEY", help="2024-01, or 2024-01:2025-10; all")
    parser.add_argument("--languages", nargs="+", default=[], metavar="TAG", help="by default all of the settings")
    parser.add_argument(
        "--assets",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"{', '.join(GROUPS)}, or assets by name; all by default",
    )
    parser.add_argument("--up-to-date", action="store_true", help="only what is missing or stale, in order")
    parser.add_argument("--no-wait", action="store_true", help="launch and return")
    given = parser.parse_args(arguments)
    console = Console(highlight=False)
    try:
        settings = Settings.load()
        wanted = scope(given.quarters, given.languages, settings)
        dagster = DagsterClient(settings.dagster_url)
        if given.up_to_date:
            from speech_assets.defs.corpus import corpus_refused
            from speech_assets.defs.resources import Workspace

            workspace = Workspace(settings)
            ended = bring_up_to_date(dagster, wanted, lambda key: corpus_refused(workspace, key), console.print)
        else:
            assets = [name for word in given.assets or ALL for name in GROUPS.get(word, (word,))]
            if unknown := set(assets) - set(ALL):
                raise SettingsError(f"{', '.join(sorted(unknown))}: choose from {', '.join((*GROUPS, *ALL))}")
            title = f"{wanted.quarters[0]} to {wanted.quarters[-1]}: {', '.join(wanted.languages)}"
            backfill_id = dagster.backfill(whole(wanted, assets), title)
            console.print(f"backfill {backfill_id}: {settings.dagster_url}/runs/b/{backfill_id}")
            if given.no_wait:
                return 0
            ended = [dagster.wait_for_backfill(backfill_id)]
    except (SettingsError, DagsterError) as error:
        console.print(f"[red]{error}[/red]")
        return 1
    missing = [
        f"{asset} ({progress.failed} of {progress.targeted})"
        for status in ended
        for asset, progress in status.assets.items()
        if progress.failed
    ]
    if missing:
        console.print(f"[yellow]not everything was made: {', '.join(missing)}; the runs in Dagster say why[/yellow]")
    return 1 if missing or any(status.error for status in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
