import warnings

from dagster import BetaWarning, PreviewWarning

# Partition mappings over several dimensions are marked beta; the versions are pinned, and the graph's tests watch them.
warnings.filterwarnings("ignore", category=BetaWarning)
warnings.filterwarnings("ignore", category=PreviewWarning)
