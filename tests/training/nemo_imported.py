"""What the server behind `forked.py` imports before it forks."""

from training.network import quiet_nemo

quiet_nemo()
