"""The judges that a recipe can name, and their parameters. Nothing here loads a model."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

from lmfuse.judges.sandbox import SandboxLimits

Dtype = Literal["float32", "bfloat16", "float16"]
TooLong = Literal["abstain", "stop"]
Count = Annotated[int, Field(ge=1)]
LABEL = re.compile(r"[\w.-]{1,80}", re.ASCII)


def _is_label(text: str) -> str:
    if text and (not LABEL.fullmatch(text) or text.startswith(".")):
        raise ValueError(f"{text!r} names a file: letters, digits, '_', '-' and '.', expected at most 80 of them, no '.' in front")
    return text


Label = Annotated[str, AfterValidator(_is_label)]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class RewardModel:
    """Any reward model that transformers knows as a sequence classifier: its logit for question and answer.

    - ``model``, ``revision``, ``dtype``: a folder, or a name on the hub; the last layer always computes in float32.
    - ``form``: ``chat``: the model reads the conversation through its own chat template; ``pair``: question and answer as a pair of texts, for
      encoders without a template.
    - ``output``: of a model with several outputs the label of the one that says "good"; its log-probability is the score.
    - ``max_tokens``: the longest input; by default the model's context. Nothing is cut: on a longer one it abstains (counted), or
      (``too_long: stop``) the run stops.
    - ``batch_tokens``: of a batch, padding included.
    - ``label``: what reports call it; by default the last part of ``model``.
    """

    model: Annotated[str, Field(min_length=1)]
    name: Literal["reward_model"] = "reward_model"
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    form: Literal["chat", "pair"] = "chat"
    output: str = ""
    max_tokens: Count | None = None
    too_long: TooLong = "abstain"
    batch_tokens: Count = 8192
    label: Label = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class PairRanker:
    """A cross-encoder that reads a question and two answers and says whether the first one is better; both orders are asked.

    The score is the share of comparisons that an answer wins. Each pair is compared in both orders, and the mean of what is said of the two
    decides, so that a liking for the first place cancels out; a pair of which the orders disagree is counted.

    - ``model``, ``revision``, ``dtype``, ``max_tokens``, ``too_long``, ``batch_tokens``, ``label``: as for ``reward_model``. Where one pair is too
      long, it abstains on the whole question.
    - ``output``: of a model with several outputs the label that says "the first is better"; one output alone is the logit of that.
    - ``first_text``, ``second_text``: the pair of texts that the model reads, with ``{question}``, ``{first}`` and ``{second}``.
    - ``count``: ``wins`` (a tie is half of one), or the mean ``probability`` of winning.
    """

    model: Annotated[str, Field(min_length=1)]
    name: Literal["pair_ranker"] = "pair_ranker"
    revision: str | None = None
    dtype: Dtype = "bfloat16"
    output: str = ""
    first_text: str = "{question}\n\n{first}"
    second_text: str = "{second}"
    count: Literal["wins", "probability"] = "wins"
    max_tokens: Count | None = None
    too_long: TooLong = "abstain"
    batch_tokens: Count = 8192
    label: Label = ""

    def __post_init__(self) -> None:
        both = self.first_text + self.second_text
        if "{first}" not in both or "{second}" not in both:
            raise ValueError("first_text and second_text: expected {first} and {second} in them")


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Likelihood:
    """How likely the sources together find an answer: minus the mean of their bits per byte, each with its own chat template.

    That the answer ends is not judged. A source that cannot read one of a question's answers (too long, beyond its template) has no say on that
    question, which is counted.

    - ``sources``: the labels of those that judge; by default all.
    - ``author``: whether a source judges its own answer. It usually likes it best; left out, each answer is judged by the others alone.
    - ``batch_tokens``: of a batch, padding included.
    - ``label``: what reports call it.
    """

    name: Literal["likelihood"] = "likelihood"
    sources: tuple[str, ...] = ()
    author: Literal["included", "left_out"] = "included"
    batch_tokens: Count = 4096
    label: Label = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Verifier:
    """Compares an answer with the known one: 1 if it is right, 0 if not; it abstains where no truth is known.

    - ``check``: ``final_number``: the last number of the answer is that of the truth (GSM8K: the one behind ``####``); ``choice_letter``: the letter
      chosen; ``exact``: the same text, but for whitespace; ``contains``: the truth is in the answer; ``regex``: what ``pattern`` finds is the truth.
    - ``pattern``: for ``regex``; its last match counts, and of that the first group if it has one.
    - ``ignore_case``: for ``exact``, ``contains`` and ``regex``.
    - ``tolerance``: for ``final_number``, how far it may be from the truth.
    - ``letters``: for ``choice_letter``, those that can be chosen.
    - ``label``: what reports call it.
    """

    name: Literal["verifier"] = "verifier"
    check: Literal["final_number", "choice_letter", "exact", "contains", "regex"] = "final_number"
    pattern: str = ""
    ignore_case: bool = True
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    letters: Annotated[str, Field(pattern=r"^[A-Z]+$")] = "ABCDE"
    label: Label = ""

    def __post_init__(self) -> None:
        if (self.check == "regex") != bool(self.pattern):
            raise ValueError("pattern: is what check: regex needs, and nothing else")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern: {error}") from None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class UnitTests:
    """Runs the Python code of an answer with the question's tests in a sandbox: 1 if they pass, 0 if not; it abstains where there are no tests.

    The sandbox has no network, no other files and processes than its own, limits on time, memory and output, and the standard library alone.
    Where the system cannot protect itself, that is an error.

    - ``code``: the part of the answer that is run: the ``first`` or ``last`` fenced block of Python, or ``all`` of them one after the other; an answer
      without one is run as a whole.
    - ``limits``: of one run: ``wall_seconds``, ``cpu_seconds``, ``memory_mb``, ``disk_mb``, ``file_mb``, ``output_kb``.
    - ``at_once``: how many run at the same time.
    - ``label``: what reports call it.
    """

    name: Literal["unit_tests"] = "unit_tests"
    code: Literal["first", "last", "all"] = "first"
    limits: SandboxLimits = field(default_factory=SandboxLimits)
    at_once: Count = 1
    label: Label = ""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Endpoint:
    """A language model behind an OpenAI-compatible chat endpoint, asked for a number from 1 to 10; it abstains where it gives none.

    Questions and answers leave this machine. The answer is quoted as data between marks that it cannot contain.

    - ``url``: the base, such as ``http://localhost:8000/v1``; ``model``: the model's name there.
    - ``key_variable``: the environment variable with the API key, if the endpoint wants one; the key is written nowhere.
    - ``timeout_seconds``: of one request. After ``retries`` more the judge abstains; waits double from one second, or are as long as the
      endpoint says (``Retry-After``), and never longer than ``max_wait_seconds``.
    - ``max_tokens``, ``temperature``: of the reply.
    - ``at_once``: how many requests are under way at the same time.
    - ``label``: what reports call it; by default the last part of ``model``.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/?#@\s]+(/[^?#@\s]*)?$")]
    model: Annotated[str, Field(min_length=1)]
    name: Literal["endpoint"] = "endpoint"
    key_variable: Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] = "OPENAI_API_KEY"
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    retries: Annotated[int, Field(ge=0, le=20)] = 4
    max_wait_seconds: Annotated[float, Field(gt=0, le=3600)] = 60.0
    max_tokens: Count = 256
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    at_once: Count = 4
    label: Label = ""


JudgeMethod: TypeAlias = Annotated[RewardModel | PairRanker | Likelihood | Verifier | UnitTests | Endpoint, Field(discriminator="name")]


def label_of(judge: RewardModel | PairRanker | Likelihood | Verifier | UnitTests | Endpoint) -> str:
    """Return what reports and files call a judge.

    >>> label_of(RewardModel("org/Reward-1B")), label_of(Verifier()), label_of(UnitTests(label="tests"))
    ('Reward-1B', 'verifier', 'tests')
    """
    if judge.label:
        return judge.label
    model = getattr(judge, "model", "").rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^\w.-]", "_", model, flags=re.ASCII).lstrip(".")[:80] or judge.name
