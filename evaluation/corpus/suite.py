"""Great Expectations run over a partition's two tables, and its Data Docs written."""

import datetime as dt
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.corpus.data_docs import seal_docs

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Expectation:
    """A promise about one of the two tables, and how to say it."""

    name: str
    table: str  # "utterances" or "partition"
    kind: str  # class name in great_expectations.expectations
    arguments: Mapping[str, Any]
    limit: str
    explanation: str
    observed: str = ""  # field of GX's result that is worth showing
    blocking: bool = True


def run_suites(
    expectations: Sequence[Expectation],
    table: "pandas.DataFrame",
    measures: Mapping[str, float],
    title: str,
    quarter: str,
    docs_dir: Path,
) -> dict[str, tuple[bool, float | str | None]]:
    """Hold both tables against what is expected of them, and write the Data Docs: name -> (success, observed)."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read when the library is imported
    import great_expectations
    import pandas
    from great_expectations import expectations as library

    shutil.rmtree(docs_dir, ignore_errors=True)
    docs_dir.mkdir(parents=True)
    context = great_expectations.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for name, site in list(context.list_data_docs_sites().items()):
        context.delete_data_docs_site(name)
        shutil.rmtree(site["store_backend"]["base_directory"], ignore_errors=True)  # made for a site nobody asked for
    context.add_data_docs_site(
        site_name="corpus",
        site_config={
            "class_name": "SiteBuilder",
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(docs_dir)},
            "show_how_to_buttons": False,
        },
    )
    source = context.data_sources.add_pandas(title)
    frames = {"utterances": table, "partition": pandas.DataFrame([dict(measures)])}
    results: dict[str, tuple[bool, float | str | None]] = {}
    run = great_expectations.RunIdentifier(
        run_name=title, run_time=dt.datetime.fromisoformat(f"{quarter}-01T00:00:00+00:00")
    )
    for name, frame in frames.items():
        suite = great_expectations.ExpectationSuite(name=f"{title}, {name}")
        for expectation in expectations:
            if expectation.table == name:
                suite.add_expectation(
                    getattr(library, expectation.kind)(
                        **expectation.arguments,
                        severity="critical" if expectation.blocking else "warning",
                        description=f"{expectation.name}: {expectation.limit}. {expectation.explanation}",
                        meta={"name": expectation.name},
                    )
                )
        definition = context.validation_definitions.add(
            great_expectations.ValidationDefinition(
                name=f"{title}, {name}",
                data=source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(name),
                suite=context.suites.add(suite),
            )
        )
        found = definition.run(batch_parameters={"dataframe": frame}, run_id=run, result_format="SUMMARY")
        wanted = {expectation.name: expectation for expectation in expectations}
        for result in found.results:
            expectation = wanted[result.expectation_config.meta["name"]]
            results[expectation.name] = bool(result.success), _observed(result.result, expectation)
    context.build_data_docs(site_names=["corpus"])
    seal_docs(docs_dir)
    return results


def _observed(result: Mapping[str, Any], expectation: Expectation) -> float | str | None:
    """The figure worth showing: a measure, or how many rows are not as expected."""
    value = result.get(expectation.observed)
    if expectation.observed == "unexpected_count" and value is not None:
        examples = ", ".join(str(item) for item in result.get("partial_unexpected_list", [])[:3])
        return f"{value} of {result.get('element_count')} rows are not, such as {examples}" if value else "every row is"
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    return None if value is None else json.dumps(value, ensure_ascii=False, default=str)
