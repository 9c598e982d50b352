"""ProFuser's diagnostics: which source is best in which mode, how far the two modes and the judges agree, how long answers are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lmfuse.answer_stages import Election
from lmfuse.asking import Reply
from lmfuse.judges.protocol import Case


def compare_modes(cases: Sequence[Case], truth_winners: Mapping[str, str], election: Election, truths: Mapping[str, str]) -> dict[str, Any]:
    """Return what a report says of an election.

    Args:
        cases: the questions.
        truth_winners: by question, the candidate that is least surprised by the ground truth: training mode.
        election: who won by what it said: inference mode.
        truths: the ground truth by question.

    Returns:
        ``by_source``: for each candidate the share of the questions that it wins in either mode (of those with a winner), its answers, how many
        of them were cut or empty, prompts that it could not read, the mean length of its answers in bytes, and their mean score by each judge
        (of a verifier: the share that is right). ``same_winner``: the share of the questions with a winner in both modes where it is the same
        one; ``winners``: on how many questions which candidate (row) wins by the truth and which (column) by its answer. How the votes were
        decided, and how far each two judges agree.
    """
    labels, elected = election.labels, {name: label for name, (label, _) in election.winners.items()}
    both = [(truth_winners[case.id], elected[case.id]) for case in cases if case.id in truth_winners and case.id in elected]
    pairs = Counter(both)
    by_truth, by_answer = Counter(truth_winners.values()), Counter(elected.values())
    counters = election.summary["counters"]
    return {
        "questions": len(cases),
        "by_source": {
            label: {
                "win_rate_truth": _share(by_truth[label], len(truth_winners)), "win_rate_answers": _share(by_answer[label], len(elected)),
                **_replies(list(election.replies[label].values())),
                "mean_scores": {judge: _mean([score[place] for score in scores.values()]) for judge, scores in election.scores.items()},
            }
            for place, label in enumerate(labels)
        },
        "winners": [[pairs[truth, answer] for answer in labels] for truth in labels],
        "same_winner": _share(sum(truth == answer for truth, answer in both), len(both)),
        "truth_mean_bytes": _mean_bytes(list(truths.values())),
        "elected_mean_bytes": _mean_bytes([text for _, text in election.winners.values()]),
        "decided_by": {name.removeprefix("by_"): count for name, count in counters.items() if name.startswith("by_")},
        "judges": {
            name: election.summary[name] for name in ("judges", "equal_winners", "kendall_tau", "questions_of_both")
        } | {"all_differ": counters["all_judges_differ"]},
    }  # fmt: skip


def _replies(replies: Sequence[Reply]) -> dict[str, Any]:
    asked = [reply for reply in replies if not reply.problem]
    return {
        "answers": len(asked), "cut": sum(not reply.finished for reply in asked), "empty": sum(not reply.text for reply in asked),
        "left_out": len(replies) - len(asked), "mean_bytes": _mean_bytes([reply.text for reply in asked if reply.text]),
    }  # fmt: skip


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def _mean_bytes(texts: Sequence[str]) -> float | None:
    return _share(sum(len(text.encode()) for text in texts), len(texts))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
