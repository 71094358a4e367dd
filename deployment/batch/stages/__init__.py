"""The stages of batch transcription, each a function of one item: audio by reference in, annotations out.

A stage writes nothing but what it returns (and, where audio comes out, the file that it names), and takes its models
from `Models`. So a pool, a cluster and a stream's worker can call it alike, twice gives the same, and an item that
fails costs itself alone. What stages hand on is in `items.py`.
"""
