"""The command `soundstage`: every way in, a few lines each that call the library.

Whatever a command needs is imported when it runs: `--help` answers at once, and a machine that only serves loads no
Dagster. A refusal is one sentence on stderr and exit code 1; an option that cannot be is exit code 2.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from deployment.settings import Settings

INTERRUPTED = 130

app = typer.Typer(
    name="soundstage",
    help="Speech-recognition models from quarterly audio to production.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Home = Annotated[
    str | None, typer.Option(help="Data store, a folder or s3://bucket/prefix (default: from the settings).")
]
Hour = Annotated[str | None, typer.Option(metavar="KEY", help="Hour of its arrival, such as 2026-11-26-09.")]
Form = Literal["text", "json", "amazon.json", "srt", "vtt", "ctm", "rttm"]
Names = Annotated[list[str] | None, typer.Option(metavar="TAG,...", help="Languages (default: all of the settings).")]


def _told(problem: object) -> None:
    sys.stderr.write(f"error: {problem}\n")


@contextmanager
def _refusing(*refusals: type[Exception], code: int = 1) -> Iterator[None]:
    """Make what a command may refuse one sentence on stderr and an exit code."""
    from deployment.settings import SettingsError

    known: tuple[type[Exception], ...] = (SettingsError, *refusals)
    try:
        yield
    except known as refused:
        _told(refused)
        raise typer.Exit(code) from refused


def _settings(home: str | None = None, *, trains: bool = False) -> "Settings":
    from deployment.settings import Settings, placed

    settings = Settings.load(trains=trains)
    return settings if home is None else settings.model_copy(update={"home": placed(Path.cwd(), home)})


def _console() -> "Console":
    from rich.console import Console

    return Console()


def _words(given: Sequence[str] | None) -> list[str]:
    """The words of an option that may be repeated, or hold several with commas between them."""
    return [word for text in given or () for word in text.split(",") if word]


@app.command()
def demo() -> None:
    """Quarters of audio to an approved, served model; prints each step."""
    from speech_assets import demo
    from speech_assets.dagster_client import DagsterError
    from speech_assets.local import services

    console = _console()
    services.stop_on_sigterm()
    try:
        with _refusing(services.ServiceError, DagsterError):
            demo.run(_settings(trains=True), console)
    except KeyboardInterrupt as stopped:
        console.print("stopped; run it again and it goes on where it was")
        raise typer.Exit(INTERRUPTED) from stopped


@app.command()
def up() -> None:
    """Dagster, MLflow, the pages and the transcription server, until Ctrl-C."""
    from speech_assets.local import services

    console = _console()
    services.stop_on_sigterm()
    try:
        with _refusing(services.ServiceError):
            services.up(_settings(trains=True), console)
    except KeyboardInterrupt:
        console.print("stopped")


@app.command()
def backfill(
    quarters: Annotated[
        list[str] | None, typer.Option(metavar="KEY,...", help="2024-01, or 2024-01:2025-10 (default: all).")
    ] = None,
    languages: Names = None,
    assets: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME,...", help="corpus, models, evaluation, or assets by name (default: all)."),
    ] = None,
    up_to_date: Annotated[bool, typer.Option("--up-to-date", help="Only what is missing or stale, in order.")] = False,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Launch and return.")] = False,
    launched_by: Annotated[
        str | None, typer.Option(metavar="NAME", help="Signs the runs, which the two-person rule looks at.")
    ] = None,
    dagster: Annotated[
        str | None, typer.Option(metavar="URL", help="Where Dagster answers without a sign-in; else `dagster_url`.")
    ] = None,
) -> None:
    """Make partitions through Dagster, which must be running: any quarters and languages, any part of the graph."""
    from rich.console import Console

    from speech_assets.backfill import run
    from speech_assets.dagster_client import DagsterError

    with _refusing(DagsterError):
        problems = run(
            _settings(trains=True),
            Console(highlight=False, markup=False),
            quarters=_words(quarters),
            languages=_words(languages),
            assets=_words(assets),
            up_to_date=up_to_date,
            wait=not no_wait,
            launched_by=launched_by,
            dagster_url=dagster,
        )
    for problem in problems:
        _told(problem)
    if problems:
        raise typer.Exit(1)


@app.command()
def manifest(
    source: Annotated[Path, typer.Argument(help="A table, a JSON-lines manifest or a folder.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder for manifest.jsonl, audio and quarantine.")],
    language: Annotated[str, typer.Option(help="Language tag, such as en; also of rows that do not say it.")],
    kind: Annotated[
        Literal["kaldi", "table", "nemo", "lhotse", "common_voice"], typer.Option(help="How the source is laid out.")
    ] = "table",
    speaker: Annotated[str | None, typer.Option(help="Speaker of rows that do not say it.")] = None,
    recorded_at: Annotated[
        datetime | None, typer.Option(metavar="DATE", formats=["%Y-%m-%d"], help="Date of rows that do not say it.")
    ] = None,
    audio_root: Annotated[
        str | None, typer.Option(help="Folder that paths are relative to (default: the source's).")
    ] = None,
) -> None:
    """Make of a source what `train` learns from, without Dagster; exit code 1 when no row can be used."""
    from speech.corpus.manifest import SPLITS, ManifestError, hours_of
    from speech.corpus.refusals import summary
    from speech.corpus.sources import Source
    from speech_assets.manifest import write_manifest_of

    day = recorded_at.date() if recorded_at else None
    asked = Source(
        kind=kind, path=str(source), language=language, speaker=speaker, recorded_at=day, audio_root=audio_root
    )
    with _refusing(ManifestError, FileExistsError):
        made = write_manifest_of(asked, language, folder, _settings().corpus)
    sets = {name: [row for row in made.kept if row.split == name] for name in SPLITS}
    said = ", ".join(f"{name} {len(rows):,} ({hours_of(rows) * 60:.1f} min)" for name, rows in sets.items())
    typer.echo(f"{folder / 'manifest.jsonl'}: {len(made.kept):,} utterances: {said}")
    if made.quarantined:
        reasons = summary(row.reason for row in made.quarantined)
        typer.echo(f"{folder / 'quarantine.jsonl'}: {len(made.quarantined):,} rows were refused: {reasons}", err=True)
    if not made.kept:
        raise typer.Exit(1)


@app.command()
def train(
    specification: Annotated[
        Path | None, typer.Argument(metavar="RUN.json", help="A run specification; options replace its fields.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Name of a recipe, or a .yaml file.")] = None,
    language: Annotated[str | None, typer.Option(help="Language tag, such as en.")] = None,
    name: Annotated[str | None, typer.Option(help="The model's name (default: the output folder's).")] = None,
    train: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MANIFEST",
            help="JSON lines of normalised audio with a `split` each, as `soundstage manifest` makes them of a source"
            " and a partition of `utterances` has them; those of train are learnt. Repeat for several.",
        ),
    ] = None,
    dev: Annotated[
        list[str] | None, typer.Option(metavar="MANIFEST", help="Likewise; those of dev measure. Repeat for several.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="A .nemo file that you trust (it can run code), or a published checkpoint.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the result; run again with it to resume.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of initialisation, augmentation and order.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Replace a recipe field.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(metavar="URI", help="Log to this tracking server.")] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "soundstage",
    replace: Annotated[bool, typer.Option("--replace", help="Train again over another result.")] = False,
) -> None:
    """Train one acoustic model; exit code 2 for what must be mended first, 143 when stopped with a checkpoint."""
    from training.run import command

    fields: dict[str, Any] = {
        "recipe": recipe,
        "language": language,
        "name": name,
        "train": train or None,
        "dev": dev or None,
        "base": base,
        "output": output,
        "seed": seed,
        "replace": replace or None,
        "mlflow": {"tracking_uri": mlflow, "experiment": experiment} if mlflow else None,
    }
    changes = {field: value for field, value in fields.items() if value is not None}
    raise typer.Exit(command(specification, changes, set_ or ()))


@app.command()
def train_labels(
    specification: Annotated[
        Path | None, typer.Argument(metavar="RUN.json", help="A run specification; options replace its fields.")
    ] = None,
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help="speaker or language. Repeat for both in one process.")
    ] = None,
    manifest: Annotated[
        list[str] | None,
        typer.Option(metavar="MANIFEST", help="As for `train`, with speaker and language. Repeat for several."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder of the result; run again with it to resume.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="A setting of [label_models].")
    ] = None,
) -> None:
    """Train networks that tell voices or languages apart; exit codes as of `train`."""
    from training.labels.run import command

    fields: dict[str, Any] = {"kinds": kind or None, "manifests": manifest or None, "output": output}
    changes = {field: value for field, value in fields.items() if value is not None}
    if set_:
        changes["settings"] = {name: value for name, _, value in (pair.partition("=") for pair in set_)}
    raise typer.Exit(command(specification, changes))


@app.command()
def transcribe(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings, of any format.")],
    language: Annotated[
        str | None, typer.Option(help="Whose champion transcribes (default: the only language of the settings).")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of another model than the champion.")] = None,
    form: Annotated[
        Form, typer.Option("--format", help="How transcripts are written; json is a line a file.")
    ] = "text",
    output: Annotated[
        Path | None, typer.Option(help="Folder that gets a file a recording (default: all go to stdout).")
    ] = None,
) -> None:
    """Transcribe files here, without a server; exit code 1 when one of them cannot be."""
    from deployment.promotion.decisions import REFUSALS
    from deployment.settings import SettingsError
    from deployment.transcribe import champion_bundle, transcribe_file, written
    from speech.audio.source import AudioError
    from speech.bundle import ModelBundle
    from speech.recognition.offline import Recognizer

    with _refusing(*REFUSALS):
        if bundle is None:
            settings = _settings()
            if language is None and len(settings.languages) > 1:
                raise SettingsError(f"name one of {', '.join(settings.languages)} with --language")
            bundle = champion_bundle(settings, language or settings.languages[0])
        recognizer = Recognizer(ModelBundle.load(bundle))
    failed = False
    for file in files:
        try:
            said = written(transcribe_file(file, recognizer), form, file.stem)
            if output is None:
                sys.stdout.write(said)
            else:
                output.mkdir(parents=True, exist_ok=True)
                (output / f"{file.name}.{'txt' if form == 'text' else form}").write_text(said, encoding="utf-8")
        except (AudioError, OSError) as unusable:
            _told(unusable if str(file) in str(unusable) else f"{file}: {unusable}")
            failed = True
    if failed:
        raise typer.Exit(1)


@app.command()
def versions(
    recording: Annotated[str, typer.Argument(help="An upload's name, a recording's digest, or a transcript's id.")],
    hour: Hour = None,
    form: Annotated[
        Form | None,
        typer.Option("--format", help="Write the version that an id names, else the one in force (default: a list)."),
    ] = None,
    home: Home = None,
) -> None:
    """Every version of a recording's transcript, which is in force, and what each changed."""
    from deployment.batch import lookup
    from deployment.batch.versions import described
    from deployment.transcribe import written
    from speech.store.objects import StoreError

    with _refusing(lookup.Unknown, StoreError, OSError):
        objects = _settings(home).objects
        if form is None:
            typer.echo(described(lookup.versions_of(recording, objects, hour)))
            return
        transcript = lookup.version_called(recording, objects, hour).transcript
    sys.stdout.write(written(transcript, form, str(transcript.id)))


