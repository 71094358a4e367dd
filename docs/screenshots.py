"""Draw the pictures under docs/images again from the running UIs: `make screenshots`, after `make demo`.

Needs Chromium on the machine (Debian: `apt-get install chromium`); Playwright drives it.
"""

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright
from rich.console import Console

from deployment.settings import Settings
from speech_assets import local
from speech_assets.graphql import LOCATION, REPOSITORY

IMAGES = Path(__file__).parent / "images"
SIZE = {"width": 1500, "height": 950}
SETTLE_MS = 4_000  # the UIs load their figures after the page
GROUPS = ("corpus", "models", "evaluation", "promotion", "serving")


def pages(settings: Settings) -> Mapping[str, str]:
    """Which page becomes which picture."""
    dagster, mlflow = settings.dagster_url, settings.registry.ui_url
    language = settings.languages[0]
    first = f"{language}|{settings.first_quarter}"
    return {
        "graph": f"{dagster}/asset-groups?expanded={quote(','.join(f'{LOCATION}:{REPOSITORY}:{g}' for g in GROUPS))}",
        "runs": f"{dagster}/runs",
        "evaluation": f"{dagster}/assets/evaluation?view=partitions&partition={quote(first)}",
        "evaluation_over_quarters": f"{dagster}/assets/evaluation?view=overview",
        "utterances_checks": f"{dagster}/assets/utterances?view=checks",
        "promote": f"{dagster}/locations/{LOCATION}/jobs/promote/playground",
        "champion": f"{dagster}/assets/champion?view=overview",
        "mlflow": f"{mlflow}/#/models/{settings.registry.model_prefix}-{language}",
        "report": f"{settings.pages.url}/reports/{settings.first_quarter}/{language}/",
        "data_docs": f"{settings.pages.url}/data-docs/{settings.first_quarter}/{language}/",
    }


def draw(page: Page, url: str, image: Path) -> None:
    """Open a page, let it settle, and keep what it shows."""
    page.goto(url, wait_until="load")
    page.wait_for_timeout(SETTLE_MS)
    page.screenshot(path=image)


def main() -> int:
    """Start the services, draw every page, stop them."""
    console = Console()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        console.print("Chromium is not installed: apt-get install chromium")
        return 1
    settings = Settings.load()
    IMAGES.mkdir(exist_ok=True)
    with local.running(settings, console), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-background-networking", "--disable-component-update"],
        )
        page = browser.new_page(viewport=SIZE)
        for name, url in pages(settings).items():
            draw(page, url, IMAGES / f"{name}.png")
            console.print(f"{name}: {url}")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
