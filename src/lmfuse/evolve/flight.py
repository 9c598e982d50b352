"""A swarm in flight: where its members are, how they move, and what they remember."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lmfuse.evolve.draws import derived
from lmfuse.evolve.family import Member, best_of, others
from lmfuse.evolve.genome import Genome, mixed, repaired

if TYPE_CHECKING:
    from lmfuse.evolve.swarm import Swarm


class Flight:
    """The members of a swarm. A velocity is kept as the place that it leads to from the member's own."""

    def __init__(self, method: Swarm, members: Sequence[Member], seed: int) -> None:
        self._method, self._seed = method, seed
        self.num_slots = len(members)
        self._own = list(members)
        self._places = [member.genome for member in members]
        self._ahead = [self._heading(slot, -1) for slot in range(self.num_slots)]
        self._worst = min(members, key=lambda member: member.score)
        self._idle = [0] * self.num_slots
        self._sent: dict[int, tuple[Genome, Genome]] = {}  # by turn: where the member goes, and where it would go next

    def child(self, turn: int) -> Genome:
        """Return the next place of the member whose turn it is."""
        generation, slot = divmod(turn, self.num_slots)
        rule, here = self._method, self._places[slot]
        if self._idle[slot] >= rule.restart:
            self._sent[turn] = (self._own[slot].genome, self._heading(slot, generation))
            return self._own[slot].genome
        draw = np.random.default_rng(derived(self._seed, "turn", turn))
        pulls = [setting * float(1 - draw.random()) for setting in (rule.inertia, rule.own, rule.best, rule.worst)]  # never all 0
        total = sum(pulls)
        a, b, c, d = (pull / total for pull in pulls)
        best = self._own[best_of(self._own, range(self.num_slots))].genome
        towards = [(a, self._ahead[slot]), (b, self._own[slot].genome), (c, best), (-d, self._worst.genome)]
        length = max(rule.smallest_step, rule.step * rule.decay**generation)
        away = a + b + c - d
        there = mixed([(1 - length * away, here), *((length * weight, genome) for weight, genome in towards)])
        if rule.repair == "bounds":
            there = repaired(there)
        self._sent[turn] = (there, mixed([(1.0, there), (-away, here), *towards]))
        return there

    def settle(self, turn: int, genome: Genome, score: float | None, accepted: bool) -> None:
        """Move the member, and remember what its place was worth; one that was discarded stays where it is."""
        slot = turn % self.num_slots
        there, ahead = self._sent.pop(turn)
        if score is None:
            self._idle[slot] += 1
            return
        restarted = self._idle[slot] >= self._method.restart
        self._places[slot], self._ahead[slot] = there, ahead
        self._idle[slot] = 0 if accepted or restarted else self._idle[slot] + 1
        if accepted:
            self._own[slot] = Member(genome, score)
        if score < self._worst.score:
            self._worst = Member(genome, score)

    def _heading(self, slot: int, generation: int) -> Genome:
        draw = np.random.default_rng(derived(self._seed, "heading", slot, generation))
        return self._places[int(draw.choice(others(self._own, slot)))]
