"""A whole run: the order of the stages and the decisions between them, all taken on held-out text.

Running the same recipe again continues where it stopped; what exists is reused, whichever run made it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from lmfuse import __version__
from lmfuse.arms import Arm
from lmfuse.artefacts import content_key, write_atomic
from lmfuse.asking import Respondent
from lmfuse.console import Console
from lmfuse.doctor.fit import spread
from lmfuse.errors import InputError, did_you_mean
from lmfuse.evaluate.paired import by_unit, macro_bits_per_byte
from lmfuse.fuse.uniform import Uniform
from lmfuse.inputs import Inputs
from lmfuse.jobs import Job, TrainedModel
from lmfuse.limits import refuse_lossy, refuse_misfit
from lmfuse.modes import compare_modes
from lmfuse.plan import Plan, judged_fits, make_plan, teachers_of
from lmfuse.questions import questions_of
from lmfuse.recipe import Recipe, Task, load_recipe
from lmfuse.release import comparisons_of_interest, release, tell
from lmfuse.results import RunResults, mean_over_seeds, nats_per_byte_by_domain
from lmfuse.stages import Stages
from lmfuse.tasks import failures, task_questions, task_result
from lmfuse.teacher import domains_where_better, survey
from lmfuse.types import DocumentScore
from lmfuse.workspace import Workspace, open_workspace


class Pipeline:
    """One run of one recipe."""

    def __init__(self, recipe: Recipe, base: Path, space: Workspace, console: Console) -> None:
        self.recipe, self.space, self.console = recipe, space, console
        self.inputs = Inputs(recipe, base, space.cache)
        self.stages = Stages(self.inputs, space, console)
        self.counters: dict[str, int | float] = {}
        self.arms = {arm.name: arm for arm in recipe.resolved_arms}
        self.merges = {merge.name: merge for merge in recipe.resolved_merges}
        self.sources = [source.label for source in recipe.sources]
        self.tried_rates: dict[float, float] = {}
        self.verdicts: dict[str, list[str]] = {}
        self.judged: set[str] = set()

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

    def run(self) -> Path:
        """Execute everything and write report and model into the run's folder; return the report page.

        Raises:
            LmfuseError: the plan's first problem, before anything costs; later whatever a stage meets.
        """
        planned = make_plan(self.inputs)
        write_atomic(self.space.run / "plan.json", json.dumps(planned.to_json(), indent=1).encode())
        if planned.problems:
            raise planned.problems[0]
        self.space.claim(self.recipe)
        self.space.event("corpus", **planned.documents, left_out=self.inputs.corpus.left_out)
        if self.recipe.sources_used == "all":
            self._refuse_lossy(self.recipe.judged_sources)  # else as soon as it is known which sources teach
        results = RunResults()
        unit_of, shown = self.inputs.corpus.evaluation_units, self.recipe.shown
        for label in self.inputs.specs:
            results.scores[shown(label) if label == "target" else label] = by_unit(self._given_scores(label, "evaluation"), unit_of)
        if any(arm.teacher == "sources" for arm in self.arms.values()):
            chosen = self.chosen_sources  # said before the cost of training anything that needs them
            self._refuse_lossy(label for label in chosen if label in self.recipe.judged_sources)
        for name in (*self.arms, *self.merges):
            results.scores[shown(name)] = by_unit(self._made_scores(name, "evaluation"), unit_of)
        results.sources, counted = self._survey()
        results.counters = dict(self.inputs.corpus.counters) | self.counters | counted | self._merge_counters()
        results.run = self._describe(planned)
        if self.answering_job is not None:
            results.run["answers"] = self._modes(self.answering_job)
            results.counters |= self.stages.answering.elected(self.answering_job.teachers).counters
        made = [shown(name) for name in (*self.arms, *self.merges)]
        pairs = comparisons_of_interest(made, self.sources, shown(self.recipe.result), shown("clm"), shown("target"))
        if self.recipe.evaluate.tasks:
            results.run["tasks"] = [self._task(task, pairs) for task in self.recipe.evaluate.tasks]
        report = results.report(pairs, samples=self.recipe.evaluate.bootstrap_samples, seed=self.recipe.evaluate.seed)
        result = self._made(self.recipe.result, self.recipe.seeds[0])
        page = release(self.space.run, report, result.folder, self.recipe.to_yaml())
        tell(self.console, report, page)
        return page

    def collect_only(self, source: str | None) -> None:
        """Collect the rows of one model, or of all that teach in some arm.

        Raises:
            InputError: the recipe has no such model.
        """
        if source is not None and source not in self.inputs.specs:
            raise InputError(f"source: {did_you_mean(source, self.inputs.specs)}", hint="name one of the recipe's sources, or `target`")
        self._refuse_misfits()
        for label in [source] if source else [label for label in self.inputs.specs if label in teachers_of(self.recipe)]:
            store = self.stages.rows(label)
            self.console.say(f"{label}: {len(store):,} documents in {store.folder}")

    def train_only(self, name: str) -> None:
        """Make the model of one arm, or of one merge, with every seed.

        Raises:
            InputError: the recipe has no such arm.
        """
        if name not in self.arms and name not in self.merges:
            raise InputError(f"arm: {did_you_mean(name, [*self.arms, *self.merges])}", hint="add it to the recipe's arms")
        self._refuse_misfits()
        for seed in self.recipe.seeds:
            self.console.say(f"{name}: {self._made(name, seed).folder}")

    # ── decisions ────────────────────────────────────────────────────────────────────────────────────────────────

    def job(self, arm: Arm, seed: int) -> Job:
        """Return an arm's training run: its learning rate, its teachers, and what they have to beat."""
        rate = arm.learning_rate or self.learning_rate
        if arm.teacher == "none":
            return Job(arm, rate, seed)
        named = self._named(arm.teacher)
        teachers = ("target", *named) if arm.include_target and arm.teacher != "self" else tuple(named)
        if arm.align == self.recipe.align:
            self._refuse_lossy(label for label in teachers if label in self.sources)
        if getattr(arm.fuse, "judge", "held_out") == "training_text":
            return Job(
                arm, rate, seed, teachers
            )  # held-out text decides nothing, so nothing that is known of it is part of the model's key
        to_beat = {} if arm.teacher == "self" else self.clm_held_out_nats
        return Job(arm, rate, seed, teachers, {label: self._held_out_nats(label) for label in teachers}, to_beat)

    def _named(self, teacher: str) -> list[str]:
        """Return the labels of the models behind a recipe's word for a teacher; only what the word needs is found out."""
        if teacher == "sources":
            return self.chosen_sources
        if teacher == "best_single":
            return [self.best_single]
        return ["target" if teacher == "self" else teacher]

    def _refuse_misfits(self) -> None:
        """Stop where the plan would for the sake of ``limits``.

        Raises:
            LimitError: a source is beyond a limit.
        """
        for found in judged_fits(self.inputs):
            refuse_misfit(found, self.recipe.align, self.recipe.limits)

    def _refuse_lossy(self, labels: Iterable[str]) -> None:
        """Collect the rows of sources and judge them by the recipe's limits, each source once; nothing where there is no such limit.

        Raises:
            LimitError: a source is beyond a limit.
        """
        if not self.recipe.limits.need_rows:
            return
        for label in labels:
            if label in self.judged:
                continue
            teacher = self.stages.teacher(Job(Arm(name=label, align=self.recipe.align, fuse=Uniform()), 0.0, 0, (label,)))
            assert teacher is not None, "the job names a teacher"
            sample = spread(self.inputs.corpus.splits["train"])
            found = survey(teacher, sample, self.inputs.tokenizer("target"))[0][label]
            self.space.event("limits", source=label, lost_mass=found.lost_mass, one_hot=found.one_hot, windows=len(sample))
            self.console.say(f"{label}: lost mass {found.lost_mass:.2%}, one-hot {found.one_hot:.1%}; on {len(sample):,} training windows")
            refuse_lossy(label, found.lost_mass, found.one_hot, self.recipe.limits)
            self.judged.add(label)

    @cached_property
    def learning_rate(self) -> float:
        """Return the learning rate at which plain continued training does best on held-out text: the control is tuned, fusion is not."""
        rates = self.recipe.learning_rates or (self.recipe.train.learning_rate,)
        if len(rates) == 1:
            return rates[0]
        jobs = {rate: Job(self.arms["clm"], rate, self.recipe.seeds[0]) for rate in rates}
        self.tried_rates = {
            rate: macro_bits_per_byte(self._model_scores(self.stages.trained(job), "held_out")) for rate, job in jobs.items()
        }
        best = min(rates, key=lambda rate: (self.tried_rates[rate], rate))
        shown = ", ".join(f"{rate:g}: {value:.4f}" for rate, value in self.tried_rates.items())
        self.console.say(f"plain training on held-out text, bits per byte by learning rate: {shown}; using {best:g}")
        if best in (min(rates), max(rates)):
            self.console.warn(f"the best learning rate {best:g} lies at the edge of those tried")
            self.counters["learning_rate_at_edge"] = 1
        return best

    @cached_property
    def clm_held_out_nats(self) -> dict[str, float]:
        """Return what plain training reaches on held-out text, by domain: what a source has to beat."""
        return nats_per_byte_by_domain(self._made_scores("clm", "held_out"))

    @cached_property
    def chosen_sources(self) -> list[str]:
        """Return the sources that teach, and say of each where it is better than plain training.

        Raises:
            InputError: ``sources_used: auto`` leaves none.
        """
        for label in self.sources:
            better = self.verdicts[label] = domains_where_better(self._held_out_nats(label), self.clm_held_out_nats)
            if better:
                self.console.say(f"source {label}: better than plain training on held-out {', '.join(better)}")
            else:
                self.console.warn(f"source {label} is nowhere better than plain training on held-out text")
        chosen = [label for label in self.sources if self.verdicts[label] or self.recipe.sources_used == "all"]
        if not chosen:
            raise InputError(
                "no source is better than the plainly trained target on held-out text in any domain: there is nothing to fuse",
                hint="choose other sources or other text, or set `sources_used: all` to fuse all the same",
            )
        self.counters["sources_left_out"] = len(self.sources) - len(chosen)
        return chosen

    @cached_property
    def best_single(self) -> str:
        """Return the source with the lowest macro bits per byte on held-out text."""
        return min(self.sources, key=lambda label: macro_bits_per_byte(self._given_scores(label, "held_out")))

    # ── measured values ──────────────────────────────────────────────────────────────────────────────────────────

    def _given_scores(self, label: str, split: str) -> list[DocumentScore]:
        key = self.inputs.facts(label).key  # first: it pins the commit of a hub model
        return self.stages.scores(label, self.inputs.specs[label], key, split)

    def _held_out_nats(self, label: str) -> dict[str, float]:
        return nats_per_byte_by_domain(self._given_scores(label, "held_out"))

    def _made(self, name: str, seed: int) -> TrainedModel:
        """Return the model of an arm or of a merge, made if it is not there yet."""
        if name in self.arms:
            return self.stages.trained(self.job(self.arms[name], seed))
        return self.stages.merged(self.merges[name], [self._made(part, seed) for part in self.merges[name].of])

    def _model_scores(self, model: TrainedModel, split: str) -> list[DocumentScore]:
        return self.stages.scores(model.spec.label, model.spec, model.folder.name, split)

    def _made_scores(self, name: str, split: str) -> list[DocumentScore]:
        return mean_over_seeds([self._model_scores(self._made(name, seed), split) for seed in self.recipe.seeds])

    def _macro_by_seed(self) -> dict[str, list[float]]:
        """Return each arm's macro bits per byte on the evaluation text, seed by seed: what the intervals over documents do not show."""
        return {
            self.recipe.shown(name): [
                macro_bits_per_byte(self._model_scores(self._made(name, seed), "evaluation")) for seed in self.recipe.seeds
            ]
            for name in (*self.arms, *self.merges)
        }

    def _merge_notes(self, name: str) -> dict[str, Any]:
        return self.stages.merge_notes(self._made(name, self.recipe.seeds[0]).folder)

    def _merge_counters(self) -> dict[str, int]:
        """Return every fallback of every merge."""
        return {f"merge_{name}_{what}": count for name in self.merges for what, count in self._merge_notes(name)["counters"].items()}

    def _survey(self) -> tuple[dict[str, Any], dict[str, int]]:
        """Return what each teacher contributes to the result and how much is untaught; of a merge, teacher by teacher of each of its arms."""
        if self.recipe.result in self.arms:
            return self.stages.survey(self.job(self.arms[self.recipe.result], self.recipe.seeds[0]))
        found: dict[str, Any] = {}
        counted: dict[str, int] = {}
        for part in self.merges[self.recipe.result].of:
            sources, counters = self.stages.survey(self.job(self.arms[part], self.recipe.seeds[0]))
            found |= {
                f"{self.recipe.shown(label) if label == 'target' else label} in {self.recipe.shown(part)}": source
                for label, source in sources.items()
            }
            counted |= {f"{part}_{name}": count for name, count in counters.items()}
        return found, counted

    @cached_property
    def answering_job(self) -> Job | None:
        """Return the training that answers are reported of: the result's, or that of the first arm that learns from answers; None: there are none."""
        reading = [arm for arm in self.arms.values() if arm.reads_answers]
        reading.sort(key=lambda arm: arm.name != self.recipe.result)
        return self.job(reading[0], self.recipe.seeds[0]) if reading else None

    def _modes(self, job: Job) -> dict[str, Any]:
        """Return which teacher wins how often by the ground truth and by what it says, under the names of the report."""
        answering = self.stages.answering
        windows = {case.id: case.truth for case in questions_of(self.inputs.corpus.splits["train"])}
        found = compare_modes(answering.cases, self.stages.truth_winners(job), answering.election(job.teachers), windows)
        named = {self.recipe.shown(label) if label == "target" else label: source for label, source in found["by_source"].items()}
        return found | {"by_source": named}

    def _task(self, task: Task, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Let every model answer the questions of a task and return what the report says of it."""
        shown, answering = self.recipe.shown, self.stages.answering
        cases = task_questions(task, self.inputs.corpus.splits["evaluation"])
        asked = {shown(label) if label == "target" else label: [answering.respondent(label)] for label in self.inputs.specs}
        for name in (*self.arms, *self.merges):
            made = [self._made(name, seed) for seed in self.recipe.seeds]
            reader = self.inputs.tokenizer("target").key
            asked[shown(name)] = [Respondent(shown(name), model.spec, model.folder.name, reader) for model in made]
        failed = {
            name: [failures(task, cases, answering.asking.replies(who, cases, task.writing)) for who in each]
            for name, each in asked.items()
        }
        return task_result(task, failed, pairs, self.recipe.evaluate)

    def _describe(self, planned: Plan) -> dict[str, Any]:
        """Return what a reader of report.json needs to judge and to repeat the run; nothing that differs between two equal runs."""
        models = [
            {"name": m.label, "architecture": m.architecture, "parameters": m.parameters, "vocabulary": m.vocab_size, "tokenizer": m.tokenizer,
             "licence": m.licence, "key": self.inputs.facts(m.label).key}
            for m in planned.models
        ]  # fmt: skip
        first, shown = self.recipe.seeds[0], self.recipe.shown
        return {
            "name": self.recipe.name, "version": __version__, "recipe": content_key(self.recipe.to_yaml()), "result": shown(self.recipe.result),
            "controls": [shown("clm"), "self", shown("target")],
            "merges": {
                shown(name): {"of": [shown(part) for part in merge.of], **{key: self._merge_notes(name)[key] for key in ("warnings", "distances")}}
                for name, merge in self.merges.items()
            },
            "target": models[0] | {"name": self.recipe.target.label}, "sources": models[1:], "windows": planned.documents, "notes": list(planned.notes),
            "learning_rate": self.learning_rate, "learning_rates_tried": {f"{rate:g}": value for rate, value in self.tried_rates.items()},
            "seeds": list(self.recipe.seeds), "macro_by_seed": self._macro_by_seed(), "verdicts": self.verdicts,
            "held_out_nats_per_byte": {shown(label) if label == "target" else label: self._held_out_nats(label) for label in self.inputs.specs}
            | {shown("clm"): self.clm_held_out_nats},
            "curves": {shown(name): self._made(name, first).curve for name in self.arms},
        }  # fmt: skip