@app.command()
def verify(
    transcripts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TRANSCRIPT...",
            help="A JSON file (or JSON lines), an upload's name, a recording's digest, or a transcript's id.",
        ),
    ] = None,
    hour: Hour = None,
    home: Home = None,
) -> None:
    """Make transcripts again from their audio, models and settings; without a name, those of the hour.

    Exit code 0: all are equal; 1: one differs; 2: of one it cannot be told, such as when its audio is gone.
    """
    from deployment.batch.lookup import Unknown, transcripts_called
    from deployment.batch.verify import verify
    from speech.store.objects import StoreError
    from speech.transcript import TranscriptError

    if not transcripts and hour is None:
        raise typer.BadParameter("name a transcript, or an hour with --hour")
    outcomes: set[str] = set()
    with _refusing(Unknown, StoreError, TranscriptError, OSError, code=2):
        objects = _settings(home).objects
        for transcript, edits in transcripts_called(transcripts or (), objects, hour):
            finding = verify(transcript, objects, edits)
            outcomes.add(finding.outcome)
            typer.echo(f"{transcript.id or transcript.source_digest}: {finding}")
    raise typer.Exit(1 if "differs" in outcomes else 2 if "unknown" in outcomes else 0)


speakers = typer.Typer(help="People whose voices are known, so that transcripts name them.", no_args_is_help=True)
app.add_typer(speakers, name="speakers")


