"""Review tasks in Label Studio, and what people answered there: its JSON in both directions, and a sync over its API.

A task of ours is one of theirs that names it in its data; the model's text is its prediction. An annotation becomes the
answer of the person who made it, by the mail address, which has to be among `inference.review.reviewers`. The same
annotation is taken once, however often it is read; one that was changed there is another answer.

("Import pre-annotated data" and "Export annotations", the guide of Label Studio; tried with 1.23.)
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

from deployment.review.answers import LONGEST_S, UNUSABLE, AlreadyAnswered, Kind, NotAnAnswer
from deployment.review.desk import Asked, Desk, NotAllowed, NotAsked

TEXT, WHY, AUDIO, OURS = "transcription", "unusable", "audio", "soundstage_task"
PAGE = 100  # tasks that are asked for at once
TIMEOUT_S = 60.0
SILENCE = "silence"  # their page gives no text where it was emptied
_REASONS = {SILENCE: "nobody speaks", **UNUSABLE}
_CHOICES = "\n".join(f'    <Choice value="{reason}" hint="{escape(title)}"/>' for reason, title in _REASONS.items())
CONFIG = f"""<View>
  <Audio name="{AUDIO}" value="${AUDIO}"/>
  <TextArea name="{TEXT}" toName="{AUDIO}" rows="3" editable="true" maxSubmissions="1"/>
  <Choices name="{WHY}" toName="{AUDIO}" choice="single-radio" showInline="true">
{_CHOICES}
  </Choices>
