"""The search: children bred, judged, accepted or not, in an order that depends on seed and scores alone.

There is no state to save. A search that was killed runs again from its beginning, with the journal's verdicts in place of work.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lmfuse.errors import InputError
from lmfuse.evolution.bench import Bench, Ticket
from lmfuse.evolution.express import Expression
from lmfuse.evolution.journal import Journal
from lmfuse.evolution.judge import Verdict
from lmfuse.evolution.scores import Scores, compare, expected, in_turn, mean_score, sign_test
from lmfuse.evolution.settings import Acceptance, SearchSettings
from lmfuse.evolution.splits import Exam
from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Member
from lmfuse.evolve.genome import Genome, Joined, filled

SIGN_TEST_LEVEL = 0.05


@dataclass(frozen=True)
class Step:
    """What became of one child, for the report.

    Attributes:
        turn, generation, slot: when and where it was bred.
        genome: its key.
        score: on the units that it was scored on, so of a stopped child not comparable with others; None where it was discarded.
        accepted: it took its slot.
        fate: ``accepted``, ``not_better``, ``stopped`` (as hopeless), ``raised``, ``not_finite`` or ``not_made``.
        champion: the best score in its slot afterwards.
    """

    turn: int
    generation: int
    slot: int
    genome: str
    score: float | None
    accepted: bool
    fate: str
    champion: float | None


@dataclass
class Found:
    """What a search ended in.

    Attributes:
        steps: every child, in order.
        pool: every accepted individual and the first population, best first.
        champions: the best of each slot.
        counters: discarded and stopped children, and others, by name.
        evaluations: different children scored, the first population included.
        children: those that are not of the first population.
        messages: of the first failure of each kind.
        ended: why: ``generations``, ``patience``, ``evaluations`` or ``minutes``.
    """

    steps: list[Step] = field(default_factory=list)
    pool: list[Member] = field(default_factory=list)
    champions: list[Member | None] = field(default_factory=list)
    counters: Counter[str] = field(default_factory=Counter)
    evaluations: int = 0
    children: int = 0
    messages: dict[str, str] = field(default_factory=dict)
    ended: str = "generations"


@dataclass(frozen=True)
class _Bred:
    turn: int
    genome: Genome
    judged: Genome  # with a merger, the population with the child in it
    rival: Scores | None
    ticket: Ticket


class Search:
    """A search over one split.

    Args:
        settings: checked.
        expression: how genomes become weights.
        exam: gives out the units.
        bench: where children are judged.
        journal: for the end of a search by its clock.
        progress: is told each step.
    """

    def __init__(
        self,
        settings: SearchSettings,
        expression: Expression,
        exam: Exam,
        bench: Bench,
        journal: Journal,
        progress: Callable[[Step], None] | None = None,
    ) -> None:
        self._settings, self._expression, self._bench, self._journal = settings, expression, bench, journal
        self._units, self._progress = shuffled(exam.units("evolve"), settings.seed), progress
        self._found = Found()
        self._scores: dict[str, Scores] = {}
        self._seen: set[str] = set()
        self._last_gain = -1  # the generation of the last better child

    def run(self, parents: Sequence[Genome]) -> Found:
        """Search.

        Raises:
            InputError: the budget is too small, no parent can be scored, or the method cannot begin with them.
        """
        settings = self._settings
        distributed = settings.method.by_generation  # children are drawn, nobody has a slot from the start
        want = settings.population(len(parents))
        settings.budget.check(1 if self._expression.with_merger else want)
        members = self._merged_first(parents, want) if self._expression.with_merger else self._first(parents, want)
        try:
            self._breeder = settings.method.begin(members, settings.generations, settings.seed)
        except ValueError as reason:
            raise InputError(f"evolve: {reason}", "choose other genes or another method") from reason
        self._slots = self._breeder.num_slots
        self._found.champions = [None] * self._slots if distributed else list(members)
        groups = {unit: score.group for unit, score in next(iter(self._scores.values())).items()}
        self._units = in_turn(self._units, groups)  # the first unit stays: by it the journal knows which split a failure is of
        self._loop()
        self._found.evaluations = len(self._seen)
        self._found.pool.sort(key=lambda member: -member.score)  # stable: of equals the first
        return self._found

    def _first(self, parents: Sequence[Genome], want: int) -> list[Member]:
        """Score the parents, and copies of those that can be scored where more members are wanted."""
        members = self._scored(parents)
        if len(members) < min(2, want):
            self._refuse(len(members), len(parents))
        able = [member.genome for member in members]
        members += self._scored(filled(able, want, self._settings.jitter, self._settings.seed)[len(able) :])
        if len(members) < want:
            self._refuse(len(members), want)
        return members

    def _merged_first(self, parents: Sequence[Genome], want: int) -> list[Member]:
        """Score the first population merged."""
        genomes = filled(parents, want, self._settings.jitter, self._settings.seed)
        merged = self._scored([Joined(tuple(genomes))])
        if not merged:
            self._refuse(0, len(genomes))
        return [Member(genome, merged[0].score) for genome in genomes]

    def _scored(self, genomes: Sequence[Genome]) -> list[Member]:
        """Score members of the first population; those that cannot be scored are left out and counted."""
        tickets = [self._bench.submit(genome, self._units, keep_failure=False) for genome in genomes]
        members = []
        for genome, verdict in zip(genomes, [ticket.result() for ticket in tickets], strict=True):
            self._seen.add(genome.key)
            if verdict.failure:
                self._count(f"parent_{verdict.failure}", verdict.message)
                continue
            self._scores[genome.key] = verdict.scores
            members.append(Member(genome, mean_score(verdict.scores)))
        self._found.pool += members
        return members

    def _refuse(self, able: int, wanted: int) -> None:
        what = next(iter(self._found.messages.values()))
        raise InputError(
            f"fitness: {able} of {wanted} models of the first population can be scored: {what}", "correct the fitness or its data"
        )

    def _loop(self) -> None:
        pending: deque[_Bred] = deque()
        turn = 0
        while True:
            while pending and pending[0].turn < self._must_know(turn):
                self._settle(pending.popleft())
            if (reason := self._over(turn)) is not None:
                self._found.ended = reason
                break
            if (bred := self._bred(turn)) is None:
                self._found.ended = "minutes"
                break
            pending.append(bred)
            turn += 1
        while pending:
            self._settle(pending.popleft())

    def _must_know(self, turn: int) -> int:
        """Return the turn before which every child's fate must be known."""
        if self._expression.with_merger:
            return turn
        if self._settings.method.by_generation:
            return turn - turn % self._slots
        behind = self._slots - 1 if self._settings.behind is None else self._settings.behind
        return max(0, turn - behind)

    def _over(self, turn: int) -> str | None:
        settings, budget = self._settings, self._settings.budget
        if turn >= settings.generations * self._slots:
            return "generations"
        if settings.patience is not None and turn // self._slots - self._last_gain > settings.patience:
            return "patience"
        if budget.evaluations is not None and len(self._seen) >= budget.evaluations:
            return "evaluations"
        return "minutes" if self._journal.over is not None and turn >= self._journal.over else None

    def _out_of_time(self, turn: int, key: str) -> bool:
        """Return whether time is up before a child that would cost some; what is known already is replayed however late it is."""
        minutes = self._settings.budget.minutes
        if (
            minutes is None
            or self._bench.elapsed < 60 * minutes
            or key in self._journal.known
            or (key, self._units[0]) in self._journal.failed
        ):
            return False
        self._journal.ended(turn, self._bench.elapsed)
        return True

    def _bred(self, turn: int) -> _Bred | None:
        slot = turn % self._slots
        genome = self._breeder.child(turn)
        judged = self._in_population(genome, slot) if self._expression.with_merger else genome
        if self._out_of_time(turn, judged.key):
            return None
        self._seen.add(judged.key)
        champion = self._found.champions[slot]
        rival = None if champion is None else self._rival(champion)
        return _Bred(turn, genome, judged, rival, self._bench.submit(judged, self._units, rival))

    def _rival(self, champion: Member) -> Scores | None:
        raced = self._settings.racing is not None and not self._expression.with_merger
        return self._scores[champion.genome.key] if raced else None

    def _in_population(self, genome: Genome, slot: int) -> Joined:
        members = [champion.genome for champion in self._found.champions if champion is not None]
        members[slot] = genome
        return Joined(tuple(members))

    def _settle(self, bred: _Bred) -> None:
        verdict = bred.ticket.result()
        slot = bred.turn % self._slots
        score = mean_score(verdict.scores) if verdict.scores else None
        fate = verdict.failure or ("stopped" if verdict.stopped else self._fate(bred, slot, verdict))
        accepted = fate == "accepted"
        self._count(fate, verdict.message)
        if accepted and score is not None:
            self._accept(bred, slot, verdict, score)
        self._breeder.settle(bred.turn, bred.genome, expected(verdict.scores, bred.rival) if verdict.stopped else score, accepted)
        champion = self._found.champions[slot]
        best = None if champion is None else champion.score
        step = Step(bred.turn, bred.turn // self._slots, slot, bred.judged.key, score, accepted, fate, best)
        self._found.steps.append(step)
        self._found.children += 1
        if self._progress is not None:
            self._progress(step)

    def _fate(self, bred: _Bred, slot: int, verdict: Verdict) -> str:
        rival = self._found.champions[slot]
        if rival is None:
            return "accepted"
        before = self._scores[self._found.pool[-1].genome.key if self._expression.with_merger else rival.genome.key]
        return "accepted" if better(verdict.scores, before, self._settings.accept, self._settings.seed) else "not_better"

    def _accept(self, bred: _Bred, slot: int, verdict: Verdict, score: float) -> None:
        best = max((member.score for member in self._found.pool), default=-math.inf)
        if score > best:
            self._last_gain = bred.turn // self._slots
        self._scores[bred.judged.key] = verdict.scores
        self._found.pool.append(Member(bred.judged, score))
        self._found.champions[slot] = Member(bred.genome, score)
        if self._expression.with_merger:  # the score is that of all of them
            self._found.champions = [Member(each.genome, score) for each in self._found.champions if each is not None]

    def _count(self, what: str, message: str) -> None:
        self._found.counters[what] += 1
        if message:
            self._found.messages.setdefault(what, message)


def better(child: Scores, rival: Scores, accept: Acceptance, seed: int = 0) -> bool:
    """Return whether a child is better than the member whose slot it would take."""
    if not mean_score(child) > mean_score(rival):
        return False
    if accept.test == "sign_test":
        return sign_test(child, rival) < SIGN_TEST_LEVEL
    return accept.test == "strict" or compare(child, rival, seed=seed).low > 0


def shuffled(units: Sequence[str], seed: int) -> tuple[str, ...]:
    """Return units in an order that depends on their names and the seed: what is scored first says the most about the rest."""
    return tuple(sorted(units, key=lambda unit: (derived(seed, "unit", unit), unit)))
