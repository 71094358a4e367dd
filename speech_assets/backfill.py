"""Backfills from the command line, through Dagster's API: any quarters and languages, any part of the graph.

    soundstage backfill --quarters 2024-01:2025-10 --languages en,de
    soundstage backfill --quarters 2024-04 --assets corpus
    soundstage backfill --quarters 2024-01:2025-10 --up-to-date

The first form is what the UI's backfill does. `--up-to-date` makes only what is missing or no longer follows from its
inputs: it reads what the sources hold now, and goes on from there only in the partitions where that changed something,
down to the models that learn from them. Dagster must be running (`make up`). Its own command `dagster asset materialize
--select` cannot be used here: it reads selections with a newer antlr than NeMo's configuration library allows.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import dropwhile

from rich.console import Console

from deployment.settings import Settings, SettingsError
from speech_assets.chain import BASE_CORPUS, CORPUS, JUDGEMENT, LANGUAGE_BASE, MODELS
from speech_assets.dagster_client import LAUNCHED_BY, BackfillStatus, DagsterClient, Deployment
from speech_assets.defs.corpus import refused_by
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import Workspace, settings_versions
from speech_assets.partition_keys import partition_of, quarter_and_language_of

GROUPS = {
    "corpus": (*CORPUS, *BASE_CORPUS, "benchmark_set"),
    "models": ("base_model", *MODELS),
    "evaluation": JUDGEMENT,
}
ALL = (*CORPUS, *BASE_CORPUS, *LANGUAGE_BASE, *MODELS, *JUDGEMENT)
UP_TO_DATE = "FRESH"
UP_TO_DATE_TAG = "soundstage/up_to_date"
WAIT_S = 86_400.0


@dataclass(frozen=True)
class Scope:
    """The partitions that someone asked for."""

    quarters: tuple[str, ...]
    languages: tuple[str, ...]
    base_quarters: tuple[str, ...]

    def of(self, asset: str) -> list[str]:
        """Keys of an asset's partitions inside the scope; a language's base needs its first quarters asked for."""
        if asset in LANGUAGE_BASE:
            return list(self.languages)
        quarters = [q for q in self.quarters if q in self.base_quarters] if asset in BASE_CORPUS else self.quarters
        return [partition_of(quarter, language) for quarter in quarters for language in self.languages]


def scope(quarters: Sequence[str], languages: Sequence[str], settings: Settings) -> Scope:
    """The scope of command-line words: quarters are keys, or ranges `first:last` with both ends.

    Raises:
        SettingsError: a quarter or a language is not one of this deployment.
    """
    grid = Grid(settings)
    known = list(grid.quarters.get_partition_keys())
    chosen: list[str] = []
    for word in quarters or [f"{known[0]}:{known[-1]}"]:
        first, _, last = word.partition(":")
        last = last or first
        for key in (first, last):
            if key not in known:
                raise SettingsError(f"'{key}' is no quarter of this deployment: it has {known[0]} to {known[-1]}")
        if first > last:
            raise SettingsError(f"'{word}' runs backwards: write {last}:{first}")
        chosen += known[known.index(first) : known.index(last) + 1]
    if unknown := set(languages) - set(settings.languages):
        raise SettingsError(
            f"{', '.join(sorted(unknown))}: no language of this deployment, which has {', '.join(settings.languages)}"
        )
    base = grid.first_quarters(settings.training.base_quarters)
    return Scope(tuple(sorted(set(chosen))), tuple(languages or settings.languages), tuple(base))


def refuse_other_settings(running: Deployment, settings: Settings, url: str) -> None:
    """Raise SettingsError where Dagster runs other settings than these: it would do other work than was asked for."""
    compared = (
        ("home", running.home or "unknown", settings.home),
        ("languages", sorted(running.languages), sorted(settings.languages)),
        ("first_quarter", running.quarters[0] if running.quarters else "none", settings.first_quarter),
    )
    differing = [f"`{name}` is {there} there and {here} here" for name, there, here in compared if there != here]
    versions = settings_versions(settings)
    tables = sorted({*versions, *running.versions})
    if others := [f"`{name}`" for name in tables if versions.get(name) != running.versions.get(name)]:
        differing.append(f"{', '.join(others)}: not the same there and here")
    if differing:
        raise SettingsError(
            f"Dagster at {url} runs other settings than this command: {'; '.join(differing)}. Name its file in "
            "SOUNDSTAGE_CONFIG, restart Dagster after a change of the settings, or name another Dagster with --dagster"
        )


def unfinished(chain: Sequence[str], status: Mapping[str, str]) -> list[str]:
    """The assets of a chain from the first that is missing or stale on."""
    return list(dropwhile(lambda asset: status[asset] == UP_TO_DATE, chain))


def outdated(dagster: DagsterClient, partitions: Sequence[str], chain: Sequence[str]) -> dict[str, list[str]]:
    """By partition, what is `unfinished` of a chain; nothing where all is fresh."""
    found = {partition: unfinished(chain, dagster.stale(chain, partition)) for partition in partitions}
    return {partition: assets for partition, assets in found.items() if assets}


def bring_up_to_date(
    dagster: DagsterClient,
    wanted: Scope,
    workspace: Workspace,
    said: Callable[[str], None],
    tags: Mapping[str, str],
) -> list[str]:
    """Make what is missing or stale, one layer after the other; returns a sentence for each partition that failed.

    Each partition of a layer is a run of its own in Dagster's queue: what is stale in the next layer is known only when
    this one has ended, and a backfill would take a minute of the daemon's turns for each. The runs carry a tag of their
    own. A partition whose corpus stands refused is left: until its source changes, its models would be, too. What rests
    on a partition that failed is not tried: it would only fail again, for reasons that lead nowhere.
    """
    tags = {**tags, UP_TO_DATE_TAG: secrets.token_hex(4)}
    failed: dict[str, str] = {}  # why, by partition

    def held_back(partition: str) -> bool:
        quarter, language = quarter_and_language_of(partition)
        rests_on = [partition, language]
        rests_on += [] if quarter else [partition_of(base, language) for base in wanted.base_quarters]
        return not failed.keys().isdisjoint(rests_on)

    def make(layer: str, todo: Mapping[str, Sequence[str]]) -> None:
        todo = {partition: assets for partition, assets in todo.items() if not held_back(partition)}
        if not todo:
            said(f"{layer}: {'held back' if failed else 'up to date'}")
            return
        said(f"{layer}: {', '.join(todo)}")
        launched = {dagster.materialize(assets, partition, tags): partition for partition, assets in todo.items()}
        for run, partition in launched.items():
            if dagster.wait(run, WAIT_S) != "SUCCESS":
                failed[partition] = "; ".join(dagster.why_failed(run))

    # Only reading a source shows whether it holds something new; what follows from it is asked of Dagster.
    make("what the sources hold", dict.fromkeys(wanted.of(CORPUS[0]), CORPUS[:1]))
    make("corpus", outdated(dagster, wanted.of(CORPUS[0]), CORPUS[1:]))
    make("first quarters", outdated(dagster, wanted.of(BASE_CORPUS[0]), BASE_CORPUS))
    make("base models", outdated(dagster, wanted.of(LANGUAGE_BASE[0]), LANGUAGE_BASE))
    passed = [key for key in wanted.of(MODELS[0]) if not refused_by(workspace, *quarter_and_language_of(key))]
    make("models", outdated(dagster, passed, (*MODELS, *JUDGEMENT)))
    return [f"{partition}: {why}" for partition, why in failed.items()]


def run(
    settings: Settings,
    console: Console,
    *,
    quarters: Sequence[str] = (),
    languages: Sequence[str] = (),
    assets: Sequence[str] = (),
    up_to_date: bool = False,
    wait: bool = True,
    launched_by: str | None = None,
    dagster_url: str | None = None,
) -> list[str]:
    """Make what is asked for, all where nothing is named; returns a sentence for each part that is not there.

    Raises:
        SettingsError: a quarter, a language or an asset is not one of this deployment, or Dagster runs another one.
        DagsterError: Dagster does not answer, or does not take the launch.
    """
    wanted = scope(quarters, languages, settings)
    named = [name for word in assets or ALL for name in GROUPS.get(word, (word,))]
    if unknown := set(named) - set(ALL):
        raise SettingsError(f"{', '.join(sorted(unknown))}: choose from {', '.join((*GROUPS, *ALL))}")
    url = dagster_url or settings.dagster_url
    dagster = DagsterClient(url)
    refuse_other_settings(dagster.deployment(CORPUS[0]), settings, url)
    tags = {LAUNCHED_BY: launched_by} if launched_by else {}
    if up_to_date:
        return bring_up_to_date(dagster, wanted, Workspace(settings), console.print, tags)
    title = f"{wanted.quarters[0]} to {wanted.quarters[-1]}: {', '.join(wanted.languages)}"
    partitions = {asset: inside for asset in named if (inside := wanted.of(asset))}
    backfill_id = dagster.backfill(partitions, title, tags)
    console.print(f"backfill {backfill_id}: {settings.dagster_url}/runs/b/{backfill_id}")
    if not wait:
        return []
    ended = dagster.wait_for_backfill(backfill_id, told=lambda status: console.print(progress(status)))
    problems = missing(dagster, backfill_id, ended)
    refused = f"; {len(problems)} did not end well" if problems and not failed_of(ended) else ""
    console.print(progress(ended) + refused)
    return problems


def progress(status: BackfillStatus) -> str:
    """How far a backfill is, in one line."""
    made, wanted = (
        sum(getattr(asset, count) for asset in status.assets.values()) for count in ("materialized", "targeted")
    )
    failed = failed_of(status)
    return f"{made} of {wanted} made" + (f", {failed} failed or out of reach" if failed else "")


def failed_of(status: BackfillStatus) -> int:
    """How many partitions were not made, and will not be."""
    return sum(asset.failed for asset in status.assets.values())


def missing(dagster: DagsterClient, backfill_id: str, status: BackfillStatus) -> list[str]:
    """What a backfill did not make, or made so that its checks refuse it: a sentence for each run that failed for good.

    What was made and then refused counts as made in Dagster, so the runs are asked in any case. Empty when all is well.
    """
    runs = dagster.runs({"dagster/backfill": backfill_id})
    replaced = {run["tags"].get("dagster/parent_run_id") for run in runs}
    failed = [run for run in runs if run["status"] == "FAILURE" and run["runId"] not in replaced]
    reasons = [
        f"{run['tags'].get('dagster/partition', '')}: {'; '.join(dagster.why_failed(run['runId']))}"
        for run in reversed(failed)
    ]
    short = [
        f"{asset}: {asked.targeted - asked.materialized} of {asked.targeted} partitions were not made"
        for asset, asked in status.assets.items()
        if asked.materialized < asked.targeted
    ]
    return reasons or short or ([status.error] if status.error else [])
