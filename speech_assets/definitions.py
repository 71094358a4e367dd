"""The code location: everything under `defs/`, with the resources of this deployment.

`build` is the seam where tests put their own resources in. Nothing heavy is imported here: torch, NeMo, MLflow and
Great Expectations load inside the assets that use them.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg

from speech_assets.defs import (
    alerts,
    approvals,
    automation,
    corpus,
    evaluation,
    models,
    promotion,
    retraining,
    serving,
)
from speech_assets.defs.partitions import SETTINGS
from speech_assets.defs.resources import resources

MODULES = (corpus, models, evaluation, promotion, approvals, serving, automation, retraining, alerts)


def build(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The graph with this deployment's resources, some of them replaced by `resource_overrides`."""
    found = dg.load_definitions_from_modules(MODULES)
    assets: Sequence[Any] = [_linked(asset) for asset in found.assets or ()]
    if SETTINGS.source_code is not None:
        assets = dg.link_code_references_to_git(
            assets,
            git_url=SETTINGS.source_code.url,
            git_branch=SETTINGS.source_code.branch,
            file_path_mapping=dg.AnchorBasedFilePathMapping(
                local_file_anchor=Path(__file__).parents[1], file_anchor_path_in_repository=""
            ),
        )
    return dg.Definitions(
        assets=assets,
        asset_checks=found.asset_checks,
        jobs=found.jobs,
        schedules=found.schedules,
        sensors=found.sensors,
        resources={**resources(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    ).map_asset_specs(func=lambda spec: spec.replace_attributes(owners=list(SETTINGS.owners)))


def _linked(asset: Any) -> Any:
    """An asset with a link to its function; Dagster's own link would lead to the decorator that retries it."""
    if not isinstance(asset, dg.AssetsDefinition):
        return asset
    function = inspect.unwrap(cast(Any, asset.op.compute_fn).decorated_fn)
    place = dg.LocalFileCodeReference(
        file_path=str(inspect.getsourcefile(function)), line_number=inspect.getsourcelines(function)[1]
    )
    references = dg.CodeReferencesMetadataValue(code_references=[place])
    return asset.map_asset_specs(lambda spec: spec.merge_attributes(metadata={"dagster/code_references": references}))


defs = build()
