"""The stages of a run: each reads artefacts, works, and publishes one artefact under the hash of everything that can change it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from lmfuse.aids import load_aids
from lmfuse.align.pair import Pair
from lmfuse.answer_stages import AnswerStages
from lmfuse.arms import MergedArm, merge_recipe_of
from lmfuse.artefacts import content_key, is_complete, publish, read_manifest, write_atomic
from lmfuse.collect import collect
from lmfuse.console import Console
from lmfuse.corpus import Corpus, documents_key
from lmfuse.errors import InputError
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.evaluate.paired import bits_per_byte_by_domain
from lmfuse.fuse.min_ce import MinCE
from lmfuse.inputs import Inputs
from lmfuse.jobs import Job, TrainedModel
from lmfuse.lessons import Course, courses
from lmfuse.memory import give_back
from lmfuse.merge.passthrough import Passthrough
from lmfuse.merge_recipe import MergeModel, MergeRecipe, takes_base
from lmfuse.merge_recipe.plan import make_merge_plan
from lmfuse.model_files import local_folder
from lmfuse.models import LanguageModel, ModelSpec, load_model, pick_device
from lmfuse.pairs import PAIR_VERSION, load_pair
from lmfuse.results import read_scores, write_scores
from lmfuse.safetensors_header import SPELLED
from lmfuse.store import RowStore
from lmfuse.teacher import AuthorTeacher, RowTeacher, SourceRows, survey
from lmfuse.train.checkpoint import save_model
from lmfuse.train.loop import train
from lmfuse.train.reader import Strand
from lmfuse.train.settings import Training
from lmfuse.types import Document, DocumentScore
from lmfuse.weights.engine import execute
from lmfuse.weights.plan import FORMAT as MERGE_FORMAT
from lmfuse.workspace import ARTEFACT_VERSION, Workspace


class Stages:
    """What a recipe's models and text can be turned into. Nothing here decides anything."""

    def __init__(self, inputs: Inputs, space: Workspace, console: Console) -> None:
        self.inputs, self.recipe, self.space, self.console = inputs, inputs.recipe, space, console
        self.device = pick_device(self.recipe.device)
        self.answering = AnswerStages(inputs, space, console, self.device, self._load)

    @property
    def specs(self) -> Mapping[str, ModelSpec]:
        """Return the given models by label, the target first."""
        return self.inputs.specs

    @property
    def corpus(self) -> Corpus:
        """Return the windows of all splits."""
        return self.inputs.corpus

    def scores(self, name: str, spec: ModelSpec, key: str, split: str) -> list[DocumentScore]:
        """Measure one model on one split: negative log-likelihood and bytes of each document."""
        batch_tokens, turn_ends = self.recipe.evaluate.batch_tokens, self.inputs.turn_ends
        identity = [ARTEFACT_VERSION, "scores", key, spec.dtype, spec.document_start, self.corpus.key(split), batch_tokens]
        identity += [] if turn_ends else ["no turn ends"]
        path = self.space.artefact("results", content_key(identity) + ".json")
        if not path.exists():
            documents = self.corpus.splits[split]
            model = self._load(spec)
            with self.console.task(f"measure {name} on {split}", model.count_tokens(documents)) as advance:
                write_scores(path, score_documents(model, documents, batch_tokens=batch_tokens, turn_ends=turn_ends, progress=advance))
        return read_scores(path)

    def rows_folder(self, label: str, documents: Sequence[Document] | None = None) -> Path:
        """Return where a model's rows over the training windows, or over other documents, are, collected or not."""
        spec, settings = self.specs[label], self.recipe.rows.model_dump()
        text = self.corpus.key("train") if documents is None else documents_key(documents)
        identity = [ARTEFACT_VERSION, "rows", self.inputs.facts(label).key, spec.dtype, spec.document_start, text, settings]
        return self.space.artefact("rows", content_key(identity))

    def rows(self, label: str, documents: Sequence[Document] | None = None) -> RowStore:
        """Collect the rows of one model over the training windows, or over other documents."""
        folder, settings = self.rows_folder(label, documents), self.recipe.rows
        if is_complete(folder):
            return RowStore.open(folder)
        model, read = self._load(self.specs[label]), self.corpus.splits["train"] if documents is None else documents
        what = f"collect {label}" if documents is None else f"collect {label} on its {len(read):,} elected answers"
        with self.console.task(what, model.count_tokens(read)) as advance:
            store = collect(
                model, read, folder, k=settings.k, batch_tokens=settings.batch_tokens, shard_documents=settings.shard_documents,
                precision=settings.precision, progress=advance,
            )  # fmt: skip
        self.space.event("collected", model=label, key=folder.name, **read_manifest(folder).counters)
        return store

    def teacher(self, job: Job) -> RowTeacher | None:
        """Return who teaches in a job; None for plain continued training."""
        if not job.teachers:
            return None
        held_out = job.held_out or {}
        sources = tuple(SourceRows(label, self.rows(label), self._pair(label, job), held_out.get(label, {})) for label in job.teachers)
        return RowTeacher(sources, job.arm.align, job.arm.fuse, job.to_beat or {})

    def author_teacher(self, job: Job) -> AuthorTeacher:
        """Return who teaches the elected answers of a job's teachers."""
        elected = self.answering.elected(job.teachers)
        sources = tuple(
            SourceRows(label, self.rows(label, elected.won_by(label)), self._pair(label, job), {}) for label in elected.winners
        )  # fmt: skip
        places = {label: place for place, label in enumerate(elected.winners)}
        return AuthorTeacher(sources, job.arm.align, {name: places[label] for name, label in elected.producers.items()})

    def _pair(self, label: str, job: Job) -> Pair:
        tokenizers = self.inputs.tokenizer(label), self.inputs.tokenizer("target")
        return load_pair(*tokenizers, self.space.cache, job.arm.align, self.corpus.splits["train"])

    def survey(self, job: Job) -> tuple[dict[str, Any], dict[str, int]]:
        """Count what each teacher of a job contributes to the training text."""
        teacher_key = content_key([ARTEFACT_VERSION, "survey", self._teaching(job)])
        path = self.space.artefact("results", teacher_key + ".json")
        if not path.exists():
            teacher = self.teacher(job)
            if teacher is None:
                return {}, {}
            found, counted = survey(teacher, self.corpus.splits["train"], self.inputs.tokenizer("target"))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, json.dumps([{name: asdict(source) for name, source in found.items()}, counted]).encode())
        sources, counters = json.loads(path.read_text(encoding="utf-8"))
        return sources, counters

    def truth_winners(self, job: Job) -> dict[str, str]:
        """Return for each training question which teacher of a job is least surprised by the ground truth: per byte, or as its ``fuse`` has it."""
        fuse = job.arm.fuse if isinstance(job.arm.fuse, MinCE) else MinCE()
        judging = replace(job, arm=job.arm.model_copy(update={"fuse": replace(fuse, judge="training_text", no_teacher=False)}))
        teacher, asked = self.teacher(judging), {case.id for case in self.answering.cases}
        assert teacher is not None, "an arm that reads answers has teachers"
        costs = {window.id: np.array(teacher.scores(window)) for window in self.corpus.splits["train"] if window.id in asked}
        return {name: job.teachers[int(np.nanargmin(cost))] for name, cost in costs.items() if not np.isnan(cost).all()}

    def trained(self, job: Job) -> TrainedModel:
        """Train the target as a job says and publish the model; of lessons with a fresh optimizer, one model after the other."""
        made: TrainedModel | None = None
        settings = replace(self.recipe.train, learning_rate=job.learning_rate, seed=job.seed)
        todo = courses(job.arm.lessons, job.arm.optimizer, settings.epochs, len(self.corpus.splits["train"]))
        for number, course in enumerate(todo, start=1):
            made = self._taught(job, replace(settings, epochs=course.epochs), course, made, last=number == len(todo))
        assert made is not None, "an arm has one training at least"
        return made

    def _taught(self, job: Job, settings: Training, course: Course, before: TrainedModel | None, *, last: bool) -> TrainedModel:
        """Return the model of one training. Those that others begin with are kept in float32: nothing is rounded between lessons."""
        arm, dtype = job.arm, self.recipe.target.dtype if last else "float32"
        identity = [
            ARTEFACT_VERSION,
            "model",
            self.recipe.target.dtype,
            settings,
            self._teaching(job if course.truth else replace(job, teachers=())),
            [arm.loss, arm.clm_weight] if job.teachers else None,
            *([self.corpus.key("held_out"), self.recipe.evaluate.batch_tokens] if settings.evaluate_steps else []),  # in its log
        ]
        if arm.lessons:
            began = [before.folder.name if before else None, course.first, dtype]
            identity.append([began, course.truth, course.answers, self._authors(job) if course.answers else None])
        folder = self.space.artefact("models", content_key(identity))
        spec = replace(self._made(folder, arm.name), dtype=dtype)
        if not is_complete(folder):
            with publish(folder, kind="model", resume=True) as publication:
                if not publication.reused:
                    self._train(job, settings, course, before, publication.path, dtype)
                publication.drop("checkpoints")
                publication.provenance |= {
                    "arm": arm.name, "learning_rate": job.learning_rate, "seed": job.seed, "target": self.inputs.facts("target").key,
                    "rows": {label: self.rows_folder(label).name for label in job.teachers} if course.truth else {},
                }  # fmt: skip
                if arm.lessons:
                    publication.provenance |= {"before": before.folder.name if before else None}
                if course.answers:
                    publication.provenance |= {"answers": self._authors(job)[1]}
                    publication.counters |= dict(self.answering.elected(job.teachers).counters)
        return TrainedModel(folder, spec, before)

    def merged(self, merge: MergedArm, parts: Sequence[TrainedModel]) -> TrainedModel:
        """Merge trained arms in weight space, the target being their base, and publish the model."""
        folders = [part.folder.name for part in parts]
        identity = [
            ARTEFACT_VERSION,
            "merged",
            MERGE_FORMAT,
            merge.method,
            self.inputs.facts("target").key,
            self.recipe.target.dtype,
            folders,
        ]
        folder = self.space.artefact("models", content_key(identity))
        if not is_complete(folder):
            give_back()
            if len(set(folders)) < len(folders):
                names = ", ".join(merge.of)
                raise InputError(f"merge {merge.name}: of {names} two came out as the same model", hint="name in `of` arms that differ")
            base = self._merge_base() if takes_base(merge.method) else self.specs["target"]
            recipe = merge_recipe_of(merge, [str(part.folder) for part in parts], base)
            made = execute(make_merge_plan(recipe, self.space.cache, self.space.cache), folder)
            self.space.event("merged", name=merge.name, of=list(merge.of), counters=dict(made.counters), distances=dict(made.distances))
            self.console.say(f"merge {merge.name} of {', '.join(merge.of)}: {made.seconds:.1f} s", style="dim")
            for warning in self.merge_notes(folder)["warnings"]:
                self.console.warn(f"merge {merge.name}: {warning}")
        return TrainedModel(folder, self._made(folder, merge.name))

    def _merge_base(self) -> ModelSpec:
        """Return the target as training began with it: where its weights are stored in another type, rounded to the recipe's."""
        spec, facts = self.specs["target"], self.inputs.facts("target")
        if SPELLED[spec.dtype] == facts.dtype:
            return spec
        folder = self.space.artefact("models", content_key([ARTEFACT_VERSION, "rounded", MERGE_FORMAT, facts.key, spec.dtype]))
        if not is_complete(folder):
            model = MergeModel(model=spec.model, revision=spec.revision, name="target")
            recipe = MergeRecipe(models=(model,), method=Passthrough(), dtype=spec.dtype)
            execute(make_merge_plan(recipe, self.space.cache, self.space.cache), folder)
        return replace(spec, model=str(folder), revision=None)

    def merge_notes(self, folder: Path) -> dict[str, Any]:
        """Return what a merge has to say of itself: counters of its fallbacks, warnings, and how far each arm is from the base."""
        manifest = read_manifest(folder)
        warnings = [each for each in manifest.provenance["warnings"] if "licence" not in each.lower()]  # the run's card speaks of licences
        return {"counters": dict(manifest.counters), "warnings": warnings, "distances": manifest.provenance["distances"]}

    def _teaching(self, job: Job) -> list[Any]:
        """Return what decides over a job's teacher rows: part of every key that depends on them."""
        rows = {label: self.rows_folder(label).name for label in job.teachers}
        revision = [PAIR_VERSION, getattr(job.arm.align, "revision", 1)]
        methods = [job.arm.align, revision, job.arm.fuse, job.held_out, job.to_beat] if rows else None
        return [self.inputs.facts("target").key, self.recipe.target.document_start, self.corpus.key("train"), list(rows.items()), methods]

    def _authors(self, job: Job) -> list[Any]:
        """Return what decides over the elected answers of a job and their rows."""
        elected = self.answering.elected(job.teachers)
        rows = {label: self.rows_folder(label, elected.won_by(label)).name for label in elected.winners}
        return [elected.key, rows, job.arm.align, PAIR_VERSION, getattr(job.arm.align, "revision", 1)]

    def _strands(self, job: Job, course: Course) -> list[Strand]:
        """Return the texts of one training. Ground truth that weighs nothing stands there all the same: a sample has its place in the order."""
        documents = self.corpus.splits["train"]
        strands = [Strand(documents, self.teacher(job) if course.truth else None, course.truth or ((0.0, 0.0),))]
        if course.answers:
            strands.append(Strand(self.answering.elected(job.teachers).documents, self.author_teacher(job), course.answers))
        return strands

    def _train(self, job: Job, settings: Training, course: Course, before: TrainedModel | None, folder: Path, dtype: str) -> None:
        arm, strands = job.arm, self._strands(job, course)
        model = self._load(before.spec if before else self.specs["target"])
        tokenizers = [self.inputs.tokenizer(label) for label in job.teachers]
        aids = load_aids(arm.loss, model.tokenizer, tokenizers, self.space.cache) if job.teachers else None
        behind = f", from sample {course.first:,} on" if course.first else ""
        title = f"train {arm.name} (learning rate {job.learning_rate:g}, seed {job.seed}{behind})"
        by_domain = (lambda document: arm.clm_weight.get(document.domain, arm.loss.clm_weight)) if arm.clm_weight and job.teachers else None
        evaluate = self._held_out if settings.evaluate_steps else None
        part = f"-{course.first}" if course.first else ""
        tracker_folder = self.space.run / "tracker" / f"{arm.name}-{job.learning_rate:g}-{job.seed}{part}"
        read = [document for strand in strands if any(weight for _, weight in strand.weight) for document in strand.documents if document]
        with self.console.task(title, round(model.count_tokens(read) * settings.epochs)) as advance:
            train(
                model, strands, arm.loss, settings, folder, first=course.first, aids=aids, document_weight=by_domain, evaluate=evaluate,
                progress=advance, tracker_folder=tracker_folder,
                on_event=lambda event: self.space.event("train", arm=arm.name, **event),
            )  # fmt: skip
        save_model(model, folder, dtype=dtype, source=local_folder(self.specs["target"]))

    def _held_out(self, model: LanguageModel) -> dict[str, float]:
        """Return bits per byte on held-out text by domain, while a model is trained."""
        return bits_per_byte_by_domain(
            score_documents(
                model, self.corpus.splits["held_out"], batch_tokens=self.recipe.evaluate.batch_tokens, turn_ends=self.inputs.turn_ends
            )
        )

    def _made(self, folder: Path, name: str) -> ModelSpec:
        """Return what loads a model that was made of the target; how the target reads text is how it does."""
        return replace(self.specs["target"], model=str(folder), revision=None, name=name)

    def _load(self, spec: ModelSpec) -> LanguageModel:
        give_back()  # what the model before it held
        return load_model(spec, self.device)
