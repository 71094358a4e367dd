"""Batch transcription: recordings that came in, hour by hour, to transcripts that are published or go to people.

What the assets of `speech_assets/defs/inference.py` do, without Dagster: arrivals (`arrivals.py`), stages as functions
of one item (`stages/`), the processes that work on them (`engine.py`), what becomes of a transcript (`branch.py`),
and what is kept of it all (`hour.py`).
"""
