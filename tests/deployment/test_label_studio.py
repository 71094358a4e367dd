"""Label Studio in both directions: its JSON, and a real server where there is one."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from deployment.batch.settings import InferenceSettings, ReviewSettings
from deployment.review.desk import Desk
from deployment.review.label_studio import (
    LabelStudio,
    LabelStudioError,
    annotations,
    take,
    to_label_studio,
)
from speech.store.objects import open_objects
from tests.deployment.review_hours import transcript, write_hour

ADA = "ada@example.org"
PEOPLE = {7: ADA}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    write_hour(tmp_path, [transcript(1, "turn of the light", "stop it")])
    settings = InferenceSettings(review=ReviewSettings(reviewers=(ADA,), double_share=0.0))
    return Desk(open_objects(tmp_path), settings)


def exported(desk: Desk, *said: dict[str, Any]) -> list[dict[str, Any]]:
    """The first task as Label Studio exports it, with annotations of these results."""
    return [
        {
            "id": 1,
            **to_label_studio(desk.every()[0], "/clip.flac"),
            "annotations": [
                {
                    "id": number,
                    "completed_by": 7,
                    "result": [],
                    "was_cancelled": False,
                    "updated_at": f"2026-11-26T10:00:0{number}.5Z",
                    "lead_time": 12.5,
                    **each,
                }
                for number, each in enumerate(said)
            ],
        }
    ]


def written(*lines: str) -> dict[str, Any]:
    return {
        "result": [
            {"from_name": "transcription", "to_name": "audio", "type": "textarea", "value": {"text": list(lines)}}
        ]
    }


def chosen(reason: str) -> dict[str, Any]:
    return {
        "result": [{"from_name": "unusable", "to_name": "audio", "type": "choices", "value": {"choices": [reason]}}]
    }


def test_a_task_of_theirs_has_the_sound_our_id_and_the_models_words(desk: Desk) -> None:
    task = to_label_studio(desk.every()[0], "http://here/clip.flac")
    assert task["data"]["audio"] == "http://here/clip.flac"
    (prediction,) = task["predictions"]
    assert prediction["score"] == 0.5
    assert prediction["result"] == written(desk.every()[0].task.text)["result"]


def test_an_annotation_is_an_answer_once_and_a_changed_one_is_another(desk: Desk) -> None:
    task = desk.every()[0].task
    first = exported(desk, written("turn off", "the light"))
    assert take(desk, annotations(first, PEOPLE)).taken == 1
    again = take(desk, annotations(first, PEOPLE))
    assert (again.taken, again.known) == (0, 1)
    settled = desk.find(task.id).outcome.settled
    assert settled is not None
    assert (settled.who, settled.text, settled.seconds) == (ADA, "turn off the light", 12.5)
    desk.answer(ADA, task.id, "text", "turn off the lights")
    assert take(desk, annotations(first, PEOPLE)).taken == 0, "what was said here since is not undone"
    changed = exported(desk, {**chosen("noise"), "updated_at": "2026-11-26T11:00:00Z"})
    assert take(desk, annotations(changed, PEOPLE)).taken == 1
    after = desk.find(task.id).outcome.settled
    assert after is not None
    assert (after.kind, after.reason) == ("unusable", "noise")


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({**written("a"), "completed_by": 8}, "person 8' may not answer"),
        ({**written("a"), "completed_by": {"email": "eve@example.org"}}, "eve@example.org' may not answer"),
        (chosen("dull"), "is no reason"),
        ({"result": []}, "neither text nor a reason"),
        ({**written("a"), "updated_at": None}, "cannot be read"),
        ({**written("a\u202eb")}, "does not print as it reads"),
        ({"result": [{"from_name": "transcription", "value": {"text": [5]}}]}, "cannot be read"),
    ],
)
def test_what_cannot_be_taken_is_said_and_costs_itself_alone(desk: Desk, said: dict[str, Any], why: str) -> None:
    found = take(desk, annotations(exported(desk, said, written("turn off")), PEOPLE))
    assert found.taken == 1
    (sentence,) = found.refused
    assert why in sentence


def test_where_nobody_speaks_there_is_no_text_whatever_the_model_heard(desk: Desk) -> None:
    both = {"result": [*written("turn of the light")["result"], *chosen("silence")["result"]]}
    assert take(desk, annotations(exported(desk, both), PEOPLE)).taken == 1
    settled = desk.every()[0].outcome.settled
    assert settled is not None
    assert (settled.kind, settled.text) == ("text", "")


def test_what_was_skipped_says_nothing_and_tasks_of_others_are_named(desk: Desk) -> None:
    skipped = exported(desk, {"was_cancelled": True})
    assert take(desk, annotations(skipped, PEOPLE)) == take(desk, [])
    (sentence,) = annotations([{"id": 5, "data": {"audio": "x"}, "annotations": []}], PEOPLE)
    assert "task 5 is none of ours" in str(sentence)
    for nonsense in ({}, "text", [1], None):
        with pytest.raises(LabelStudioError, match="choose JSON"):
            list(annotations(nonsense, PEOPLE))


def test_files_go_out_and_come_back_by_the_command(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from speech_assets.cli import app

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOUNDSTAGE_HOME", str(tmp_path))
    monkeypatch.setenv("SOUNDSTAGE_INFERENCE__REVIEW__REVIEWERS", f'["{ADA}"]')
    out = CliRunner().invoke(app, ["review", "--export", "tasks.json"])
    assert (out.exit_code, out.stdout) == (0, "tasks.json: 2 tasks\n")
    (first, _) = json.loads(Path("tasks.json").read_text())
    assert first["data"]["audio"].endswith(f"/review/clip/{first['data']['soundstage_task']}")
    Path("answers.json").write_text(json.dumps(exported(desk, written("turn it off"))))
    back = CliRunner().invoke(app, ["review", "--import", "answers.json", "--people", f"7={ADA}"])
    assert (back.exit_code, back.stdout) == (0, "1 answers taken, 0 taken before\n")
    unknown = CliRunner().invoke(app, ["review", "--import", "answers.json"])
    assert unknown.exit_code == 1
    assert "'person 7' may not answer" in unknown.stderr


def test_a_server_that_does_not_answer_is_named() -> None:
    with pytest.raises(LabelStudioError, match=r"127\.0\.0\.1:1"), LabelStudio("http://127.0.0.1:1", "token"):
        pass


@pytest.mark.parametrize("kind", ["legacy", "personal"])
def test_a_real_server_takes_tasks_once_and_gives_answers_back(desk: Desk, kind: str) -> None:
    import httpx

    url, token = os.environ.get("LABEL_STUDIO_URL"), os.environ.get("LABEL_STUDIO_API_KEY")
    if not url or not token:
        pytest.skip(
            "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY are not set: no Label Studio here (`label-studio` from PyPI, in "
            "an environment of its own)"
        )
    http = httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=60)
    person = http.get("/api/users").json()[0]["email"]
    if kind == "personal":
        token = http.post("/api/token/").json()["token"]
    desk = Desk(desk.objects, InferenceSettings(review=ReviewSettings(reviewers=(person,), double_share=0.0)))
    with LabelStudio(url, token, f"test {os.getpid()} {kind}") as project:
        if kind == "personal":  # a person has one at a time
            assert http.post("/api/token/blacklist/", json={"refresh": token}).is_success
        assert (project.give(desk), project.give(desk)) == (2, 0)
        for theirs in project._tasks():
            assert http.get(theirs["data"]["audio"]).content == desk.clip(theirs["data"]["soundstage_task"])
            assert http.post(f"/api/tasks/{theirs['id']}/annotations", json=written("all is well")).status_code == 201
        taken = project.take(desk)
        assert (taken.taken, taken.refused) == (2, ())
        assert project.take(desk).known == 2
    assert {asked.outcome.settled and asked.outcome.settled.text for asked in desk.every()} == {"all is well"}
    refused = LabelStudio(url, "0" * 40)
    with pytest.raises(LabelStudioError, match="401"), refused:
        pass
