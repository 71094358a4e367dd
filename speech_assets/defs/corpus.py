"""The corpus, a partition per quarter and language: what the source holds, normalised, validated, split, frozen."""

import json
import shutil
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import dagster as dg

from deployment.pages import DATA_DOCS, publish
from deployment.review.answers import Answers
from deployment.review.learnt import learnt
from deployment.settings import Settings
from evaluation.corpus.expectations import catalogue, validate
from evaluation.corpus.profile import CorpusProfile
from evaluation.corpus.validation import ExpectationOutcome, ValidationUnknown, failed_checks
from speech.corpus.index import SourceIndex, index_of, with_audio
from speech.corpus.manifest import (
    SPLITS,
    ManifestError,
    RejectedRow,
    Utterance,
    hours_of,
    quarter_of,
    quarter_title,
    row_line,
)
from speech.corpus.normalize import (
    DELIVERED,
    MANIFEST,
    SOURCE_DIGEST,
    Quarantined,
    Sorted,
    normalize_audio,
    read_quarantine,
    rows_of,
    source_digests,
)
from speech.corpus.refusals import grouped, summary
from speech.corpus.sources import Source
from speech.corpus.synthetic import edition, write_quarter
from speech.store.objects import Missing, StoreError
from speech.store.outputs import Published, digest_file, write_atomically, write_json
from speech_assets.dagster_client import SETTINGS_METADATA
from speech_assets.defs.metadata import markdown_table, place_of, quarter_heading
from speech_assets.defs.partitions import CPU_POOL, Grid, quarter_and_language, same_language, same_quarter_and_language
from speech_assets.defs.resources import Workspace, settings_versions, version_of
from speech_assets.defs.retries import retried_when_unreachable
from speech_assets.manifest import quarantined, selected
from speech_assets.partition_keys import partition_of

UTTERANCES, TRAINING_DATA = dg.AssetKey("utterances"), dg.AssetKey("training_data")
COUNTS = "counts.json"
PROFILE = "profile.json"


def definitions(grid: Grid) -> dg.Definitions:
    """The corpus of a deployment, as assets with their checks."""
    partitions, settings = grid.quarter_language, grid.settings

    check = partial(dg.AssetCheckSpec, partitions_def=partitions, blocking=True)
    asset = partial(dg.asset, partitions_def=partitions, group_name="corpus", pool=CPU_POOL)
    return dg.Definitions(
        assets=[
            asset(
                kinds={"python"},
                code_version=_sources_version(settings),
                metadata={SETTINGS_METADATA: json.dumps(settings_versions(settings))},
                check_specs=[check("every_row_accounted_for", asset="recordings")],
            )(recordings),
            asset(
                kinds={"ffmpeg"},
                code_version="1",
                deps=["recordings"],
                check_specs=[check("in_equals_out_plus_quarantined", asset="normalized_audio")],
            )(normalized_audio),
            asset(
                kinds={"greatexpectations"},
                code_version=version_of(settings.corpus),
                deps=["normalized_audio"],
                check_specs=[
                    check("no_utterance_lost", asset="utterances"),
                    *(
                        check(name, asset="utterances", blocking=blocking, description=description)
                        for name, blocking, description in catalogue(settings.corpus)
                    ),
                ],
            )(utterances),
            dg.AssetSpec(
                key=TRAINING_DATA,
                partitions_def=partitions,
                group_name="corpus",
                deps=[UTTERANCES],
                description="What a quarter gives to training: its utterances where their checks passed, nothing where "
                "they did not. Written with `utterances`; it is what fine-tunes of later quarters depend on, so that a "
                "quarter which cannot be built is left out of them and does not hold them back.",
            ),
            dg.asset(
                partitions_def=grid.base_quarter_language,
                group_name="corpus",
                code_version="1",
                deps=[dg.AssetDep(UTTERANCES, partition_mapping=same_quarter_and_language)],
            )(base_corpus),
            dg.asset(
                partitions_def=grid.languages,
                group_name="corpus",
                code_version="1",
                pool=CPU_POOL,
                deps=[dg.AssetDep("base_corpus", partition_mapping=same_language)],
                check_specs=[
                    dg.AssetCheckSpec(
                        "of_the_sources",
                        asset="benchmark_set",
                        partitions_def=grid.languages,
                        description="Own sources are not measured on speech that the embedded corpus left in the same "
                        "data store.",
                    )
                ],
            )(benchmark_set),
        ]
    )


def _sources_version(settings: Settings) -> str:
    if all(source.kind != "synthetic" for source in settings.sources):
        return version_of(*settings.sources)
    return version_of(*settings.sources, settings.synthetic, edition())


