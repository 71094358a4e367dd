"""Batch transcription: recordings that came in, hour by hour, to transcripts that are published or go to people.

What the assets of `speech_assets/defs/inference.py` do, without Dagster: arrivals (`arrivals.py`), stages as functions
of one item (`stages.py`), and what becomes of a transcript (`branch.py`).
"""
