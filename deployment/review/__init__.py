"""People and transcripts: what they are asked, what they answer, and where their words go.

Tasks are made by `deployment/batch/branch.py` and lie in the hours of `review_tasks`. People answer them on a page
(`web.py`, over `desk.py`) or in Label Studio (`label_studio.py`); answers are records that never change
(`answers.py`). Their words take their place in transcripts (`corrected.py`), and join the corpus (`learnt.py`).
"""