</View>
"""


class LabelStudioError(Exception):
    """Label Studio does not do what was asked, or what it gave is not its JSON; the message says what to do."""


@dataclass(frozen=True)
class Taken:
    """What became of annotations."""

    taken: int  # answers that are new
    known: int  # that were taken before
    refused: tuple[str, ...]  # a sentence for each that could not be


@dataclass(frozen=True, kw_only=True)
class Annotation:
    """What somebody said of a task in Label Studio."""

    task: str
    who: str
    at: datetime
    kind: Kind
    text: str
    reason: str
    seconds: float


def to_label_studio(asked: Asked, audio: str) -> dict[str, Any]:
    """A task in their JSON; `audio` is where their page finds the clip."""
    task = asked.task
    return {
        "data": {
            AUDIO: audio,
            OURS: task.id,
            "hour": asked.hour,
            "language": task.language,
            "why": task.why,
            "confidence": task.confidence,
        },
        "predictions": [{"model_version": task.transcript, "score": task.confidence, "result": [_area(task.text)]}],
    }


def _area(text: str) -> dict[str, Any]:
    return {"from_name": TEXT, "to_name": AUDIO, "type": "textarea", "value": {"text": [text]}}


def annotations(exported: Any, people: Mapping[int, str]) -> Iterator[Annotation | str]:
    """What an export of theirs says, by the order in which it was said, and a sentence for what says nothing.

    Args:
        exported: the JSON of an export: a list of tasks with their annotations.
        people: mail addresses by the number that annotations name people by.

    Raises:
        LabelStudioError: it is no such list.
    """
    if not isinstance(exported, list) or not all(isinstance(task, dict) for task in exported):
        raise LabelStudioError("this is no export of Label Studio: choose JSON there, not JSON-MIN or CSV")
    for task in exported:
        ours = task.get("data", {}).get(OURS) if isinstance(task.get("data"), dict) else None
        given = [each for each in task.get("annotations") or () if isinstance(each, dict)]
        if not isinstance(ours, str):
            yield f"task {task.get('id')} is none of ours: its data has no {OURS}"
            continue
        for each in sorted(given, key=lambda each: str(each.get("updated_at"))):
            try:
                if (found := _annotation(ours, each, people)) is not None:
                    yield found
            except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
                yield f"annotation {each.get('id')} of {ours} cannot be read: {error}"


def _annotation(task: str, said: Mapping[str, Any], people: Mapping[int, str]) -> Annotation | None:
    """An annotation; None for one that was skipped, which says nothing."""
    if said.get("was_cancelled"):
        return None
    by = said["completed_by"]
    who = by["email"] if isinstance(by, dict) else people.get(by, f"person {by}")
    values = {result["from_name"]: result["value"] for result in said["result"]}
    reason = values[WHY]["choices"][0] if WHY in values else ""
    text = values.get(TEXT, {}).get("text", "")
    if not reason and TEXT not in values:
        raise ValueError(f"it has neither text nor a reason: choose {SILENCE} where nobody speaks")
    if reason == SILENCE:
        reason, text = "", ""
    return Annotation(
        task=task,
        who=who,
        at=datetime.fromisoformat(said["updated_at"].replace("Z", "+00:00")).astimezone(UTC),
        kind="unusable" if reason else "text",
        text=text if isinstance(text, str) else " ".join(text),
        reason=reason,
        seconds=min(LONGEST_S, max(0.0, float(said.get("lead_time") or 0.0))),
    )


def take(desk: Desk, found: Iterable[Annotation | str]) -> Taken:
    """Take annotations as answers; what cannot be taken costs itself alone."""
    taken = known = 0
    refused = []
    for each in found:
        if isinstance(each, str):
            refused.append(each)
            continue
        try:
            asked, who = desk.find(each.task), desk.person(each.who)
            if any(
                answer.who == who and answer.at == each.at for answer in desk.answers.history(asked.hour, asked.task)
            ):
                known += 1
                continue
            desk.answer(who, each.task, each.kind, each.text, each.reason, each.seconds, at=each.at)
            taken += 1
        except (NotAllowed, NotAsked, NotAnAnswer, AlreadyAnswered) as no:
            refused.append(f"{each.who} of {each.task}: {no}")
    return Taken(taken, known, tuple(refused))


class LabelStudio:
    """A project on a Label Studio server; use it as a context.

    Args:
        url: of the server.
        token: a personal access token, or a legacy one.
        title: of the project, made where there is none.
    """

    def __init__(self, url: str, token: str, title: str = "Soundstage review") -> None:
        import httpx

        self._client = httpx.Client(base_url=url.rstrip("/"), timeout=TIMEOUT_S, follow_redirects=True)
        self._token, self._title = token, title

    def __enter__(self) -> "LabelStudio":
        """Sign in and find the project.

        Raises:
            LabelStudioError: the server does not answer, or does not know the token.
        """
        self._client.headers["Authorization"] = f"Token {self._token}"
        if self._token.count(".") == 2:  # a personal access token is a JWT that gives a short-lived one
            access = self._ask("POST", "/api/token/refresh", json={"refresh": self._token})["access"]
            self._client.headers["Authorization"] = f"Bearer {access}"
        projects = self._ask("GET", "/api/projects", params={"page_size": 1000})["results"]
        own = next((project for project in projects if project["title"] == self._title), None)
        if own is None:
            own = self._ask("POST", "/api/projects", json={"title": self._title, "label_config": CONFIG})
        self._project = own["id"]
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self._client.close()

    def give(self, desk: Desk) -> int:
        """Give the project every task that waits and is not there yet, with its audio; returns how many."""
        there = {task["data"].get(OURS) for task in self._tasks()}
        new = [asked for asked in desk.every() if asked.outcome.settled is None and asked.task.id not in there]
        for asked in new:
            task = to_label_studio(asked, self._uploaded(asked, desk))
            self._ask("POST", f"/api/projects/{self._project}/import", json=[task])
        return len(new)

    def take(self, desk: Desk) -> Taken:
        """Take what people answered there."""
        people = {person["id"]: person["email"] for person in self._ask("GET", "/api/users")}
        exported = self._ask("GET", f"/api/projects/{self._project}/export", params={"exportType": "JSON"})
        return take(desk, annotations(exported, people))

    def _uploaded(self, asked: Asked, desk: Desk) -> str:
        """Where the server has the clip of a task."""
        file = (f"{asked.task.id}.flac", desk.clip(asked.task.id), "audio/flac")
        place = f"/api/projects/{self._project}/import"
        said = self._ask("POST", place, params={"commit_to_project": "false"}, files={"file": file})
        (number,) = said["file_upload_ids"]
        return f"/data/{self._ask('GET', f'/api/import/file-upload/{number}')['file']}"

    def _tasks(self) -> Iterator[dict[str, Any]]:
        page = 1
        while True:
            asked = {"project": self._project, "fields": "all", "page": page, "page_size": PAGE}
            tasks = self._ask("GET", "/api/tasks", params=asked)["tasks"]
            yield from tasks
            if len(tasks) < PAGE:
                return
            page += 1

    def _ask(self, method: str, path: str, **what: Any) -> Any:
        import httpx

        try:
            answer = self._client.request(method, path, **what)
            answer.raise_for_status()
            return answer.json()
        except httpx.HTTPStatusError as refused:
            said = refused.response.text[:300]
            raise LabelStudioError(
                f"Label Studio answers {refused.response.status_code} to {method} {path}: {said}. See that the token "
                "is valid and its owner may change the project"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise LabelStudioError(f"Label Studio at {self._client.base_url} does not answer ({error})") from None
