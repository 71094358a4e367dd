"""The code location: everything under `defs/`, with the resources of this deployment.

`build` is the seam where tests put their own resources in. Nothing heavy is imported here: torch, NeMo, MLflow and
Great Expectations load inside the assets that use them.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from speech_assets.defs import alerts, automation, corpus, evaluation, models, promotion, retraining, serving
from speech_assets.defs.resources import resources


def build(resource_overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """The graph with this deployment's resources, some of them replaced by `resource_overrides`."""
    return dg.load_definitions_from_modules(
        [corpus, models, evaluation, promotion, serving, automation, retraining, alerts],
        resources={**resources(), **(resource_overrides or {})},
        executor=dg.in_process_executor,
    )


defs = build()