def source_index(source: Source, workspace: Workspace, quarter: str, language: str) -> SourceIndex:
    """The rows of a source, of every quarter and language that it holds.

    Raises:
        ManifestError: it cannot be read.
    """
    kind, path = source.kind, source.path
    if kind == "synthetic":
        synthetic = workspace.settings.synthetic
        path = str(synthesised(workspace, language) / quarter)
        write_quarter(
            Path(path),
            quarter,
            language,
            minutes=synthetic.minutes,
            seed=synthetic.seed,
            speakers=synthetic.speakers,
            corrupt=partition_of(quarter, language) in synthetic.corrupt,
        )
        kind = "table"
    elif kind == "reviewed":
        kind, path = "nemo", str(_reviewed_rows(workspace, quarter, language))
    assert path is not None  # the settings refuse a source without one
    known = workspace.settings.languages
    language_of_rows = source.language or (known[0] if len(known) == 1 else None)
    return index_of(workspace.store, kind, path, source.model_copy(update={"language": language_of_rows}))


def _reviewed_rows(workspace: Workspace, quarter: str, language: str) -> Path:
    """A manifest of what people wrote that belongs to a partition; none of it is of the frozen benchmark."""
    frozen: list[Utterance] = []
    if workspace.store.exists("benchmark_set", language):
        frozen = list(rows_of(workspace.store.current("benchmark_set", language)))
    rows = learnt(
        Answers(workspace.objects, workspace.settings.inference.review.doubled),
        quarter,
        language,
        recordings={row.attributes.get(SOURCE_DIGEST, "") for row in frozen},
        speakers={row.speaker for row in frozen},
    )
    path = workspace.settings.local / "sources" / "reviewed" / f"{quarter}-{language}.jsonl"
    data = b"".join(map(row_line, rows))
    if not path.is_file() or path.read_bytes() != data:  # an index is read again when its manifest was written
        write_atomically(path, data)
    return path


@retried_when_unreachable
def recordings(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """What the sources hold for the quarter: a manifest of audio files, transcripts and speakers, by reference.

    Rows that no importer can read are kept aside with the file, the row and the reason.
    """
    quarter, language = quarter_and_language(context)
    found: dict[str, Utterance] = {}
    rejected: list[RejectedRow] = []  # rows that no importer could read, which may be of this partition or of others
    unusable: list[RejectedRow] = []  # rows of this partition
    places: Counter[tuple[str, str]] = Counter()  # all rows, by as much as is known of their quarter and language
    nowhere: Counter[str] = Counter()  # rows that no partition of this deployment takes, by why
    read = elsewhere = 0
    try:
        for source in workspace.settings.sources:
            index = source_index(source, workspace, quarter, language)
            read += index.read
            places.update(index.counts)
            for row in index.rejections():
                place = row.quarter, row.language
                places[place] += 1
                if why := _outside(*place, workspace):
                    nowhere[why] += 1
                elif row.quarter not in ("", quarter) or row.language not in ("", language):
                    elsewhere += 1
                else:
                    (unusable if place == (quarter, language) else rejected).append(row)
            for partition, count in index.counts.items():
                if why := _outside(*partition, workspace):
                    nowhere[why] += count
                elif partition != (quarter, language):
                    elsewhere += count
            refused: list[RejectedRow] = []
            for heard in with_audio(index.rows(quarter, language)):
                if isinstance(heard, RejectedRow):
                    refused.append(heard)
                elif heard.id in found:
                    why = f"id '{heard.id}' is also in another source: give one of the two rows another id"
                    refused.append(RejectedRow(heard.audio, 0, why, heard.id))
                else:
                    found[heard.id] = heard
            unusable += index.placed(refused)
    except ManifestError as unreadable:
        raise dg.Failure(f"a source cannot be read: {unreadable}", allow_retries=False) from unreadable
    digests = source_digests(found.values())
    listed = (
        replace(
            row,
            digest=row.digest or digests[row.audio],
            attributes={**row.attributes, DELIVERED: str(place)},
        )
        for place, row in enumerate(found.values())
    )
    rows = sorted(listed, key=lambda row: row.id)
    refusals = tuple(map(quarantined, sorted((*unusable, *rejected), key=lambda row: (row.source, row.row))))
    counts = {
        "read": read,
        "kept": len(rows),
        "other_partitions": elsewhere,
        "no_partition": nowhere.total(),
        "rejected": len(rejected),
        "unusable": len(unusable),
    }
    with workspace.store.replace("recordings", quarter, language) as staging:
        Sorted(tuple(rows), refusals).write(staging.path)
        write_json(staging.path / COUNTS, {**counts, "unread_share": _unread_share(places, quarter, language)})
    published = staging.published
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "recordings": len(rows),
            "speakers": len({row.speaker for row in rows}),
            "rejected_rows": len(refusals),
            "rejections": _refusals_table(row.reason for row in refusals),
            "in_no_partition": markdown_table(("why", "rows"), nowhere.most_common()),
            "manifest": place_of(published, MANIFEST),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="every_row_accounted_for",
                passed=read == sum(counts.values()) - read and len(rows) > 0,
                description=None if rows else _why_empty(quarter, language, read, refusals),
                metadata=counts,
            )
        ],
    )