@speakers.command()
def enrol(
    name: Annotated[str, typer.Argument(help="What transcripts call the person.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Recordings in which nobody else speaks.")],
    false_accepts: Annotated[
        float, typer.Option(min=0.0001, max=0.5, help="Share of strangers who may be taken for an enrolled person.")
    ] = 0.01,
) -> None:
    """Learn a person's voice; another enrolment of the name takes the place of the former."""
    from datetime import UTC

    from deployment.batch.enrolment import EnrolmentError, Enrolments, calibrated, enrolled, strangers_of
    from deployment.promotion.decisions import REFUSALS
    from deployment.registry.label_champions import label_champion
    from speech.audio.source import AudioError
    from speech.labels import LabelNetwork
    from speech.store.outputs import DataStore
    from speech.vad import SpeechDetector

    with _refusing(EnrolmentError, AudioError, OSError, *REFUSALS):
        settings = _settings()
        store = DataStore(settings.objects)
        bundle = label_champion(store, "speaker")
        if bundle is None:
            raise EnrolmentError("there is no speaker model to hear voices with: materialise `speaker_model`")
        network = LabelNetwork(bundle)
        person = enrolled(name, files, network, SpeechDetector(), settings.inference, datetime.now(UTC))
        calibration = calibrated(strangers_of(store, network), false_accepts)
        enrolments = Enrolments(store.objects)
        enrolments.keep_calibration(bundle.digest, calibration)
        enrolments.add(person)
    typer.echo(
        f"{person.name} is enrolled from {person.speech_s:g} s of speech; a voice has the name from a likeness of "
        f"{calibration.threshold:.2f} on, which at most {false_accepts:g} of {calibration.strangers} strangers reach"
    )


