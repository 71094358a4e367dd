"""Keys of partitions as Dagster writes them: `en|2024-04` for a quarter in a language, `en` for a language alone.

Dagster sorts the dimensions of a key by name; everywhere else the quarter comes first.
"""

PARTITION_TAG = "dagster/partition"  # of a run: the key of its partition


def partition_of(quarter: str, language: str) -> str:
    """The key of a quarter in a language."""
    return f"{language}|{quarter}"


def quarter_and_language_of(partition: str) -> tuple[str, str]:
    """Quarter and language of a key; the quarter is empty where the key is a language alone."""
    language, _, quarter = partition.partition("|")
    return quarter, language


def partition_tags(partition: str) -> dict[str, str]:
    """The tags by which Dagster finds the runs of a partition, and those of its quarter and language; none for ""."""
    if not partition:
        return {}
    quarter, language = quarter_and_language_of(partition)
    dimensions = {f"{PARTITION_TAG}/language": language, f"{PARTITION_TAG}/quarter": quarter} if quarter else {}
    return {PARTITION_TAG: partition, **dimensions}
