"""Draw the pictures under docs/images again from the running UIs: `make screenshots`, after `make demo`.

The demo launches single runs, so this launches one backfill, where the history has none, and waits for it. Needs
Chromium on the machine (Debian: `apt-get install chromium`); Playwright drives it. Names of pictures as arguments draw
those alone.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from deployment.settings import Settings
from speech_assets.chain import CORPUS, JUDGEMENT, MODELS
from speech_assets.dagster_client import LOCATION, DagsterClient
from speech_assets.local import services
from speech_assets.partition_keys import partition_of

if TYPE_CHECKING:
    from speech_assets.defs.resources import Workspace

IMAGES = Path(__file__).parent / "images"
SETTLE_MS = 4_000  # the UIs load their figures after the page
BACKFILLS = "query { partitionBackfillsOrError { ... on PartitionBackfills { results { id } } } }"


@dataclass(frozen=True)
class Picture:
    """A page, and what to click on it or to press before it is drawn."""

    name: str
    url: str
    clicks: tuple[str, ...] = ()  # Playwright's selectors
    keys: str = ""
    width: int = 1500  # of the window, in pixels; a page of the documentation shows it about 900 wide
    height: int = 950
    stored: Mapping[str, object] = field(default_factory=dict)  # what the UI remembers in a browser, by its key


def compared(workspace: "Workspace", language: str) -> str:
    """The newest quarter whose candidate was evaluated beside another model; the second where none was."""
    from speech_assets.defs.evaluation import load_evaluation

    for quarter in reversed(workspace.grid.quarters.get_partition_keys()):
        if workspace.store.exists("evaluation", quarter, language):
            evaluation = load_evaluation(workspace, quarter, language)
            if evaluation.champion_digest not in (None, evaluation.bundle_digest):
                return quarter
    return workspace.grid.first_quarters(2)[-1]


def pictures(settings: Settings, backfill: str) -> list[Picture]:
    """Every picture of the documentation."""
    from deployment.batch.arrivals import hours_with_arrivals
    from speech_assets.defs.promotion import launchpad
    from speech_assets.defs.resources import Workspace

    workspace, language = Workspace(settings), settings.languages[0]
    dagster, model = settings.dagster_url, workspace.registered_name(language)
    newest = workspace.registry().versions(model)[0]
    first, second = workspace.grid.first_quarters(2)
    hour = hours_with_arrivals(workspace.objects)[-1]
    return [
        Picture(
            "graph",
            f"{dagster}/asset-groups",
            ("[aria-label=panel_show_right]",),  # hides the list of assets
            keys="Alt+e",  # expands all groups, and fits them into the window's width
            width=900,
            height=1000,
            stored={
                "asset-graph-direction": "vertical",
                "asset-node-facets": ["kind-tag"],  # boxes that are low: names stay legible
                "dagster-nav-collapsed": True,
            },
        ),
        Picture("backfill", f"{dagster}/runs/b/{backfill}"),
        Picture(
            "partition_matrix", f"{dagster}/locations/{LOCATION}/jobs/retrain/partitions", ("text=per-asset status",)
        ),
        Picture(
            "partitions",
            f"{dagster}/assets/finetuned_model?view=partitions&partition={quote(partition_of(second, language))}",
        ),
        Picture(
            "evaluation",
            f"{dagster}/assets/evaluation?view=partitions&partition={quote(partition_of(second, language))}",
        ),
        Picture("evaluation_over_quarters", f"{dagster}/assets/evaluation?view=overview", ("text=Plots",)),
        Picture("utterances_checks", f"{dagster}/assets/utterances?view=checks&checkDetail=text_audio_correlation"),
        Picture("challenger", f"{dagster}/assets/champion?view=checks&checkDetail=challenger_waits"),
        Picture("promote", launchpad(workspace, newest)),
        Picture("release", f"{dagster}/assets/serving_release?view=partitions&partition={language}"),
        Picture(
            "mlflow",
            f"{settings.registry.ui_url}/#/models/{model}/versions/{newest.version}",
            ("[aria-label=Close]",),  # the assistant
            width=1100,
        ),
        Picture(
            "report",
            f"{settings.pages.url}/reports/{compared(workspace, language)}/{language}/",
            width=1200,
            height=1690,
        ),
        Picture(
            "hour",
            f"{dagster}/assets/transcripts?view=partitions&partition={hour}",
            ("text=Show Markdown",),
            height=700,
        ),
        Picture("data_docs", f"{settings.pages.url}/data-docs/{first}/{language}/"),
    ]


def backfilled(settings: Settings, console: Console) -> str:
    """A backfill of the first three quarters in every language; launched and waited for where there is none."""
    from speech_assets.defs.partitions import Grid

    dagster = DagsterClient(settings.dagster_url)
    for found in dagster.query(BACKFILLS)["partitionBackfillsOrError"]["results"]:
        return str(found["id"])
    quarters = Grid(settings).first_quarters(3)
    partitions = [partition_of(quarter, language) for quarter in quarters for language in settings.languages]
    started = dagster.backfill(dict.fromkeys((*CORPUS, *MODELS, *JUDGEMENT), partitions), "the first three quarters")
    with console.status("backfilling the first three quarters of every language, which takes minutes"):
        dagster.wait_for_backfill(started)
    return started


def draw(page: Page, picture: Picture) -> None:
    """Open a page, let it settle, and keep what it shows."""
    for key, value in picture.stored.items():
        page.add_init_script(f"localStorage.setItem({json.dumps(key)}, JSON.stringify({json.dumps(value)}))")
    page.goto(picture.url, wait_until="load")
    page.wait_for_timeout(SETTLE_MS)
    for selector in picture.clicks:
        page.locator(selector).first.click()
        page.wait_for_timeout(SETTLE_MS)
    if picture.keys:
        page.keyboard.press(picture.keys)
        page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=IMAGES / f"{picture.name}.png")


def main() -> int:
    """Start the services, draw every page or those named, stop them."""
    console = Console()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        console.print("Chromium is not installed: apt-get install chromium")
        return 1
    settings, names = Settings.load(), sys.argv[1:]
    IMAGES.mkdir(exist_ok=True)
    with services.running(settings, console), sync_playwright() as playwright:
        backfill = backfilled(settings, console) if not names or "backfill" in names else ""
        every = pictures(settings, backfill)
        wanted = [picture for picture in every if not names or picture.name in names]
        if unknown := set(names) - {picture.name for picture in every}:
            console.print(f"no picture is called {', '.join(unknown)}; there are {', '.join(p.name for p in every)}")
            return 2
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        for picture in wanted:
            # A page of its own: a single-page UI would keep what was clicked before.
            page = browser.new_page(viewport={"width": picture.width, "height": picture.height})
            draw(page, picture)
            page.close()
            console.print(f"{picture.name}: {picture.url}")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