@speakers.command("list")
def list_speakers() -> None:
    """Who is enrolled, and whose enrolment is of a former speaker model."""
    from deployment.batch.enrolment import Enrolments
    from deployment.promotion.decisions import REFUSALS
    from deployment.registry.label_champions import label_champion
    from speech.store.outputs import DataStore

    with _refusing(OSError, *REFUSALS):
        settings = _settings()
        bundle = label_champion(DataStore(settings.objects), "speaker")
        for person in Enrolments(settings.objects).all():
            stale = "" if bundle and person.model == bundle.digest else ", of a former speaker model: enrol again"
            typer.echo(
                f"{person.name}: {person.speech_s:g} s of {len(person.recordings)} recordings, "
                f"{person.enrolled_at:%Y-%m-%d}, model {person.model[:12]}{stale}"
            )


@speakers.command()
def forget(name: Annotated[str, typer.Argument(help="As `soundstage speakers list` says it.")]) -> None:
    """Erase a person's voice for every speaker model, and say which files still carry the name."""
    from deployment.batch.enrolment import Enrolments, carriers, checked_name
    from deployment.promotion.decisions import REFUSALS

    with _refusing(OSError, *REFUSALS):
        objects = _settings().objects
        called = checked_name(name)
        typer.echo(f"{Enrolments(objects).forget(called)} enrolments of {called} erased")
        found = carriers(objects, called)
    if found:
        typer.echo(
            f"{len(found)} files still carry the name; transcribing their hours again makes new ones without it:"
        )
        typer.echo("\n".join(found))


@app.command()
def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on (default: from the settings).")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port; 0 takes a free one (default: from the settings).")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Where others reach it (default: from host and port).")] = None,
    replica: Annotated[str | None, typer.Option(help="Its name (default: host, port and process number).")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Recordings transcribed at the same time.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of one recognition.")] = None,
    queue_limit: Annotated[int | None, typer.Option(min=0, help="Recordings that may wait for a worker.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="Largest recording in bytes.")] = None,
    max_duration_s: Annotated[float | None, typer.Option(min=0, max=1e9, help="Longest recording (s).")] = None,
    upload_idle_s: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="A client that sends nothing for so long is sent away (s).")
    ] = None,
    drain_s: Annotated[float, typer.Option(min=0, max=1e9, help="Longest wait for requests at the end (s).")] = 30.0,
) -> None:
    """One replica of the transcription server, which follows the releases of its data store."""
    from deployment.serving.replica import ServeError
    from deployment.serving.replica import serve as run

    with _refusing(ServeError):
        run(
            _settings(home),
            host=host,
            port=port,
            url=url,
            replica=replica,
            threads=threads,
            drain_s=drain_s,
            workers=workers,
            queue_limit=queue_limit,
            max_bytes=max_bytes,
            max_duration_s=max_duration_s,
            upload_idle_s=upload_idle_s,
        )


