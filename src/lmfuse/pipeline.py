"""A recipe as stages: each reads artefacts, works, and publishes one artefact under the hash of everything that can change it.

Running the same recipe again continues where it stopped; what exists is reused, whichever run made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from lmfuse import __version__
from lmfuse.align.pair import Pair
from lmfuse.artefacts import content_key, is_complete, publish, read_manifest, write_atomic
from lmfuse.collect import collect
from lmfuse.console import Console
from lmfuse.corpus import Corpus, prepare_corpus
from lmfuse.errors import InputError, did_you_mean
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.evaluate.paired import macro_bits_per_byte
from lmfuse.model_files import local_folder
from lmfuse.models import LanguageModel, ModelFacts, ModelSpec, inspect_model, load_model, load_tokenizer
from lmfuse.pairs import load_pair
from lmfuse.plan import Plan, make_plan
from lmfuse.recipe import Arm, Recipe, load_recipe, model_specs
from lmfuse.release import comparisons_of_interest, release
from lmfuse.report.page import headline
from lmfuse.results import RunResults, mean_over_seeds, nats_per_byte_by_domain, read_scores, write_scores
from lmfuse.store import RowStore
from lmfuse.teacher import RowTeacher, SourceRows, domains_where_better, survey
from lmfuse.train.checkpoint import save_model
from lmfuse.train.loop import train
from lmfuse.train.settings import Training
from lmfuse.types import DocumentScore
from lmfuse.workspace import ARTEFACT_VERSION, Workspace, open_workspace


def pick_device(wanted: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto``, else what was asked for."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


@dataclass(frozen=True)
class TrainedModel:
    """A trained arm on disk and the spec to load it with."""

    folder: Path
    spec: ModelSpec
    key: str


class Pipeline:
    """One run of one recipe: stages as methods, artefacts as their results."""

    def __init__(self, recipe: Recipe, base: Path, space: Workspace, console: Console) -> None:
        self.recipe, self.base, self.space, self.console = recipe, base, space, console
        self.device = pick_device(recipe.device)
        self.specs = model_specs(recipe, base)
        self.arms = {arm.name: arm for arm in recipe.resolved_arms}
        self.counters: dict[str, int | float] = {}
        self.tried_rates: dict[float, float] = {}
        self.verdicts: dict[str, list[str]] = {}

    @classmethod
    @contextmanager
    def open(cls, recipe_path: Path, out: Path | None = None, cache: Path | None = None) -> Iterator[Pipeline]:
        """Load a recipe and hold its run folder.

        Raises:
            RecipeError, InputError, BusyError: see ``load_recipe`` and ``open_workspace``.
        """
        recipe = load_recipe(recipe_path)
        with open_workspace(recipe, out, cache) as space:
            yield cls(recipe, recipe_path.parent, space, Console())

    # ── what is given ────────────────────────────────────────────────────────────────────────────────────────────

    @cached_property
    def facts(self) -> dict[str, ModelFacts]:
        """Return what is known of each model without reading its weights."""
        return {label: inspect_model(spec) for label, spec in self.specs.items()}

    @cached_property
    def corpus(self) -> Corpus:
        """Return the windows of all splits."""
        tokenizers = [load_tokenizer(spec) for spec in self.specs.values()]
        corpus = prepare_corpus(self.recipe.text, self.base, tokenizers, [facts.context for facts in self.facts.values()])
        self.counters |= corpus.counters
        self.space.event("corpus", **{split: len(documents) for split, documents in corpus.splits.items()})
        return corpus

    # ── stages ───────────────────────────────────────────────────────────────────────────────────────────────────

    def scores(self, label: str, spec: ModelSpec, key: str, split: str) -> list[DocumentScore]:
        """Measure one model on one split: negative log-likelihood and bytes of each document."""
        batch_tokens = self.recipe.evaluate.batch_tokens
        identity = [ARTEFACT_VERSION, "scores", key, spec.dtype, spec.document_start, self.corpus.key(split), batch_tokens]
        path = self.space.artefact("results", content_key(identity) + ".json")
        if not path.exists():
            documents = self.corpus.splits[split]
            model = self._load(spec)
            with self.console.task(f"measure {label} on {split}", model.count_tokens(documents)) as advance:
                write_scores(path, score_documents(model, documents, batch_tokens=batch_tokens, progress=advance))
        return read_scores(path)

    def rows(self, label: str) -> RowStore:
        """Collect the rows of one model over the training windows."""
        spec, settings, documents = self.specs[label], self.recipe.rows, self.corpus.splits["train"]
        identity = [
            ARTEFACT_VERSION,
            "rows",
            self.facts[label].key,
            spec.dtype,
            spec.document_start,
            self.corpus.key("train"),
            settings.model_dump(),
        ]
        folder = self.space.artefact("rows", content_key(identity))
        if is_complete(folder):
            return RowStore.open(folder)
        model = self._load(spec)
        with self.console.task(f"collect {label}", model.count_tokens(documents)) as advance:
            store = collect(
                model, documents, folder, k=settings.k, batch_tokens=settings.batch_tokens, shard_documents=settings.shard_documents,
                precision=settings.precision, progress=advance,
            )  # fmt: skip
        self.space.event("collected", model=label, key=folder.name, **read_manifest(folder).counters)
        return store

    def teacher(self, arm: Arm) -> RowTeacher | None:
        """Return who teaches an arm; None for plain continued training."""
        if arm.teacher == "none":
            return None
        labels = self._teachers(arm)
        held_out = {label: self.held_out_nats(label) for label in labels}
        sources = tuple(SourceRows(label, self.rows(label), self._pair(label, arm), held_out[label]) for label in labels)
        to_beat = {} if arm.teacher == "self" else self.clm_held_out_nats
        return RowTeacher(sources, arm.align, arm.fuse, to_beat)

    def _teachers(self, arm: Arm) -> list[str]:
        named = {"self": ["target"], "sources": self.chosen_sources, "best_single": [self.best_single]}.get(arm.teacher, [arm.teacher])
        return ["target", *named] if arm.include_target and arm.teacher != "self" else list(named)

    def _pair(self, label: str, arm: Arm) -> Pair:
        return load_pair(load_tokenizer(self.specs[label]), load_tokenizer(self.specs["target"]), self.space.cache, arm.align)

    def trained(self, arm: Arm, rate: float, seed: int) -> TrainedModel:
        """Train one arm from the target and publish the model."""
        recipe, teacher = self.recipe, self.teacher(arm)
        settings = replace(recipe.train, learning_rate=rate, seed=seed)
        identity = {
            "version": ARTEFACT_VERSION, "target": self.facts["target"].key, "dtype": recipe.target.dtype, "documents": self.corpus.key("train"),
            "start": recipe.target.document_start, "settings": settings, "teacher": self._teacher_identity(arm, teacher),
            "loss": None if teacher is None else arm.loss, "clm_weight": arm.clm_weight if teacher else {},
        }  # fmt: skip
        folder = self.space.artefact("models", content_key(identity))
        if not is_complete(folder):
            with publish(folder, kind="model", resume=True) as publication:
                self._train(arm, teacher, settings, publication.path)
                publication.drop("checkpoints", "tracker")
                publication.provenance |= {"arm": arm.name, "learning_rate": rate, "seed": seed, "target": self.facts["target"].key}
        return TrainedModel(folder, replace(recipe.target, model=str(folder), revision=None, name=arm.name), folder.name)

    def _train(self, arm: Arm, teacher: RowTeacher | None, settings: Training, folder: Path) -> None:
        documents = self.corpus.splits["train"]
        model = self._load(self.specs["target"])
        total = round(model.count_tokens(documents) * settings.epochs)
        title = f"train {arm.name} (learning rate {settings.learning_rate:g}, seed {settings.seed})"
        with self.console.task(title, total) as advance:
            train(
                model, documents, teacher, arm.loss, settings, folder, progress=advance,
                document_weight=(lambda document: arm.clm_weight.get(document.domain, arm.loss.clm_weight)) if arm.clm_weight and teacher else None,
                on_event=lambda event: self.space.event("train", arm=arm.name, **event),
            )  # fmt: skip
        save_model(model, folder, dtype=self.recipe.target.dtype, source=local_folder(self.specs["target"]))

    def _teacher_identity(self, arm: Arm, teacher: RowTeacher | None) -> Any:
        if teacher is None:
            return None
        sources = [[source.store.folder.name, dict(source.held_out_nats_per_byte)] for source in teacher.sources]
        return [sources, arm.align, arm.fuse, dict(teacher.no_teacher_nats_per_byte)]

    # ── decisions, all taken on held-out text ────────────────────────────────────────────────────────────────────

    def held_out_nats(self, label: str) -> dict[str, float]:
        """Return a given model's nats per byte on held-out text, by domain."""
        return nats_per_byte_by_domain(self.scores(label, self.specs[label], self.facts[label].key, "held_out"))

    @cached_property
    def learning_rate(self) -> float:
        """Return the learning rate at which plain continued training does best on held-out text: the control is tuned, fusion is not."""
        rates = self.recipe.learning_rates or (self.recipe.train.learning_rate,)
        if len(rates) == 1:
            return rates[0]
        found = {rate: macro_bits_per_byte(self._arm_scores(self.clm, rate, self.recipe.seeds[0], "held_out")) for rate in rates}
        self.tried_rates = found
        best = min(found, key=lambda rate: (found[rate], rate))
        shown = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in found.items())
        self.console.say(f"plain training on held-out text, bits per byte by learning rate: {shown}; using {best:g}")
        if best in (min(rates), max(rates)):
            self.console.warn(f"the best learning rate {best:g} lies at the edge of those tried")
            self.counters["learning_rate_at_edge"] = 1
        return best

    @cached_property
    def clm_held_out_nats(self) -> dict[str, float]:
        """Return what plain training reaches on held-out text, by domain: what a source has to beat."""
        seeds = [self._arm_scores(self.clm, self.learning_rate, seed, "held_out") for seed in self.recipe.seeds]
        return nats_per_byte_by_domain(mean_over_seeds(seeds))

    @cached_property
    def chosen_sources(self) -> list[str]:
        """Return the sources that teach, and say of each where it is better than plain training."""
        chosen = []
        for source in self.recipe.sources:
            better = list(domains_where_better(self.held_out_nats(source.label), self.clm_held_out_nats))
            self.verdicts[source.label] = better
            if better:
                self.console.say(f"source {source.label}: better than plain training on held-out {', '.join(better)}")
            else:
                self.console.warn(f"source {source.label} is nowhere better than plain training on held-out text")
            if better or self.recipe.sources_used == "all":
                chosen.append(source.label)
        if not chosen:
            raise InputError(
                "no source is better than the plainly trained target on held-out text in any domain: there is nothing to fuse",
                hint="choose other sources or other text, or set `sources_used: all` to fuse all the same",
            )
        self.counters["sources_left_out"] = len(self.recipe.sources) - len(chosen)
        return chosen

    @cached_property
    def best_single(self) -> str:
        """Return the source with the lowest macro bits per byte on held-out text."""
        macro = {s.label: macro_bits_per_byte(self.scores(s.label, s, self.facts[s.label].key, "held_out")) for s in self.recipe.sources}
        return min(macro, key=lambda label: macro[label])

    # ── the whole ────────────────────────────────────────────────────────────────────────────────────────────────

    def collect_only(self, source: str | None) -> None:
        """Collect the rows of one source, or of all."""
        labels = [spec.label for spec in self.recipe.sources]
        if source is not None and source not in self.specs:
            raise InputError(f"source: {did_you_mean(source, self.specs)}", hint="name one of the recipe's sources, or `target`")
        for label in [source] if source else labels:
            store = self.rows(label)
            self.console.say(f"{label}: {len(store):,} documents in {store.folder}")

    def train_only(self, name: str) -> None:
        """Train one arm with every seed."""
        arms = {arm.name: arm for arm in self.recipe.resolved_arms}
        if name not in arms:
            raise InputError(f"arm: {did_you_mean(name, arms)}", hint="add it to the recipe's arms")
        for seed in self.recipe.seeds:
            self.console.say(f"{name}: {self.trained(arms[name], self.rate_of(arms[name]), seed).folder}")

    def run(self) -> Path:
        """Execute everything and write report and model into the run's folder; return the report page.

        Raises:
            LmfuseError: the plan's first problem, before anything costs; later whatever a stage meets.
        """
        planned = make_plan(self.recipe, self.base, self.space.cache)
        write_atomic(self.space.run / "plan.json", json.dumps(planned.to_json(), indent=1).encode())
        if planned.problems:
            raise planned.problems[0]
        results = RunResults()
        for label, spec in self.specs.items():
            results.scores[label] = self.scores(label, spec, self.facts[label].key, "evaluation")
        for arm in self.arms.values():
            seeds = [self._arm_scores(arm, self.rate_of(arm), seed, "evaluation") for seed in self.recipe.seeds]
            results.scores[arm.name] = mean_over_seeds(seeds)
        self._survey(results)
        results.counters = self.counters
        results.run = self._describe(planned)
        pairs = comparisons_of_interest(list(self.arms), [s.label for s in self.recipe.sources], self.recipe.result)
        report = results.report(pairs, samples=self.recipe.evaluate.bootstrap_samples, seed=self.recipe.evaluate.seed)
        best = self.arms[self.recipe.result]
        model = self.trained(best, self.rate_of(best), self.recipe.seeds[0])
        page = release(self.space.run, report, model.folder, self.recipe.to_yaml())
        self._tell(report, page)
        return page

    # ── small things ─────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def clm(self) -> Arm:
        """Return the control: plain continued training."""
        return self.arms["clm"]

    def rate_of(self, arm: Arm) -> float:
        """Return an arm's own learning rate, or the one tuned for plain training."""
        return arm.learning_rate or self.learning_rate

    def _load(self, spec: ModelSpec) -> LanguageModel:
        return load_model(spec, self.device)

    def _arm_scores(self, arm: Arm, rate: float, seed: int, split: str) -> list[DocumentScore]:
        model = self.trained(arm, rate, seed)
        return self.scores(arm.name, model.spec, model.key, split)

    def _survey(self, results: RunResults) -> None:
        arm = self.arms[self.recipe.result]
        teacher = self.teacher(arm)
        if teacher is None:
            return
        found, counted = survey(teacher, self.corpus.splits["train"], load_tokenizer(self.specs["target"]))
        results.sources = {name: asdict(source) for name, source in found.items()}
        self.counters |= counted

    def _describe(self, planned: Plan) -> dict[str, Any]:
        """Return what a reader of report.json needs to judge and to repeat the run; nothing that differs between two equal runs."""
        models = [
            {"name": m.label, "architecture": m.architecture, "parameters": m.parameters, "vocabulary": m.vocab_size, "tokenizer": m.tokenizer,
             "licence": m.licence, "key": self.facts[m.label].key}
            for m in planned.models
        ]  # fmt: skip
        arms = {arm.name: self.trained(arm, self.rate_of(arm), self.recipe.seeds[0]) for arm in self.arms.values()}
        return {
            "name": self.recipe.name, "version": __version__, "recipe": content_key(self.recipe.to_yaml()), "result": self.recipe.result,
            "target": models[0], "sources": models[1:], "windows": planned.documents, "notes": list(planned.notes),
            "learning_rate": self.learning_rate, "learning_rates_tried": {f"{rate:g}": value for rate, value in self.tried_rates.items()},
            "seeds": list(self.recipe.seeds), "verdicts": self.verdicts,
            "held_out_nats_per_byte": {label: self.held_out_nats(label) for label in self.specs} | {"clm": self.clm_held_out_nats},
            "curves": {name: json.loads((model.folder / "training.json").read_text(encoding="utf-8"))["lines"] for name, model in arms.items()},
        }  # fmt: skip

    def _tell(self, report: Mapping[str, Any], page: Path) -> None:
        table = Table("arm", *report["domains"], "macro", title="bits per byte on evaluation text, lower is better")
        for arm, values in report["arms"].items():
            table.add_row(arm, *(f"{values[domain]:.4f}" for domain in (*report["domains"], "macro")))
        self.console.table(table)
        for line in headline(report):
            self.console.say(line["text"], style={"better": "green", "worse": "red", "even": "yellow"}[line["kind"]])
        self.console.say(f"report: {page}")
        self.console.say(f"model:  {self.space.run / 'model'}")
