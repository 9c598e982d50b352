"""Any sequence-classification reward model as a judge: the logit that it gives a question and its answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Float

from lmfuse.artefacts import content_key
from lmfuse.bytes import ByteTokenizer
from lmfuse.bytes_files import read_folder
from lmfuse.chat_template import Unfit
from lmfuse.errors import InputError
from lmfuse.judges.classifier import Classifier, classifier_key
from lmfuse.judges.protocol import VERSION, Case, Opinion, Scorer
from lmfuse.judges.settings import PairRanker, RewardModel, label_of
from lmfuse.memory import give_back
from lmfuse.model_facts import check_vocabulary, load_bytes
from lmfuse.model_files import ModelSpec

Input = tuple[list[int], list[int]]  # token ids and token types


class RewardModelScorer(Scorer):
    """The judge ``reward_model``."""

    def __init__(self, settings: RewardModel, device: str) -> None:
        self.settings, self.device, self.label = settings, device, label_of(settings)
        self._loaded: tuple[Classifier, ChatInputs | PairInputs, int | None] | None = None

    @cached_property
    def key(self) -> str:
        """Return a hash of the model and of the settings that change a score."""
        said = self.settings
        return content_key(["reward_model", VERSION, classifier_key(spec_of(said)), said.form, said.output, said.max_tokens, said.too_long])

    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return the model's logits, or log-probabilities of the named output.

        Raises:
            LmfuseError: see ``Classifier``; the model has no chat template; with ``too_long: stop`` an input that exceeds the limit.
        """
        self._loaded = self._loaded or self._load()
        model, inputs, column = self._loaded
        pairs = [(case, text) for case, answers in zip(cases, texts, strict=True) for text in answers]
        given = [inputs.read(case, text) for case, text in pairs]
        fits = [i for i, ((ids, _), _, _) in enumerate(given) if ids and not too_long(self.settings, model, len(ids), pairs[i][0])]
        logits = model.logits([given[i][0][0] for i in fits], [given[i][0][1] for i in fits], self.settings.batch_tokens)
        scores = dict(zip(fits, wanted(logits, column).tolist(), strict=True))
        found = iter([self._opinion(given[i][1], given[i][2], scores.get(i)) for i in range(len(pairs))])
        return [[next(found) for _ in answers] for answers in texts]

    def _opinion(self, written: str, problem: str, score: float | None) -> Opinion:
        if score is None:
            return Opinion(math.nan, ((written, ""),), problem or "too_long")
        if not math.isfinite(score):
            return Opinion(math.nan, ((written, repr(score)),), "not_finite")
        return Opinion(score, ((written, repr(score)),))

    def _load(self) -> tuple[Classifier, ChatInputs | PairInputs, int | None]:
        model = Classifier(spec_of(self.settings), self.device)
        inputs = ChatInputs(model) if self.settings.form == "chat" else PairInputs(model)
        return model, inputs, model.column(self.settings.output)

    def close(self) -> None:
        """Give the model's memory back."""
        self._loaded = None
        give_back()


def spec_of(settings: RewardModel | PairRanker) -> ModelSpec:
    """Return which model a judge is."""
    template = "own" if isinstance(settings, RewardModel) and settings.form == "chat" else "none"
    return ModelSpec(settings.model, settings.revision, settings.dtype, chat_template=template, name=label_of(settings))


def too_long(settings: RewardModel | PairRanker, model: Classifier, length: int, case: Case) -> bool:
    """Return whether an input exceeds the limit.

    Raises:
        InputError: it does, and the run is to stop then.
    """
    most = min(model.context, settings.max_tokens or model.context)
    if length > most and settings.too_long == "stop":
        raise InputError(
            f"judge {label_of(settings)}: question {case.id} and its answer have {length:,} tokens, at most {most:,} are read",
            "let the judge abstain (too_long: abstain), or use shorter answers",
        )
    return length > most


def wanted(logits: Float[np.ndarray, "N L"], column: int | None) -> Float[np.ndarray, "N"]:
    """Return the only output, or the log-probability of one of several.

    >>> np.exp(wanted(np.log([[1.0, 3.0]]), 1)).round(6).tolist(), wanted(np.array([[2.5]]), None).tolist()
    ([0.75], [2.5])
    """
    values = logits.astype(np.float64)
    if column is None:
        return values[:, 0]
    return values[:, column] - np.logaddexp.reduce(values, axis=1)


class ChatInputs:
    """Conversations as the model's own chat template writes them."""

    def __init__(self, model: Classifier) -> None:
        rows = model.module.get_input_embeddings().num_embeddings
        self.tokenizer: ByteTokenizer = load_bytes(model.checked.path, model.spec, rows)
        check_vocabulary(model.checked.path, self.tokenizer.vocabulary, rows)

    def read(self, case: Case, text: str) -> tuple[Input, str, str]:
        """Return the ids, what they write, and why there are none."""
        document = case.answered(text)
        found = self.tokenizer.try_encode_many([document])[0]
        if isinstance(found, Unfit):
            return ([], []), text, "unfit"
        return ([int(i) for i in found.ids], [0] * len(found.ids)), as_written(self.tokenizer, case, text), ""


def as_written(tokenizer: ByteTokenizer, case: Case, text: str) -> str:
    """Return a conversation as a model's chat template writes it."""
    written = tokenizer.chat.render(case.answered(text).segments) if tokenizer.chat is not None else Unfit("")
    return text if isinstance(written, Unfit) else "".join(stretch.text for stretch in written)


class PairInputs:
    """Pairs of texts with the separators that the model's tokenizer puts around them; what looks like one in a text is only text."""

    def __init__(self, model: Classifier) -> None:
        rows = model.module.get_input_embeddings().num_embeddings
        self.tokenizer = read_folder(model.checked.path).tokenizer
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.tokenizer.encode_special_tokens = True
        if self.tokenizer.get_vocab_size() > rows:
            raise InputError(f"{model.checked.path}: the tokenizer has {self.tokenizer.get_vocab_size()} ids, the model {rows} rows")

    def pair(self, first: str, second: str) -> Input:
        """Return the ids and types of two texts."""
        found = self.tokenizer.encode(first, second)
        return list(found.ids), list(found.type_ids)

    def read(self, case: Case, text: str) -> tuple[Input, str, str]:
        """Return the ids of question and answer, what they are, and why there are none."""
        found = self.pair(case.question, text)
        return found, f"{case.question}\n\n{text}", "" if found[0] else "unfit"