@app.command()
def pages(
    home: Home = None,
    url: Annotated[str | None, typer.Option(help="Where to listen (default: where `pages.url` leads).")] = None,
) -> None:
    """The index of all quarters, evaluation reports, Data Docs and the review page over HTTP."""
    from deployment.pages import PagesError
    from deployment.pages import serve as run

    with _refusing(PagesError):
        settings = _settings(home)
        links = {"Dagster": settings.dagster_url, "MLflow": f"{settings.registry.ui_url}/#/models"}
        run(settings.objects, url or settings.pages.listens, links, settings)


@app.command()
def review(
    export: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write what waits as tasks that Label Studio imports.")
    ] = None,
    import_: Annotated[
        Path | None, typer.Option("--import", metavar="FILE", help="Take the answers of its export, as JSON.")
    ] = None,
    people: Annotated[
        list[str] | None,
        typer.Option(metavar="NUMBER=NAME,...", help="Who the numbers in that file are, as reviewers are named."),
    ] = None,
    label_studio: Annotated[
        str | None, typer.Option(metavar="URL", help="Give a server what waits, and take what was answered there.")
    ] = None,
    key: Annotated[
        str, typer.Option(envvar="LABEL_STUDIO_API_KEY", help="Access token for that server.", show_default=False)
    ] = "",
) -> None:
    """Review tasks in Label Studio: as files, or on a server; exit code 1 when an answer cannot be taken."""
    from deployment.review.desk import Desk
    from deployment.review.label_studio import LabelStudio, LabelStudioError, Taken, annotations, take, to_label_studio
    from speech.store.objects import StoreError
    from speech.store.outputs import parse_json, write_json

    taken = Taken(0, 0, ())
    with _refusing(LabelStudioError, StoreError, OSError, ValueError):
        settings = _settings()
        desk = Desk(settings.objects, settings.inference)
        if export is not None:
            waiting = [asked for asked in desk.every() if asked.outcome.settled is None]
            clips = f"{settings.pages.url}/review/clip"
            write_json(export, [to_label_studio(asked, f"{clips}/{asked.task.id}") for asked in waiting])
            typer.echo(f"{export}: {len(waiting)} tasks")
        if import_ is not None:
            named = {int(number): name for number, _, name in (word.partition("=") for word in _words(people))}
            taken = take(desk, annotations(parse_json(import_.read_bytes()), named))
        if label_studio is not None:
            with LabelStudio(label_studio, key) as project:
                taken = project.take(desk)
                typer.echo(f"{project.give(desk)} tasks given to {label_studio}")
    if import_ is not None or label_studio is not None:
        typer.echo(f"{taken.taken} answers taken, {taken.known} taken before")
    for sentence in taken.refused:
        _told(sentence)
    if taken.refused:
        raise typer.Exit(1)


@app.command()
def decisions(
    languages: Annotated[list[str] | None, typer.Argument(metavar="LANGUAGE...")] = None,
    sign: Annotated[
        bool, typer.Option("--sign", help="Sign what is there with the ledger key, after which all must be signed.")
    ] = False,
) -> None:
    """Who put what into production, when and why; exit code 1 when a ledger is not whole."""
    from deployment.promotion import history
    from deployment.promotion.ledger import LedgerError

    with _refusing(LedgerError):
        settings = _settings()
        if sign:
            for language, count in history.sign(settings, languages or settings.languages).items():
                typer.echo(f"{language}: {count} entries are signed")
            return
    raise typer.Exit(history.print_decisions(settings, languages or settings.languages))


@app.command()
def corpus(
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    quarter: Annotated[str, typer.Argument(help="Its first month, such as 2024-04.")],
    language: Annotated[str, typer.Argument(help="Language tag, such as en.")],
    minutes: Annotated[float, typer.Option(help="Minutes of speech.")] = 20.0,
    seed: Annotated[int, typer.Option(help="Same seed, same bytes.")] = 0,
    speakers: Annotated[int, typer.Option(help="Voices heard in the quarter.")] = 24,
    corrupt: Annotated[bool, typer.Option("--corrupt", help="Shift the transcripts against the audio.")] = False,
) -> None:
    """Write one quarter of the embedded corpus."""
    from speech.corpus.synthetic import write_quarter

    with _refusing(ValueError, FileExistsError):
        done = write_quarter(folder, quarter, language, minutes=minutes, seed=seed, speakers=speakers, corrupt=corrupt)
    typer.echo(f"{done.table}: {done.rows} rows, {done.audio_s / 60:.1f} min, {len(done.broken)} broken files")


if __name__ == "__main__":
    app()