@retried_when_unreachable
def normalized_audio(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """Every recording as 16 kHz mono FLAC with its quality measured; what cannot be decoded is quarantined."""
    quarter, language = quarter_and_language(context)
    rows = [
        replace(row, audio=_place_of(row.audio, workspace))
        for row in rows_of(workspace.store.current("recordings", quarter, language))
    ]
    with workspace.store.replace("normalized_audio", quarter, language) as staging:
        outcome = _without_this_machine(normalize_audio(rows, staging.path), workspace.settings.local)
        outcome.write(staging.path)
    published = staging.published
    qualities = [row.quality for row in outcome.kept if row.quality]
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "hours": round(hours_of(outcome.kept), 4),
            "recordings": len(outcome.kept),
            "quarantined": len(outcome.quarantined),
            "median_snr_db": round(statistics.median(q.snr_db for q in qualities), 2) if qualities else 0.0,
            "telephone_share": round(sum(q.narrow_band for q in qualities) / max(1, len(qualities)), 3),
            "quarantine": _quarantine_table(outcome.quarantined),
            "manifest": place_of(published, MANIFEST),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[_count_check("in_equals_out_plus_quarantined", len(rows), outcome)],
    )


@retried_when_unreachable
def utterances(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The quarter's utterances, split by speaker, checked by Great Expectations.

    A speaker stays in one of train, dev and test for ever. The outcome of the checks is stored with the manifest, and
    training refuses a partition whose checks did not pass, whichever way it was started.
    """
    quarter, language = quarter_and_language(context)
    settings, store = workspace.settings, workspace.store
    source = store.current("normalized_audio", quarter, language)
    folder = source.path  # all of it: the checks open the audio, and trainings will
    rows = list(rows_of(source))
    outcome = selected(rows, language, settings.corpus)
    kept = outcome.kept
    before = workspace.grid.previous_quarter(quarter)
    with TemporaryDirectory(prefix="soundstage-docs-") as docs:
        with store.replace("utterances", quarter, language) as staging:
            outcome.write(staging.path)
            validation = validate(
                kept,
                language=language,
                quarter=quarter,
                rejected=Counter(row.code for row in (*outcome.quarantined, *read_quarantine(folder))),
                unreadable_share=_unreadable_share(workspace, quarter, language),
                settings=settings.corpus,
                previous=_profile(workspace, before, language) if before else None,
                docs_dir=Path(docs),
                locate=lambda row: store.objects.located(row.audio),
            )
            passed = validation.passed
            validation.note(staging.path)
            write_atomically(staging.path / PROFILE, validation.profile.to_json())
        publish(store.objects, f"{DATA_DOCS}/{quarter}/{language}", Path(docs))
    published = staging.published
    context.log_event(
        dg.AssetMaterialization(
            TRAINING_DATA,
            partition=context.partition_key,
            metadata={"quarter": quarter_heading(quarter, language), "utterances": len(kept) if passed else 0},
            tags={"dagster/data_version": digest_file(published.file(MANIFEST)) if passed else "none"},
        )
    )
    sets = {name: [row for row in kept if row.split == name] for name in SPLITS}
    return dg.MaterializeResult(
        metadata={
            "quarter": quarter_heading(quarter, language),
            "hours": round(sum(map(hours_of, sets.values())), 4),
            "utterances": len(kept),
            "quarantined": len(outcome.quarantined),
            "speakers": len({row.speaker for row in kept}),
            "splits": markdown_table(
                ("set", "utterances", "speakers", "hours"),
                [
                    (name, len(part), len({row.speaker for row in part}), f"{hours_of(part):.3f}")
                    for name, part in sets.items()
                ],
            ),
            "quarantine": _quarantine_table(outcome.quarantined),
            "data_docs": dg.MetadataValue.url(f"{settings.pages.url}/data-docs/{quarter}/{language}/"),
            "manifest": place_of(published, MANIFEST),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            _count_check("no_utterance_lost", len(rows), outcome),
            *(_expectation_check(o) for o in validation.outcomes),
        ],
    )


@retried_when_unreachable
def base_corpus(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The first quarters: base models learn from them, and benchmark sets are frozen from them.

    Nothing is copied; this names the validated utterances that a language's base depends on, and no other language's.
    """
    quarter, language = quarter_and_language(context)
    utterances = validated_utterances(workspace, quarter, language)
    return dg.MaterializeResult(
        metadata={"quarter": quarter_heading(quarter, language), "manifest": place_of(utterances, MANIFEST)},
        data_version=dg.DataVersion(digest_file(utterances.file(MANIFEST))),
    )


@retried_when_unreachable
def benchmark_set(context: dg.AssetExecutionContext, workspace: dg.ResourceParam[Workspace]) -> dg.MaterializeResult:
    """The frozen test set of a language: the test speakers of the first quarters, written once and then kept.

    Every candidate and champion of the language is scored on it, so figures of different quarters compare. It changes
    only when its folder in the data store is removed by a person.
    """
    language = context.partition_key
    store = workspace.store
    if not store.exists("benchmark_set", language):
        with store.replace("benchmark_set", language) as staging:
            rows: list[Utterance] = []
            for quarter in workspace.grid.first_quarters(workspace.settings.training.base_quarters):
                rows += [
                    _copied_audio(row, store.objects.located(row.audio), staging.path, f"{quarter}-{row.id}")
                    for row in rows_of(validated_utterances(workspace, quarter, language))
                    if row.split == "test"
                ]
            Sorted(tuple(sorted(rows, key=lambda row: row.id)), ()).write(staging.path)
    published = store.current("benchmark_set", language)
    frozen = list(rows_of(published))
    own = all(source.kind != "synthetic" for source in workspace.settings.sources)
    synthetic = _synthetic_rows(workspace, language, frozen) if own else 0
    return dg.MaterializeResult(
        metadata={
            "utterances": len(frozen),
            "speakers": len({row.speaker for row in frozen}),
            "hours": round(hours_of(frozen), 4),
            "manifest": place_of(published, MANIFEST),
        },
        data_version=dg.DataVersion(published.digest),
        check_results=[
            dg.AssetCheckResult(
                check_name="of_the_sources",
                passed=not synthetic,
                severity=dg.AssetCheckSeverity.WARN,
                description=f"{synthetic} of {len(frozen)} utterances were synthesised by the embedded corpus, which "
                f"`sources` names no longer: models of '{language}' are judged on synthetic speech, and the champion "
                "may have learnt it. Name another `home` in soundstage.toml, or begin anew with `make forget`"
                if synthetic
                else None,
            )
        ],
    )


def validated_utterances(workspace: Workspace, quarter: str, language: str) -> Published:
    """A partition's utterances, only if its checks passed when they were written.

    Raises:
        dg.Failure: there is none, or its checks did not pass; running again would not help.
    """
    try:
        utterances = workspace.store.current("utterances", quarter, language)
        failed = failed_checks(utterances)
    except (StoreError, ValidationUnknown) as error:
        raise dg.Failure(f"utterances of {quarter}, {language} cannot be used: {error}", allow_retries=False) from error
    if failed:
        raise dg.Failure(
            f"utterances of {quarter}, {language} did not pass {', '.join(failed)}: open their Data Docs, "
            "correct the source and materialise the partition again",
            allow_retries=False,
        )
    return utterances


def refused_by(workspace: Workspace, quarter: str, language: str) -> tuple[str, ...]:
    """The checks that a partition's utterances did not pass; none where they did, or are not there yet."""
    try:
        return failed_checks(workspace.store.current("utterances", quarter, language))
    except (StoreError, ValidationUnknown):
        return ()


def _place_of(audio: str, workspace: Workspace) -> str:
    """Where audio that a row names can be opened; what the data store no longer has is refused when it is."""
    with suppress(Missing):
        return workspace.objects.located(audio)
    return audio


def _without_this_machine(outcome: Sorted, folder: Path) -> Sorted:
    """What became of rows, with the embedded corpus's files named alike on every machine: digests are of content."""
    named = (replace(row, source=row.source.removeprefix(f"{folder}/")) for row in outcome.quarantined)
    return replace(outcome, quarantined=tuple(named))


def synthesised(workspace: Workspace, language: str) -> Path:
    """Where the embedded corpus writes the quarters of a language."""
    return workspace.settings.local / "sources" / "synthetic" / language


def _copied_audio(row: Utterance, source: str, folder: Path, identity: str) -> Utterance:
    """A row with its audio beside it, under an id that is unique among several quarters."""
    copy = folder / "audio" / f"{identity}{Path(source).suffix}"
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(source, copy)
    return replace(row, id=identity, audio=copy.relative_to(folder).as_posix())


def _synthetic_rows(workspace: Workspace, language: str, rows: Sequence[Utterance]) -> int:
    """How many rows are recordings that the embedded corpus wrote here."""
    written = synthesised(workspace, language)
    quarters = {quarter_of(row.recorded_at) for row in rows}
    digests = {digest_file(file) for quarter in quarters for file in (written / quarter).glob("audio/*")}
    return sum(row.attributes.get(SOURCE_DIGEST) in digests for row in rows)


def _outside(quarter: str, language: str, workspace: Workspace) -> str | None:
    """Why no partition of this deployment takes rows of a quarter and language, "" where it is not known which.

    None where one does, or may.
    """
    if language and language not in workspace.settings.languages:
        return f"language '{language}' is not in `languages`"
    if quarter and quarter < workspace.settings.first_quarter:
        return f"{quarter_title(quarter)} is before `first_quarter`"
    if quarter > workspace.grid.running_quarter():
        return f"{quarter_title(quarter)} has not begun: correct the dates at the source"
    return None


def _why_empty(quarter: str, language: str, read: int, rejected: Sequence[Quarantined]) -> str:
    """Why a partition has no recording: what most of the rejected rows lack, or that its sources hold none."""
    if not rejected:
        return f"no source holds a recording of {quarter} in '{language}': check `sources` in soundstage.toml"
    reasons = summary(row.reason for row in rejected)
    return f"no row of {read:,} can be used for {quarter} in '{language}'; {len(rejected):,} were refused: {reasons}"


def _unread_share(places: Mapping[tuple[str, str], int], quarter: str, language: str) -> float:
    """Share of a partition's rows that no importer could read, of those that do not say that they are of it.

    Nobody knows whose they are: those that name neither quarter nor language count in every partition as in the whole,
    those that name one of the two as in all rows of that quarter or language.
    """
    read = 1.0
    for own_quarter, own_language in (("", ""), (quarter, ""), ("", language)):
        among = sum(
            count
            for place, count in places.items()
            if (not own_quarter or place[0] == own_quarter) and (not own_language or place[1] == own_language)
        )
        read *= 1 - places.get((own_quarter, own_language), 0) / max(1, among)
    return 1 - read


def _unreadable_share(workspace: Workspace, quarter: str, language: str) -> float:
    """Share of a partition's rows that cannot be read or used."""
    counts = json.loads(workspace.store.current("recordings", quarter, language).read(COUNTS))
    unread = counts.get("unread_share", counts["rejected"] / max(1, counts["read"]))
    unusable = counts.get("unusable", 0) / max(1, counts.get("unusable", 0) + counts["kept"])
    return float(unread + (1 - unread) * unusable)


def _profile(workspace: Workspace, quarter: str, language: str) -> CorpusProfile | None:
    try:
        utterances = validated_utterances(workspace, quarter, language)
        return CorpusProfile.from_dict(json.loads(utterances.read(PROFILE)))
    except (dg.Failure, ValueError):
        return None  # nothing to compare with: the quarter before is missing, was refused or is of an older form


def _count_check(name: str, rows: int, outcome: Sorted) -> dg.AssetCheckResult:
    kept, quarantined = len(outcome.kept), len(outcome.quarantined)
    return dg.AssetCheckResult(
        check_name=name,
        passed=rows == kept + quarantined,
        description=f"{rows} in, {kept} out, {quarantined} quarantined",
        metadata={"in": rows, "out": kept, "quarantined": quarantined},
    )


def _expectation_check(outcome: ExpectationOutcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=outcome.name,
        passed=outcome.passed,
        severity=dg.AssetCheckSeverity.ERROR if outcome.blocking else dg.AssetCheckSeverity.WARN,
        description=outcome.explanation,
        metadata={"observed": str(outcome.observed), "limit": str(outcome.limit)},
    )


def _quarantine_table(rows: tuple[Quarantined, ...]) -> dg.MarkdownMetadataValue:
    return _refusals_table(f"{row.code}: {row.reason}" for row in rows)


def _refusals_table(reasons: Iterable[str]) -> dg.MarkdownMetadataValue:
    return markdown_table(("rows", "why; the first of them"), grouped(reasons))
