"""From parents to a winner that can be trusted: evolve on one split, select on another, report on a third."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lmfuse.artefacts import content_key, lock
from lmfuse.disk import full_disk_is_an_error, is_temporary
from lmfuse.errors import InputError
from lmfuse.evolution.bench import Bench
from lmfuse.evolution.controls import Controls, average
from lmfuse.evolution.express import Expression
from lmfuse.evolution.finalists import finalists, fingerprint
from lmfuse.evolution.fitness import Fitness
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Task
from lmfuse.evolution.models import Materialise
from lmfuse.evolution.outcome import Arm, Outcome
from lmfuse.evolution.scores import Scores, compare, mean_score
from lmfuse.evolution.search import Found, Search, Step, shuffled
from lmfuse.evolution.settings import CONTROLS, SearchSettings
from lmfuse.evolution.splits import Exam, Splits
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Genome, Parent

FORMAT = 2  # of what a search does; a change here is another search
JOURNAL, RESULT, WINNER, SCRATCH = "journal.jsonl", "result.json", "model", "scratch"
BESIDE = {"recipe.yaml", "report"}  # what the command line adds to a search's folder
OURS = {JOURNAL, RESULT, WINNER, SCRATCH, *BESIDE, f"{WINNER}.partial", f"{WINNER}.lock", f"{WINNER}.partial.lock"}


@dataclass(frozen=True)
class About:
    """What a winner's card says: sentences on how it was made and what was measured, and the recipe as YAML, with a line's end."""

    notes: tuple[str, ...] = ()
    recipe: str = ""


def evolve(
    settings: SearchSettings,
    parents: Materialise,
    fitness: Fitness,
    splits: Splits,
    out: Path,
    *,
    workers: int = 1,
    progress: Callable[[Step], None] | None = None,
    about: Callable[[Outcome], About] | None = None,
) -> Outcome:
    """Evolve models and return the winner, with scores that neither evolution nor selection has seen.

    ``out`` gets ``model`` (the winner), ``result.json`` and ``journal.jsonl``. The same call goes on where an earlier one was
    interrupted, in whatever way, and ends with the same bytes; nothing that the journal holds is scored again. Only what failed on the
    last two splits, or as a control, is tried once more, since a failure there may pass; another winner then takes the first one's
    place. With several workers the calling program must be importable without side effects, as for all of Python's processes.

    Args:
        settings: what to do.
        parents: models of one architecture, see ``MemoryParents`` and ``FolderParents``.
        fitness: what a child is worth.
        splits: units to evolve on, to select on, to report on.
        out: a folder that is not there, or empty, or of the same search.
        workers: processes that judge children; they change nothing but the time.
        progress: is told each child's fate.
        about: what the winner's card says beyond which search it is of.

    Raises:
        BusyError: another process writes the same folder.
        InputError: settings that contradict each other, splits that overlap, a budget of nothing, a fitness that can score no parent, or
            a folder that holds something else.
        ResourceError: memory or disk do not suffice.
    """
    exam, expression = Exam(splits), checked(settings, parents)
    identity = content_key([FORMAT, _kinds(settings), settings, parents.key, list(parents.labels), fitness.key, splits])
    splits.check_contents(getattr(fitness, "contents", {}))
    _refuse_foreign(out)
    with full_disk_is_an_error(out), lock(out):
        out.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(out / SCRATCH, ignore_errors=True)
        (out / SCRATCH).mkdir(exist_ok=True)
        journal = Journal(out / JOURNAL, identity)
        task = Task(parents, expression, fitness, out / SCRATCH, settings.threads, settings.racing)
        try:
            with Bench(task, journal, workers) as bench:
                outcome = _Run(settings, parents, expression, exam, bench, journal, out).outcome(progress)
                if journal.winner != outcome.winner.key:
                    _retract(out)
                    journal.won(outcome.winner.key, bench.elapsed)
        finally:
            journal.close()
            shutil.rmtree(out / SCRATCH, ignore_errors=True)
        said = About() if about is None else about(outcome)
        parents.publish(expression, outcome.winner, out / WINNER, note=f"{said.recipe}# search: {identity}\n", notes=said.notes)
        outcome.write(out / RESULT)
        return outcome


def checked(settings: SearchSettings, parents: Materialise) -> Expression:
    """Return how genomes become weights, once settings and parents are known to fit.

    Raises:
        InputError: they contradict each other.
    """
    settings.check()
    settings.budget.check(1)
    _check_labels(parents.labels)
    expression = Expression(settings.genes, parents.names, len(parents.labels), settings.express, settings.low, settings.high)
    return expression.checked(parents.has_base)


def _check_labels(labels: Sequence[str]) -> None:
    if len(labels) < 2:
        raise InputError(f"parents: {len(labels)}, expected 2 or more", "name more models")
    for label in labels:
        if labels.count(label) > 1 or label in ("evolved", *CONTROLS):
            why = "two of them are called" if labels.count(label) > 1 else "one of them is called as reports call something else:"
            raise InputError(f"parents: {why} {label}", "give each model a name of its own")


def _kinds(settings: SearchSettings) -> list[str]:
    return [type(settings.method).__name__, type(settings.express).__name__]


def _refuse_foreign(out: Path) -> None:
    """Refuse a place that holds something that no search has written."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise InputError(f"{out} is no folder", "choose another place")
    if out.exists():
        names = sorted(path.name for path in out.iterdir() if not is_temporary(path) and not path.name.startswith(f".{WINNER}."))
        foreign = [name for name in names if name not in OURS]
        if foreign or (names and JOURNAL not in names and names != [SCRATCH]):
            raise InputError(f"{out} is not empty: it holds {(foreign or names)[0]}", "choose an empty folder")


