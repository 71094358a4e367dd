"""The code location: everything under `defs/`, with the resources of this deployment.

Nothing is read or made when this is imported: `build` makes the graph of the settings that it is given, and Dagster
calls `defs`. Nothing heavy is imported either: torch, NeMo, MLflow and Great Expectations load inside the assets that
use them.
"""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg

from deployment.settings import Settings, SettingsError
from speech_assets.dagster_client import HOME_METADATA
from speech_assets.defs import (
    alerts,
    approvals,
    automation,
    corpus,
    evaluation,
    inference,
    intent_model,
    label_models,
    models,
    promotion,
    retraining,
    serving,
)
from speech_assets.defs.partitions import Grid
from speech_assets.defs.resources import resources

MODULES = (
    corpus,
    models,
    label_models,
    intent_model,
    evaluation,
    promotion,
    approvals,
    serving,
    inference,
    automation,
    retraining,
    alerts,
)


def build(settings: Settings, resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The graph of a deployment, some of its resources replaced by `resource_overrides`.

    Raises:
        SettingsError: Dagster does not take a schedule or an owner as it is written.
    """
    try:
        return _declared(Grid(settings), resource_overrides or {})
    except dg.DagsterInvalidDefinitionError as refused:  # what reaches it unchecked are owners and schedules
        raise SettingsError(
            f"Dagster does not take `owners` or `[retraining]` of soundstage.toml: {refused}"
        ) from refused


@dg.definitions
def defs() -> dg.Definitions:
    """What Dagster loads: the graph of the deployment that soundstage.toml describes."""
    return build(Settings.load())


def _declared(grid: Grid, resource_overrides: Mapping[str, Any]) -> dg.Definitions:
    settings = grid.settings
    declared = dg.Definitions.merge(*(module.definitions(grid) for module in MODULES))
    assets: Sequence[Any] = [_linked(asset) for asset in declared.assets or ()]
    if settings.source_code is not None:
        assets = dg.link_code_references_to_git(
            assets,
            git_url=settings.source_code.url,
            git_branch=settings.source_code.branch,
            file_path_mapping=dg.AnchorBasedFilePathMapping(
                local_file_anchor=Path(__file__).parents[1], file_anchor_path_in_repository=""
            ),
        )
    return dg.Definitions(
        assets=assets,
        asset_checks=declared.asset_checks,
        jobs=declared.jobs,
        schedules=declared.schedules,
        sensors=declared.sensors,
        resources={**resources(settings), **resource_overrides},
        executor=dg.in_process_executor,
    ).map_asset_specs(
        func=lambda spec: spec.replace_attributes(
            owners=list(settings.owners), metadata={**spec.metadata, HOME_METADATA: settings.home}
        )
    )


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
