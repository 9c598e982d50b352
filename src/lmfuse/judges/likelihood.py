"""The sources themselves as judges: how likely they together find an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from lmfuse.artefacts import content_key
from lmfuse.chat_template import Unfit
from lmfuse.errors import InputError, did_you_mean
from lmfuse.evaluate.bits_per_byte import score_documents
from lmfuse.judges.protocol import VERSION, Case, Judge, Opinion, Scorer
from lmfuse.judges.reward_model import as_written
from lmfuse.judges.settings import Likelihood, label_of
from lmfuse.memory import give_back
from lmfuse.models import LanguageModel, ModelSpec, inspect_model, load_model


class SourceScorer(Scorer):
    """One source's bits per byte of an answer, negated."""

    def __init__(self, spec: ModelSpec, batch_tokens: int, device: str) -> None:
        self.spec, self.batch_tokens, self.device, self.label = spec, batch_tokens, device, spec.label
        self._model: LanguageModel | None = None

    @cached_property
    def key(self) -> str:
        """Return a hash of the weights, the tokenizer with its chat template, and the type that it computes in."""
        return content_key(["likelihood", VERSION, inspect_model(self.spec).key, self.spec.dtype])

    def opinions(self, cases: Sequence[Case], texts: Sequence[Sequence[str]]) -> list[list[Opinion]]:
        """Return minus the bits per byte of each answer; ``nan`` where the conversation is too long or beyond the chat template.

        Raises:
            LmfuseError: the model cannot be loaded, has no chat template, or gives probabilities that are not finite.
        """
        self._model = model = self._model or load_model(self.spec, self.device)
        pairs = [(case, text) for case, answers in zip(cases, texts, strict=True) for text in answers]
        documents = [case.answered(text) for case, text in pairs]
        encodings = model.tokenizer.try_encode_many(documents)
        problems = ["unfit" if isinstance(each, Unfit) else "too_long" * (len(each.ids) > model.context) for each in encodings]
        fits = [i for i, problem in enumerate(problems) if not problem]
        scores = score_documents(model, [documents[i] for i in fits], batch_tokens=self.batch_tokens, turn_ends=False) if fits else []
        found = dict(zip(fits, scores, strict=True))
        opinions = []
        for i, (case, text) in enumerate(pairs):
            given = as_written(model.tokenizer, case, text)
            score = found.get(i)
            if score is None or not score.num_bytes:
                opinions.append(Opinion(math.nan, ((given, ""),), problems[i] or "no_bytes"))
                continue
            said = f"{score.nll_nats!r} nats, {score.num_bytes} bytes"
            opinions.append(Opinion(-score.nll_nats / math.log(2) / score.num_bytes, ((given, said),)))
        each = iter(opinions)
        return [[next(each) for _ in answers] for answers in texts]

    def close(self) -> None:
        """Give the model's memory back."""
        self._model = None
        give_back()


class LikelihoodJudge(Judge):
    """The judge ``likelihood``: one scorer for each source that judges."""

    def __init__(self, settings: Likelihood, sources: Mapping[str, ModelSpec], device: str) -> None:
        """Keep the sources, in the order of the candidates.

        Raises:
            InputError: a named source is unknown, or without the author nobody is left to judge.
        """
        names = settings.sources or tuple(sources)
        for name in names:
            if name not in sources:
                raise InputError(f"judge {label_of(settings)}: sources: {did_you_mean(name, sources)}", "name sources as the recipe does")
        if len(set(names)) != len(names):
            raise InputError(f"judge {label_of(settings)}: sources: one stands twice ({', '.join(names)})", "name each once")
        if settings.author == "left_out" and len(names) < 2:
            raise InputError(
                f"judge {label_of(settings)}: without its author nobody judges the answer of {names[0] if names else 'nobody'}",
                "let two sources judge at least, or say author: included",
            )
        self.authors = [list(sources).index(name) for name in names]
        self.author = settings.author
        parts = [SourceScorer(sources[name], settings.batch_tokens, device) for name in names]
        super().__init__(label_of(settings), parts)

    @property
    def key(self) -> str:
        """Return a hash of the judging sources and of who is left out."""
        return content_key(["likelihood", VERSION, [part.key for part in self.parts], self.author, self.authors])

    def combine(self, scores: Float[np.ndarray, "P S N"], empty: Bool[np.ndarray, "S N"]) -> Float[np.ndarray, "S N"]:
        """Return the mean over the sources that can read every answer to the question, with or without the author."""
        able = ~(np.isnan(scores) & ~empty).any(axis=1)
        used = np.broadcast_to(able[:, None, :], scores.shape).copy()
        if self.author == "left_out":
            for part, source in enumerate(self.authors):
                used[part, source] = False
        used &= ~empty
        number = used.sum(0)
        total = np.where(used, scores, 0.0).sum(0)
        mean: Float[np.ndarray, "S N"] = np.divide(total, number, out=np.full(total.shape, np.nan), where=number > 0)
        return mean
