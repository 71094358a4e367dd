"""What the demo says where no terminal shows its bars; the demo itself is run in tests/integration."""

import io

from rich.console import Console

from speech_assets.demo import ProgressLines

TITLE = "base model, en"


def test_a_log_hears_of_each_asset_once_and_of_a_long_one_every_half_minute() -> None:
    """The base model takes minutes: a log without a line in that time looks like a demo that hangs."""
    log = io.StringIO()
    lines = ProgressLines(Console(file=log, width=40))
    for second in range(1, 101):
        training = f"base_model training {second}/800, loss 3.54, dev WER 37.7%, {800 - second} s left"
        asset = "" if second < 3 or second == 9 else "benchmark_set" if second < 9 else "base_model"
        shown = training if asset == "base_model" else asset or "starting"
        lines.tell(TITLE, asset, shown, float(second))
    assert log.getvalue().splitlines() == [
        f"  {TITLE}: benchmark_set (0:00:03)",
        *(
            f"  {TITLE}: base_model training {second}/800, loss 3.54, dev WER 37.7%, {800 - second} s left "
            f"(0:{second // 60:02}:{second % 60:02})"
            for second in (10, 40, 70, 100)
        ),
    ]


def test_a_run_that_waits_says_so_after_half_a_minute() -> None:
    log = io.StringIO()
    lines = ProgressLines(Console(file=log))
    for second in range(1, 65):
        lines.tell(TITLE, "", "queued", float(second))
    assert log.getvalue().splitlines() == [f"  {TITLE}: queued (0:00:30)", f"  {TITLE}: queued (0:01:00)"]


def test_runs_side_by_side_have_lines_of_their_own() -> None:
    log = io.StringIO()
    lines = ProgressLines(Console(file=log))
    for title in ("model of 2024 Q1, en", "model of 2024 Q1, de", "model of 2024 Q1, en"):
        lines.tell(title, "evaluation", "evaluation", 1.0)
    assert log.getvalue().count("evaluation") == 2