def _retract(out: Path) -> None:
    """Remove what an earlier run published, or had begun to: now another model has won."""
    (out / RESULT).unlink(missing_ok=True)
    for name in (WINNER, f"{WINNER}.partial"):
        shutil.rmtree(out / name, ignore_errors=True)


class _Run:
    """The three phases of a search, one after the other."""

    def __init__(
        self,
        settings: SearchSettings,
        parents: Materialise,
        expression: Expression,
        exam: Exam,
        bench: Bench,
        journal: Journal,
        out: Path,
    ) -> None:
        self._settings, self._parents, self._expression = settings, parents, expression
        self._exam, self._bench, self._journal, self._out = exam, bench, journal, out
        self._individuals = [expression.individual(index) for index in range(len(parents.labels))]
        self._notes, self._messages = Counter[str](), dict[str, str]()

    def outcome(self, progress: Callable[[Step], None] | None) -> Outcome:
        """Search, select, report."""
        search = Search(self._settings, self._expression, self._exam, self._bench, self._journal, progress)
        found = search.run(self._individuals)
        units = shuffled(self._exam.units("evolve"), self._settings.seed)
        choices = Controls(self._settings, self._expression, self._bench, units)
        controls, draws = self._controls(choices, found)
        candidates = finalists(found.pool, choices.parents(), self._settings.finalists, self._mark())
        self._note_failed(choices.failed)
        self._exam.advance("select")
        selected = self._selected(candidates, "finalist_dropped")
        if not selected:
            raise InputError("select: no finalist can be scored on this split", "correct the fitness or its data")
        winner = selected[0].genome
        if draws := self._selected(draws[: self._settings.finalists], "control_dropped"):
            controls["best_random_draw"] = draws[0].genome
        self._notes |= {f"control_left_out_{name}": 1 for name in self._settings.controls if name not in controls}
        self._exam.advance("report")
        first = {member.genome.key: member.score for member in [*choices.seen, *found.pool]}
        arms = self._arms(winner, controls, first, {member.genome.key: member.score for member in selected})
        parent = self._parents.labels[winner.index] if isinstance(winner, Parent) else ""
        return Outcome(
            path=self._out / WINNER,
            winner=winner,
            is_parent=parent,
            arms=arms,
            steps=tuple(found.steps),
            counters={**found.counters, **self._notes},
            messages={**found.messages, **self._messages},
            evaluations=found.evaluations,
            fresh=self._bench.fresh,
            ended=found.ended,
            groups=() if self._settings.genes == "scalar" else self._expression.groups,
        )

    def _controls(self, controls: Controls, found: Found) -> tuple[dict[str, Genome], list[Member]]:
        """Return the controls that are chosen on the first split, and random draws, from which the second split chooses as for children."""
        wanted = self._settings.controls
        chosen: dict[str, Genome | None] = {}
        if "average" in wanted:
            chosen["average"] = average(len(self._individuals))
        if "task_arithmetic" in wanted and self._parents.has_base:
            chosen["task_arithmetic"] = controls.task_arithmetic()
        if "greedy_soup" in wanted:
            chosen["greedy_soup"] = controls.greedy_soup()
        draws = controls.random_draws(found.children) if "best_random_draw" in wanted else []
        return {name: genome for name, genome in chosen.items() if genome is not None}, draws

    def _mark(self) -> Callable[[Genome], str]:
        """Return what tells weights apart: each model is made once, and read."""
        marks: dict[str, str] = {}

        def mark(genome: Genome) -> str:
            if genome.key not in marks:
                with self._parents.child(self._expression, genome, self._out / SCRATCH) as model:
                    marks[genome.key] = fingerprint(model)
            return marks[genome.key]

        return mark

    def _note_failed(self, failed: Mapping[Genome, str]) -> None:
        """Count the controls that could not be scored on the first split; a parent among them can be no finalist."""
        for genome, message in failed.items():
            if isinstance(genome, Parent):
                self._dropped("finalist_dropped", self._name(genome), message)
            else:
                self._notes["control_failed"] += 1
                self._messages.setdefault("control_failed", message)

    def _dropped(self, what: str, name: str, message: str) -> None:
        self._notes[what] += 1
        self._messages[f"{what}_{name}"] = message

    def _name(self, genome: Genome) -> str:
        return self._parents.labels[genome.index] if isinstance(genome, Parent) else genome.key

    def _selected(self, members: Sequence[Member], what: str) -> list[Member]:
        """Return members by their score on the second split, best first; of equals the one that was better on the first."""
        named = {self._name(member.genome): member.genome for member in members}
        scores = self._scores(named, self._exam.units("select"), what)
        again = [Member(member.genome, mean_score(scores[member.genome.key])) for member in members if member.genome.key in scores]
        return sorted(again, key=lambda member: -member.score)

    def _scores(self, named: Mapping[str, Genome], units: tuple[str, ...], what: str) -> dict[str, Scores]:
        """Return scores by key. What cannot be scored is counted and named, and tried again by the next run."""
        different = {genome.key: genome for genome in named.values()}
        tickets = {key: self._bench.submit(genome, units, keep_failure=False) for key, genome in different.items()}
        verdicts = {key: ticket.result() for key, ticket in tickets.items()}
        for name, genome in named.items():
            if verdicts[genome.key].failure:
                self._dropped(what, name, verdicts[genome.key].message)
        return {key: verdict.scores for key, verdict in verdicts.items() if not verdict.failure}

    def _arms(self, winner: Genome, controls: dict[str, Genome], first: dict[str, float], selected: dict[str, float]) -> tuple[Arm, ...]:
        parents: dict[str, Genome] = {label: Parent(index) for index, label in enumerate(self._parents.labels)}
        named = {"evolved": winner, **parents, **controls}
        scores = self._scores(named, self._exam.units("report"), "arm_dropped")
        if winner.key not in scores:
            why = self._messages["arm_dropped_evolved"]
            raise InputError(
                f"report: the winner cannot be scored on this split: {why}", "correct the fitness or its data, and search again"
            )
        arms = []
        for label, genome in named.items():
            arm = Arm(label, genome, first.get(genome.key), selected.get(genome.key))
            if genome.key in scores:
                ahead = None if label == "evolved" else compare(scores[winner.key], scores[genome.key], seed=self._settings.seed)
                arm = replace(arm, report=mean_score(scores[genome.key]), ahead=ahead, by_unit=scores[genome.key])
            arms.append(arm)
        return tuple(arms)
