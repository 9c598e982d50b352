import pytest

from lmfuse.asking import Reply
from lmfuse.errors import InputError, RecipeError
from lmfuse.judges.settings import Verifier
from lmfuse.recipe import Evaluation, Task, parse_recipe
from lmfuse.tasks import failures, task_questions, task_result
from lmfuse.types import Document
from tests import chat_runs
from tests.chat_templates import talk

TASK = Task(domain="chat")
WINDOWS = [talk("1 + 1?", "#### 2"), talk("Who?", "Anna."), talk("2 + 2?", "It is 4."), Document.plain("5", "chat"), talk("3 + 3?", "6")]


def said(*texts):
    return {case.id: Reply(text, True, 1) for case, text in zip(task_questions(TASK, WINDOWS), texts, strict=True)}


def test_the_questions_are_those_whose_truth_can_be_compared_with():
    assert [case.truth for case in task_questions(TASK, WINDOWS)] == ["#### 2", "It is 4.", "6"]
    assert [case.truth for case in task_questions(Task(domain="chat", limit=1), WINDOWS)] == ["#### 2"]
    exact = Task(domain="chat", verifier=Verifier(check="exact"))
    assert len(task_questions(exact, WINDOWS)) == 4
    with pytest.raises(InputError, match="no question of domain 'sums' has a truth that `final_number` can compare with"):
        task_questions(Task(domain="sums"), WINDOWS)


def test_accuracy_and_its_difference_by_hand():
    cases = task_questions(TASK, WINDOWS)
    failed = {
        "good": [failures(TASK, cases, said("2", "So 4", "6."))],
        "bad": [failures(TASK, cases, said("3", "", "nothing"))],
        "mixed": [failures(TASK, cases, said("2", "5", "6")), failures(TASK, cases, said("2", "5", "7"))],
    }
    found = task_result(TASK, failed, [("good", "bad"), ("bad", "mixed"), ("good", "unknown")], Evaluation(bootstrap_samples=100))
    assert found["accuracy"] == pytest.approx({"good": 1, "bad": 0, "mixed": 0.5})
    (better, worse) = found["comparisons"]
    assert (better["a"], better["b"], better["n"]) == ("good", "bad", 3)
    assert (better["mean"], *better["ci95"]) == pytest.approx((1, 1, 1))
    assert worse["mean"] == pytest.approx(-0.5)
    assert worse["ci95"][0] < -0.5 < worse["ci95"][1]


def test_a_task_in_a_domain_that_is_not_evaluated():
    with pytest.raises(RecipeError, match=r"evaluate\.tasks: unknown 'sum'; did you mean 'sums'"):
        parse_recipe(chat_runs.recipe(evaluate={"tasks": [{"domain": "sum"}]}))
