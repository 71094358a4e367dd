"""Batch transcription: recordings that came in, hour by hour, to transcripts that are published or go to people.

What the assets of `speech_assets/defs/inference/` do, without Dagster: arrivals (`arrivals/`), stages as functions of
one item (`stages/`), the processes that work on them (`engine.py`), what becomes of a transcript (`branch.py`), and
what is kept of it all (`hour.py`). Recordings also come as jobs (`jobs.py`), whose end is told (`notices.py`).
"""
