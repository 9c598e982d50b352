import pytest
from pydantic import ValidationError

from lmfuse.arms import LESSONS, Arm, resolve_arms
from lmfuse.errors import InputError, RecipeError
from lmfuse.lessons import PROGRESSIVE, REVERSED, Course, Lesson, courses
from lmfuse.losses.kl import KL
from lmfuse.recipe import parse_recipe
from lmfuse.train.reader import Strand
from tests import chat_runs


def arm(*lessons, **more):
    return {"name": "x", "lessons": list(lessons), **more}


HALF = {"truth": 1, "answers": 0, "share": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": [arm(HALF)]}, "lessons: their shares sum to 0.5, expected 1"),
        ({"arms": [arm({"truth": 0, "answers": 0})]}, "neither text weighs anything"),
        ({"arms": [arm({"truth": [0, 0], "answers": 0})]}, "neither text weighs anything"),
        ({"arms": [arm({"truth": -1, "answers": 1})]}, "greater than or equal to 0"),
        ({"arms": [arm({"truth": ".inf", "answers": 1})]}, "valid"),
        ({"arms": [arm({"truth": [0, 1, 2], "answers": 1})]}, "lessons.0.truth"),
        ({"arms": [arm({"truth": 1})]}, "answers: is missing"),
        ({"arms": [arm({"truth": 1, "answers": 1, "share": 0})]}, "greater than 0"),
        ({"arms": [arm({"truth": 1, "anwsers": 1})]}, "did you mean 'answers'?"),
        ({"arms": [arm({"truth": 1, "answers": 1}, teacher="none")]}, "lessons need a teacher"),
        ({"arms": [arm({"truth": 1, "answers": 1}, optimizer="kept")]}, "optimizer"),
        ({"arms": ["progresive"]}, "did you mean 'progressive'?"),
        ({"arms": ["progressive"], "answers": None}, "arms.progressive: learns from answers; add a section `answers`"),
        ({"answers": {"judges": []}}, "at least 1"),
        ({"answers": {"judges": [{"name": "verifyer"}]}}, "did you mean 'verifier'?"),
        ({"answers": {"judges": [{"name": "verifier"}, {"name": "verifier"}]}}, "verifier stands twice"),
        ({"answers": {"judges": [{"name": "unit_tests"}]}}, "unit_tests has nothing to run"),
        ({"answers": {"judges": [{"name": "likelihood", "sources": ["c"]}]}}, "answers.judges.likelihood.sources: unknown 'c'"),
        ({"answers": {"judges": [{"name": "likelihood"}], "vote": {"name": "single", "judge": "likelyhood"}}}, "did you mean 'likelihood'?"),
        ({"answers": {"judges": [{"name": "likelihood"}], "truth_domains": ["sum"]}}, "did you mean 'sums'?"),
        ({"answers": {"judges": [{"name": "likelihood"}], "max_new_tokens": 0}}, "max_new_tokens"),
        ({"loss": {"name": "kl", "beta": 1, "clm_weight": 0.5}}, "beta and clm_weight say the same"),
        ({"loss": {"name": "kl", "beta": -1}}, "beta is -1, expected a number of at least 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_in_one_line(changes, message):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(chat_runs.recipe(result="clm") | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_beta_is_lambda_in_a_recipe_and_in_an_arm():
    arms = [{"name": "x", "loss": {"name": "cross_entropy", "beta": 3}}, "clm"]
    found = parse_recipe(chat_runs.recipe(loss={"name": "kl", "beta": 0.25}, arms=arms, result="x"))
    assert found.loss == KL(clm_weight=0.8)
    assert found.resolved_arms[1].loss.clm_weight == 0.25


def test_the_words_are_the_papers_lessons_with_the_target_among_the_sources():
    arms = {each.name: each for each in resolve_arms([*LESSONS, "training_mode"], ["a", "b"], {})}
    assert all(each.include_target and each.teacher == "sources" and each.fuse.judge == "training_text" for each in list(arms.values())[1:])
    weights = {name: [(lesson.truth, lesson.answers) for lesson in each.lessons] for name, each in arms.items()}
    assert weights == {
        "clm": [], "training_mode": [], "inference_mode": [(0, 1)], "simultaneous": [(1, 1)], "reversed": [(1, 0), (0.1, 1)],
        "progressive": [(0, 1), (1, 0.1)], "progressive_smooth": [((0, 1), (1, 0.1))],
    }  # fmt: skip
    assert [name for name, each in arms.items() if each.reads_answers] == list(LESSONS)


def test_a_continued_optimizer_makes_one_training_whose_weights_jump():
    (course,) = courses(PROGRESSIVE, "continued", 2.0, 10)
    assert (course.first, course.epochs) == (0, 2.0)
    truth, answers = Strand([], weight=course.truth), Strand([], weight=course.answers)
    assert [(truth.weight_at(at), answers.weight_at(at)) for at in (0.0, 0.49, 0.5, 0.99)] == [(0, 1), (0, 1), (1, 0.1), (1, 0.1)]


def test_a_ramp_moves_over_its_own_lesson():
    lessons = [Lesson(truth=(0, 1), answers=(1, 0), share=0.25), Lesson(truth=1, answers=(0, 0.4), share=0.75)]
    (course,) = courses(lessons, "continued", 1.0, 8)
    answers = Strand([], weight=course.answers)
    assert [round(answers.weight_at(at), 6) for at in (0.0, 0.125, 0.25, 0.625, 1.0)] == [1, 0.5, 0, 0.2, 0.4]
    first, second = courses(lessons, "fresh", 1.0, 8)
    assert first == Course(((0.0, 0.0), (1.0, 1.0)), ((0.0, 1.0), (1.0, 0.0)), 0, 0.25)
    assert second == Course(((0.0, 1.0),), ((0.0, 0.0), (1.0, 0.4)), 2, 0.75)


@pytest.mark.parametrize(("epochs", "samples"), [(1.0, 7), (1.5, 9), (3.0, 5), (0.5, 8)])
def test_lessons_together_read_what_one_training_reads_and_go_on_where_the_last_one_stopped(epochs, samples):
    thirds = [Lesson(truth=1, answers=1, share=share) for share in (0.2, 0.3, 0.5)]
    found = courses(thirds, "fresh", epochs, samples)
    read = [round(course.epochs * samples) for course in found]
    assert sum(read) == round(epochs * samples)
    assert [course.first for course in found] == [0, read[0], read[0] + read[1]]


def test_a_text_that_is_never_read_is_no_part_of_a_training():
    answers, truth = courses(PROGRESSIVE, "fresh", 1.0, 10)
    assert (answers.truth, truth.answers) == (None, ((0.0, 0.1),))
    assert courses(REVERSED, "fresh", 1.0, 10)[0].answers is None


def test_too_few_samples_for_a_lesson():
    with pytest.raises(InputError, match="1 samples and 1 epochs leave one of 2 lessons without any sample"):
        courses(PROGRESSIVE, "fresh", 1.0, 1)


def test_lessons_are_data():
    with pytest.raises(ValidationError):
        Arm(name="x", lessons=(Lesson(truth=1, answers=0, share=0.3),))
    again = Arm.model_validate(Arm(name="x", lessons=PROGRESSIVE).model_dump())
    assert again.lessons == PROGRESSIVE
