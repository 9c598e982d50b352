"""The four votes: numbers by hand, a slow count, what may not matter, wrong inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydantic
import pytest

from lmfuse.vote.ballots import Ballots
from lmfuse.vote.first_places import FirstPlaces
from lmfuse.vote.mean_rank import MeanRank
from lmfuse.vote.mean_z import MeanZ
from lmfuse.vote.single import Single
from lmfuse.vote.tally import first_places, mean_ranks, mean_z_scores
from tests.vote.build import NAN, ballots, random_ballots, slow_winner

VOTES = {"first_places": FirstPlaces(), "mean_rank": MeanRank(), "mean_z": MeanZ()}
ORDERS = {
    "first_places": ("first_places", "mean_rank", "mean_z"),
    "mean_rank": ("mean_rank", "first_places", "mean_z"),
    "mean_z": ("mean_z", "first_places", "mean_rank"),
}
every_vote = pytest.mark.parametrize("vote", [*VOTES.values(), Single()], ids=[*VOTES, "single"])


def test_by_hand_first_places_then_mean_rank_then_mean_z_then_cost_then_index():
    assert (FirstPlaces()(ballots([[3, 1, 2], [3, 2, 1], [1, 3, 2]])).winner, FirstPlaces()(ballots([[3, 1, 2]])).why) == (
        0,
        "first_places",
    )
    # first places 1, 1, 0; ranks 1 3 / 3 1 2 -> 2, 1.5
    tie = FirstPlaces()(ballots([[3, 2, 1], [1, 3, 2]]))
    assert (tie.winner, tie.why) == (1, "mean_rank")
    # first places and ranks equal; the first judge's preference is the clearer one: z of 0 is 1.2247 - 1, of 1 it is 0.9 ...
    tie = FirstPlaces()(ballots([[9, 1, 0], [1, 2, 0]]))
    assert (tie.winner, tie.why) == (0, "mean_z")
    tie = FirstPlaces()(ballots([[1, 0], [0, 1]], costs=[0.7, 0.6]))
    assert (tie.winner, tie.why) == (1, "cross_entropy")
    assert (FirstPlaces()(ballots([[1, 0], [0, 1]])).winner, FirstPlaces()(ballots([[1, 0], [0, 1]])).why) == (0, "index")
    assert FirstPlaces()(ballots([[1, 0], [0, 1]], costs=[NAN, 9.0])).winner == 1  # known before not known


def test_by_hand_tallies():
    cast = ballots([[5, 5, 1], [2, NAN, 4]])
    assert [float(each) for each in first_places(cast)] == [0.5, 0.5, 1.0]
    assert [float(each) for each in mean_ranks(cast)] == [(1.5 + 3) / 2, 1.5, (3 + 1) / 2]
    sd = np.std([5, 5, 1])
    assert mean_z_scores(cast) == pytest.approx([((5 - 11 / 3) / sd - 1) / 2, (5 - 11 / 3) / sd, ((1 - 11 / 3) / sd + 1) / 2])


def test_by_hand_a_candidate_that_nobody_ranks_is_last_but_may_win_alone():
    cast = ballots([[NAN, 1, 2], [NAN, 2, 1]])
    assert [float(each) for each in mean_ranks(cast)] == [float("inf"), 1.5 + 0.5, 2.0]
    assert [vote(cast).winner for vote in VOTES.values()] == [1, 1, 1]
    alone = FirstPlaces()(ballots([[0.5, 0.5]], ["same", "same "], costs=[2.0, 1.0]))
    assert (alone.winner, alone.why) == (1, "only_candidate")


@pytest.mark.parametrize("name", VOTES)
@pytest.mark.parametrize("seed", range(150))
def test_oracle_a_slow_count_finds_the_same_winner(name, seed):
    cast = random_ballots(seed, judges=1 + seed % 4, candidates=1 + seed % 6)
    assert VOTES[name](cast).winner == slow_winner(cast, ORDERS[name])


@every_vote
@pytest.mark.parametrize("seed", range(30))
def test_the_order_of_judges_does_not_matter_and_that_of_candidates_only_for_full_ties(vote, seed):
    cast, random = random_ballots(seed, judges=4, candidates=6), np.random.default_rng(seed)
    found = vote(cast)
    if not isinstance(vote, Single):
        judges = random.permutation(4)
        assert vote(Ballots(cast.scores[judges], cast.texts, cast.cross_entropy)) == found
    places = random.permutation(6)
    costs = np.arange(6) / 10  # no two alike: no tie is left to the index
    straight = vote(Ballots(cast.scores, cast.texts, costs))
    turned = vote(Ballots(cast.scores[:, places], [cast.texts[i] for i in places], costs[places]))
    assert (turned.winner if turned.winner < 0 else places[turned.winner]) == straight.winner
    assert turned.counters == straight.counters
    assert turned.why == straight.why


@every_vote
def test_scales_of_judges_do_not_matter(vote):
    for seed in range(20):
        cast = random_ballots(seed, nan=0)
        scaled = cast.scores * np.array([1e-9, 2.0, 1e6, 1e200])[:, None] - np.array([0, 5, -1e6, 0])[:, None]
        assert vote(Ballots(scaled, cast.texts, cast.cross_entropy)).winner == vote(cast).winner


@every_vote
def test_nobody_wins_without_a_judge_or_without_text(vote):
    nobody = vote(ballots([[NAN, NAN, 3.0]], ["a", "b", " "]))
    assert (nobody.winner, nobody.why, nobody.counters["candidates_empty"], nobody.counters["abstentions"]) == (-1, "no_judge", 1, 2)
    empty = vote(ballots([[1.0, 2.0]], ["", "\n"]))
    assert (empty.winner, empty.why, empty.counters["candidates_empty"]) == (-1, "all_empty", 2)


@every_vote
def test_an_empty_candidate_never_wins(vote):
    assert vote(ballots([[1.0, 9.0, 0.0]], ["a", "", "c"])).winner == 0


@every_vote
def test_identical_candidates_are_one_and_the_cheapest_producer_owns_it(vote):
    found = vote(ballots([[2.0, 1.0, 2.0, 2.0]], ["a", "b", "a", " a\n"], costs=[0.9, 0.1, 0.5, NAN]))
    assert (found.winner, found.counters["candidates_identical"]) == (2, 2)
    assert vote(ballots([[2.0, 1.0, 2.0]], ["a", "b", "a"])).winner == 0


def test_copies_are_no_majority():
    one = FirstPlaces()(ballots([[2, 2, 2, 3], [0, 0, 0, 1]], ["a", "a", "a", "b"]))
    assert (one.winner, one.why) == (3, "first_places")


def test_a_silent_judge_changes_nothing():
    cast = ballots([[1, 2, 3], [3, 1, 2]])
    for silent in ([7, 7, 7], [NAN] * 3, [NAN, 5, NAN]):
        more = ballots([*cast.scores.tolist(), silent])
        assert more.counters["judges_silent"] == 1
        for vote in VOTES.values():
            assert (vote(more).winner, vote(more).why) == (vote(cast).winner, vote(cast).why)


def test_judges_that_see_no_difference_leave_it_to_cost_and_index():
    found = FirstPlaces()(ballots([[0.0, 0.0], [1.0, 1.0]], costs=[2.0, 1.0]))
    assert (found.winner, found.why, found.counters["judges_silent"]) == (1, "cross_entropy", 2)


def test_all_judges_different_is_decided_all_the_same():
    assert FirstPlaces()(ballots([[3, 2, 1], [1, 3, 2], [2, 1, 3]])).why == "index"


def test_single_hears_one_judge_alone():
    cast = ballots([[1, 2], [2, 1], [NAN, NAN]], judges=("a", "b", "c"))
    assert [Single(judge=name)(cast).winner for name in ("a", "b", "c", "")] == [1, 0, -1, 1]
    assert Single(judge="c")(cast).why == "no_judge"
    with pytest.raises(ValueError, match="0 judges are called 'd'"):
        Single(judge="d")(cast)
    with pytest.raises(ValueError, match="2 judges are called 'a'"):
        Single(judge="a")(replace(cast, judges=("a", "a", "b")))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": ["a"]}, "1 texts for 2 candidates"),
        ({"scores": np.array([[np.inf, 1.0]])}, "an infinite score"),
        ({"judges": ("a", "b")}, "2 names for 1 judges"),
    ],
)
def test_ballots_that_do_not_fit_together_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ballots([[1.0, 2.0]]), **change)


def test_a_vote_takes_no_unknown_parameter():
    with pytest.raises(pydantic.ValidationError):
        FirstPlaces(ties="index")
