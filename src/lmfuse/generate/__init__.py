"""Several models write one text together, without training: the writers that the command line, the server and the evaluation use.

Each model sees the prompt with its own chat template; what they share is the bytes of the answer. See docs/generate.md.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from typing import Any

from lmfuse.decode.byte_mixture import ByteMixture
from lmfuse.decode.cool import Cool
from lmfuse.decode.cool_rerank import CoolRerank
from lmfuse.decode.pack_llm import PackLLM
from lmfuse.decode.rerank import Rerank
from lmfuse.decode.safe import Safe
from lmfuse.decode.unite import Unite
from lmfuse.errors import InputError, LmfuseError
from lmfuse.generate.cache import Seat, reads_trees
from lmfuse.generate.checked import write_checked
from lmfuse.generate.crew import CancelledError, Crew
from lmfuse.generate.joint import write_mixture, write_packed, write_union
from lmfuse.generate.prompt import read_fitting
from lmfuse.generate.release import Reason, release
from lmfuse.generate.segments import write_answers, write_reranked, write_segments
from lmfuse.generate.together import write_together
from lmfuse.models import LanguageModel
from lmfuse.writing import Finish, Passage, Prompt, Usage, WritingSettings, prompt_bytes

Loop = Callable[[Crew, Any, WritingSettings], Iterator[Passage | Reason]]
LOOPS: dict[type, Loop] = {
    Cool: write_segments,
    Rerank: write_answers,
    CoolRerank: write_reranked,
    ByteMixture: write_mixture,
    PackLLM: write_packed,
    Unite: write_union,
    Safe: write_checked,
}


class FusedWriter:
    """Models that write together; one model alone writes what it would write anyway.

    Attributes:
        name: what a server calls it.
        models: the labels of its models, the reference model first.
        method: how they write together; a member of the catalogue's ``decode`` family.
    """

    def __init__(
        self, models: Sequence[LanguageModel], labels: Sequence[str] | None = None, method: object = None, *, name: str = "lmfuse"
    ) -> None:
        """Check that the models can write together.

        Args:
            models: at least one, the reference model first.
            labels: what they are called; by default ``model-1`` and so on.
            method: by default ``Cool()``.
            name: what a server calls it.

        Raises:
            InputError: no model, labels that are not one for each or not all different, or weights that are not one for each.
            ModelError: a model cannot forget what it has read.
        """
        self.name, self.method = name, Cool() if method is None else method
        self.models = tuple(labels) if labels is not None else tuple(f"model-{place}" for place in range(1, len(models) + 1))
        self._models = tuple(models)
        if not models or len(self.models) != len(models) or len(set(self.models)) != len(models):
            raise InputError(f"{len(models)} models with labels {', '.join(self.models) or 'none'}", "give every model a label of its own")
        weights = getattr(self.method, "weights", ())
        if weights and len(weights) != len(models):
            raise InputError(f"weights: {len(weights)} numbers for {len(models)} models", "give one for each model, or none")
        self._loop = LOOPS[type(self.method)]
        for model in models:
            reads_trees(model)

    @property
    def keys(self) -> tuple[str, ...]:
        """Return what identifies its models' weights and tokenizers."""
        return tuple(f"{model.key} {model.dtype} {model.tokenizer.key}" for model in self._models)

    def check(self, prompt: Prompt) -> None:
        """Find out whether all models can read a prompt, without any of them.

        Raises:
            InputError, TokenizerError: as ``write`` does.
        """
        for model, label in zip(self._models, self.models, strict=True):
            read_fitting(model, label, prompt)

    def write(self, prompt: Prompt, settings: WritingSettings, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Passage | Finish]:
        """Yield passages as they are committed, then a ``Finish``; see ``Writer.write``."""
        return self._write(prompt, settings, cancelled)

    def write_many(
        self,
        prompts: Sequence[Prompt],
        settings: WritingSettings | Sequence[WritingSettings],
        cancelled: Callable[[], bool] = lambda: False,
        done: Callable[[int], None] = lambda _: None,
    ) -> list[list[Passage | Finish] | LmfuseError]:
        """Write several texts at the same time, much faster than one by one: what they want of one model is read in one pass.

        Each is the text that ``write`` writes, but for rounding: where two tokens are all but equally likely, it may depend on the others.
        The same prompts in the same order give the same texts.

        Args:
            prompts: what they continue.
            settings: for all of them, or one for each.
            cancelled: as in ``write``, for all of them.
            done: told the place of each text that has ended, in the caller's thread.

        Returns:
            For each prompt what ``write`` yields, or the error that it raises because of this prompt.

        Raises:
            ResourceError: memory does not suffice for all of them.
        """
        each = [settings] * len(prompts) if isinstance(settings, WritingSettings) else settings
        writes = [partial(self._write, prompt, own, cancelled) for prompt, own in zip(prompts, each, strict=True)]
        return write_together(writes, len(self._models), done)

    def _write(
        self, prompt: Prompt, settings: WritingSettings, cancelled: Callable[[], bool], seats: Sequence[Seat] | None = None
    ) -> Iterator[Passage | Finish]:
        if cancelled():
            return
        crew = Crew(self._models, self.models, prompt, settings, cancelled, seats)
        text_bytes = 0
        with suppress(CancelledError), closing(crew):
            for each in release(self._loop(crew, self.method, settings), settings):
                crew.go_on()
                if isinstance(each, Passage):
                    text_bytes += len(each.text.encode())
                yield each if isinstance(each, Passage) else Finish(each, _usage(crew, prompt, text_bytes))


def _usage(crew: Crew, prompt: Prompt, text_bytes: int) -> Usage:
    """Count; a token counts that begins before the end of what was shown."""
    tokens = {session.label: min(bisect_left(session.ends, text_bytes) + 1, session.num_tokens) for session in crew.sessions}
    of_prompt = {session.label: session.num_prompt for session in crew.sessions}
    return Usage(prompt_bytes(prompt), text_bytes, tokens if text_bytes else dict.fromkeys(tokens, 0), of_prompt)
