"""Training of label models: networks that tell voices or languages apart (`speech/labels.py` runs them).

`data.py` reads what is learnt, `network.py` builds a small TitaNet with NeMo, `fitting.py` trains it, `export.py` makes
a bundle of it with the proof that both say the same, and `run.py` is the process that does all of this for one or
several models with one import of NeMo.
"""
