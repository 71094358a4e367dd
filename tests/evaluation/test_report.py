"""The report shows what is so, in one file that runs and fetches nothing, whatever strangers wrote in it."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from evaluation.calibration import reliability
from evaluation.gates import judge
from evaluation.plots import (
    champion_png,
    reliability_png,
    wer_by_condition_png,
    wer_by_slice_png,
    wer_by_speaker_png,
)
from evaluation.presentation import CSP
from evaluation.report import frequent_errors, render_report, write_report
from evaluation.results import SetResult
from evaluation.scoring import align
from tests.evaluation.conftest import result_of, rows_with

HOSTILE = (
    "<script>alert(1)</script> \"><img src=x onerror=alert(2)> {{ 7 * 7 }} '><svg onload=alert(3)> "
    "$\\frac{ \u202ereversed"
)


class Tags(HTMLParser):
    """Everything a browser would see as markup."""

    def __init__(self):
        super().__init__()
        self.tags, self.links, self.handlers, self.policies = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.handlers += [name for name in attributes if name.startswith("on")]
        self.links += [attributes[name] for name in ("src", "href", "srcset") if name in attributes]
        if attributes.get("http-equiv") == "Content-Security-Policy":
            self.policies.append(attributes["content"])


def parsed(html):
    tags = Tags()
    tags.feed(html)
    return tags


def is_png(image):
    return image.startswith(b"\x89PNG\r\n\x1a\n")


def hostile(row):
    return replace(
        row, id=HOSTILE, reference=HOSTILE, hypothesis=HOSTILE + " x y z", speaker=HOSTILE, domain=HOSTILE,
        slices={"domain": HOSTILE},
    )  # fmt: skip


@pytest.fixture(scope="module")
def hostile_report():
    from evaluation.results import Evaluation, NonSpeech, Unreadable

    rows = [hostile(rows_with(3)[0]), *rows_with(3)[1:]]
    result = replace(result_of(rows, rows), unreadable=(Unreadable(HOSTILE, HOSTILE),))
    evaluation = Evaluation(
        bundle_digest="a" * 64,
        model_name=HOSTILE,
        language="en",
        partition=HOSTILE,
        dataset_digests={HOSTILE: HOSTILE},
        sets={"quarter": result, "benchmark": result},
        champion_digest="c" * 64,
        champion_name=HOSTILE,
        nonspeech=NonSpeech(0.0, 2.0, {"silence": 0.0}),
        parity={"utterances": 3, "equal": 1.0, HOSTILE: HOSTILE},
        rtfx=10.0,
    )
    return render_report(evaluation, judge(evaluation))


def test_hostile_transcripts_are_inert(hostile_report):
    """Transcripts come from strangers; opening a report must run nothing of theirs."""
    found = parsed(hostile_report)
    assert not {"script", "svg", "iframe", "object", "embed", "form", "link"} & set(found.tags)
    assert found.handlers == []
    assert "alert(1)" in hostile_report  # shown, as text
    assert "&lt;script&gt;" in hostile_report
    assert "{{ 7 * 7 }}" in hostile_report  # a template in a transcript is not evaluated


def test_a_report_refers_to_nothing_outside_itself(hostile_report):
    """It is read offline, and no server learns who reads it."""
    found = parsed(hostile_report)
    assert found.policies == [CSP]
    assert "default-src 'none'" in CSP
    assert "script-src" not in CSP
    assert all(link.startswith(("data:", "#")) for link in found.links)
    assert "url(" not in hostile_report


@pytest.fixture(scope="module")
def evaluation(make_evaluation):
    """A candidate that hears every fifth word wrong, one utterance not at all, and errs in each way in another."""
    quarter, benchmark = rows_with(2), rows_with(0)
    quarter[37] = replace(quarter[37], hypothesis="")
    benchmark[0] = replace(benchmark[0], hypothesis="please TRANSFUSE my account to the the savings number four")
    return make_evaluation(quarter=quarter, benchmark=benchmark, champion=rows_with(1))


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    return write_report(tmp_path_factory.mktemp("reports") / "new", evaluation, verdict=judge(evaluation))


def test_a_report_is_complete(report):
    html = report.read_text()
    for shown in ("en-2024-Q2", "2024 Q2", "20.8 %", "refused", "domain: calls", "en-2024-Q1", "a" * 64):
        assert shown in html
    assert not re.search(r"\bnan\b", re.sub(r"data:[^\"]+", "", html).lower())


def test_every_kind_of_error_is_marked_by_a_letter_as_well_as_by_colour(report):
    html = report.read_text()
    for kind, mark in (("substitute", "S"), ("delete", "D"), ("insert", "I")):
        assert re.search(rf'class="word {kind}"><span class="mark">{mark}</span>', html)


def test_the_worst_utterance_comes_first(report, evaluation):
    listed = re.findall(r"<code>([^<]+)</code></div>", report.read_text())
    assert listed[0] == evaluation.sets["quarter"].rows[37].id


def test_the_report_is_one_file_of_moderate_size(report):
    assert [found.name for found in report.parent.iterdir()] == ["report.html"]
    assert report.stat().st_size < 3_000_000


def test_an_utterance_is_listed_once_with_what_the_champion_made_of_it(make_evaluation):
    rows = rows_with(0)
    rows[3] = replace(rows[3], hypothesis="nothing of it", confidence=0.99)
    html = render_report(make_evaluation(benchmark=rows, champion=rows_with(0)))
    assert html.count(f"<code>{rows[3].id}</code></div>") == 1
    assert "champion 0" in html


def test_sound_is_embedded_up_to_the_budget_and_decodes_again(make_evaluation):
    import soundfile

    asked = []

    def audio(set_name, identity):
        asked.append((set_name, identity))
        return (0.3 * np.sin(np.arange(32_000) * 0.1)).astype(np.float32)

    evaluation = make_evaluation(quarter=rows_with(2))
    html = render_report(evaluation, audio=audio, audio_budget_bytes=40_000)
    sounds = re.findall(r'<audio[^>]*src="data:audio/mpeg;base64,([^"]+)"', html)
    decoded = [base64.b64decode(sound) for sound in sounds]
    assert 2 <= len(decoded) < 20
    assert sum(map(len, decoded)) <= 40_000
    samples, rate = soundfile.read(io.BytesIO(decoded[0]))
    assert rate == 16_000
    assert len(samples) == pytest.approx(32_000, abs=4_000)
    assert "audio budget is spent" in html
    assert asked[0][0] == "quarter"


def test_sound_that_is_missing_or_broken_is_named_and_stops_nothing(make_evaluation, tmp_path):
    def audio(set_name, identity):
        return {"0-0": None, "0-1": b"not audio", "0-2": tmp_path / "absent.flac"}.get(identity)

    html = render_report(make_evaluation(quarter=rows_with(2)), audio=audio)
    assert "<audio" not in html
    assert html.count("No sound:") >= 20


def test_a_report_of_nothing_is_still_a_report(make_evaluation):
    """An evaluation that measured nothing must be seen to have measured nothing."""
    empty = SetResult(result_of([]).score, {}, (), reliability([], []))
    evaluation = make_evaluation(sets={"quarter": empty}, nonspeech=None, parity={}, rtfx=float("nan"))
    html = render_report(evaluation, judge(evaluation))
    assert "nothing was measured" not in html  # that text is inside the plots
    assert "not measured" in html
    assert "refused" in html


@pytest.mark.parametrize("dark", [False, True])
def test_every_plot_is_a_png_whatever_is_in_it(make_evaluation, dark):
    rows = [hostile(row) for row in rows_with(1)]
    rows = [replace(row, id=str(number)) for number, row in enumerate(rows)]
    full = make_evaluation(quarter=rows, champion=rows_with(1))
    empty = make_evaluation(sets={})
    for evaluation in (full, empty):
        for plot in (wer_by_slice_png, wer_by_condition_png, wer_by_speaker_png, champion_png):
            assert is_png(plot(evaluation, dark=dark))
    assert is_png(reliability_png(reliability([], []), dark=dark))


def test_the_same_evaluation_gives_the_same_plot(make_evaluation):
    assert wer_by_slice_png(make_evaluation()) == wer_by_slice_png(make_evaluation())


def test_frequent_errors_are_counted_by_pair(make_evaluation):
    rows = [replace(row, reference="four two", hypothesis=text) for row, text in zip(
        rows_with(0), ["for two", "for two", "four to", "four", "four two two"], strict=False
    )]  # fmt: skip
    found = frequent_errors(edit for row in rows for edit in align(row.reference, row.hypothesis, "en"))
    assert [(pair.reference, pair.hypothesis, count) for pair, count in found["substitute"]] == [
        ("four", "for", 2),
        ("two", "to", 1),
    ]
    assert [(pair.reference, count) for pair, count in found["delete"]] == [("two", 1)]
    assert [(pair.hypothesis, count) for pair, count in found["insert"]] == [("two", 1)]
