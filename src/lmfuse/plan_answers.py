"""What answers and their judges will need, and what would stop them, found out before any weight is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib.util import find_spec

from lmfuse.answer_stages import placed_judges
from lmfuse.arms import Arm
from lmfuse.errors import InputError
from lmfuse.inputs import Inputs
from lmfuse.judges.family import Surroundings, make_judge
from lmfuse.judges.settings import Endpoint, JudgeMethod
from lmfuse.lessons import courses
from lmfuse.questions import questions_of
from lmfuse.recipe import Recipe, Task
from lmfuse.tasks import task_questions

ANSWER_BYTES_PER_TOKEN = 8  # on disk, with what stands around the text
COPIES = 4  # the answers themselves, and what judges are given


def answerers_of(recipe: Recipe) -> tuple[str, ...]:
    """Return the labels of the models that may have to answer, the target first."""
    sources = [source.label for source in recipe.sources]
    found: set[str] = set()
    for arm in recipe.resolved_arms:
        if arm.reads_answers:
            found |= {"self": {"target"}, "sources": set(sources), "best_single": set(sources)}.get(arm.teacher, {arm.teacher})
            found |= {"target"} if arm.include_target else set()
    return tuple(label for label in ["target", *sources] if label in found)


def answer_checks(inputs: Inputs) -> Iterator[Callable[[], object]]:
    """Yield what must work before anybody answers: there are questions, lessons that have samples, and judges that can be had.

    Each check raises an LmfuseError where it fails.
    """
    recipe = inputs.recipe
    labels = answerers_of(recipe)
    for arm in recipe.resolved_arms:
        yield partial(_lessons, arm, inputs)
    for task in recipe.evaluate.tasks:
        yield partial(_task, task, inputs)
    if recipe.answers is None or not labels:
        return
    yield partial(_questions, inputs)
    given = Surroundings({label: inputs.specs[label] for label in labels}, "cpu", inputs.cache)
    for judge in placed_judges(recipe.answers, inputs.base):
        yield partial(_judge, judge, given)


def answer_disk(inputs: Inputs, row_bytes: Mapping[str, int], kept_model_bytes: int) -> int:
    """Return the bytes of answers, judgements, the winners' rows, and the models that lessons begin with.

    Args:
        inputs: the recipe, its models and its text.
        row_bytes: of one row of each model.
        kept_model_bytes: of one model between two lessons.
    """
    recipe = inputs.recipe
    labels = answerers_of(recipe)
    if recipe.answers is None or not labels:
        return 0
    new_tokens = recipe.answers.max_new_tokens * len(questions_of(inputs.corpus.splits["train"]))
    text = COPIES * len(labels) * new_tokens * ANSWER_BYTES_PER_TOKEN
    between = sum(len(arm.lessons) - 1 for arm in recipe.resolved_arms if arm.lessons and arm.optimizer == "fresh")
    return text + new_tokens * max(row_bytes[label] for label in labels) + between * len(recipe.seeds) * kept_model_bytes


def answer_memory(inputs: Inputs, label: str) -> int:
    """Return the bytes that a model keeps of what it reads and writes while it answers, at most: keys and values of every layer."""
    recipe, facts = inputs.recipe, inputs.facts(label)
    if recipe.answers is None or label not in answerers_of(recipe):
        return 0
    tokens = min(facts.context, recipe.text.window_tokens + recipe.answers.max_new_tokens)
    return recipe.answers.batch_prompts * tokens * facts.num_layers * facts.hidden_size * 2 * 4


def _lessons(arm: Arm, inputs: Inputs) -> None:
    courses(arm.lessons, arm.optimizer, inputs.recipe.train.epochs, len(inputs.corpus.splits["train"]))


def _task(task: Task, inputs: Inputs) -> None:
    task_questions(task, inputs.corpus.splits["evaluation"])


def _questions(inputs: Inputs) -> None:
    if not questions_of(inputs.corpus.splits["train"]):
        raise InputError(
            "answers: no conversation in the training text, so there is nothing to answer",
            hint="give conversations, or records with `user` and `assistant`",
        )


def _judge(judge: JudgeMethod, given: Surroundings) -> None:
    if isinstance(judge, Endpoint) and find_spec("httpx2") is None:
        raise InputError("judge endpoint: httpx2 is not installed", "pip install 'lmfuse[judges]'")
    assert make_judge(judge, given).key
