"""Where Dagster keeps what steps print: with the data store in S3, so that every machine shows it, or in a folder."""

import os
from collections.abc import Mapping
from typing import Any, Self
from urllib.parse import urlsplit

from dagster._core.storage.local_compute_log_manager import LocalComputeLogManager
from dagster._serdes import ConfigurableClassData

PLACE = "dagster"  # in the data store


class ComputeLogs(LocalComputeLogManager):
    """Dagster's own manager, S3's or the local one, for the home that `soundstage up` names in `SOUNDSTAGE_HOME`.

    How S3 is reached and who asks is said as to every AWS tool, in the environment or a profile.
    """

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Made by Dagster from `dagster.yaml`."""
        home = urlsplit(os.environ.get("SOUNDSTAGE_HOME", ""))
        if home.scheme != "s3":
            return cls(inst_data=inst_data, **config_value)
        from dagster_aws.s3 import S3ComputeLogManager

        prefix = "/".join(part for part in (home.path.strip("/"), PLACE) if part)
        made: Any = S3ComputeLogManager(
            bucket=home.netloc, prefix=prefix, local_dir=config_value["base_dir"], skip_empty_files=True
        )
        return made
