"""``lmfuse`` as a model of lm-evaluation-harness: any of its tasks for models that write together, or for one alone. See docs/harness.md.

lm_eval knows the models that ship with it and those whose modules were imported, and looks for no others: ``lmfuse harness`` imports this
one and then runs lm_eval's own command line.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from typing import Any

import torch
from tqdm import tqdm

from lmfuse.errors import InputError
from lmfuse.evaluate import harness_scores as scores
from lmfuse.evaluate.harness_models import Ensemble, checked_dtype, device_names, make_method, names
from lmfuse.evaluate.harness_prompts import MARK, Context, read_context, settings_of, spaces_moved, without_system, write_conversation
from lmfuse.models import ModelSpec
from lmfuse.writing import WritingSettings

try:
    import lm_eval.models  # noqa: F401  # its own first: it fills an empty registry only
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError:  # the extra is not installed: ``check_installed`` says so

    class LM:  # type: ignore[no-redef]
        """Stands for lm_eval's."""

    def register_model(*_: str) -> Callable[[type], type]:
        """Register nothing."""
        return lambda found: found


AUTO_BATCH = 8
ARGUMENTS = ("models", "method", "model", "chat_template", "document_start", "dtype", "devices", "max_gen_toks", "seed")
logger = logging.getLogger(__name__)


def check_installed() -> None:
    """Raise where the harness is missing.

    Raises:
        InputError: and what to install.
    """
    if find_spec("lm_eval") is None:
        raise InputError("harness needs lm_eval", hint="pip install 'lmfuse[eval]'")


def main(arguments: Sequence[str]) -> None:
    """Run lm_eval's own command line, with ``--model lmfuse`` where no other model is named.

    Args:
        arguments: of ``lm_eval``.

    Raises:
        LmfuseError: see ``FusedLM``.
    """
    check_installed()
    from lm_eval.__main__ import cli_evaluate

    given = list(arguments)
    if given[:1] not in (["ls"], ["validate"]):
        given = ["run", "--model", "lmfuse", *(given[1:] if given[:1] == ["run"] else given)]
    before = sys.argv
    sys.argv = ["lm_eval", *given]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


@register_model("lmfuse")
class FusedLM(LM):  # type: ignore[misc]  # lm_eval has no types
    """Models that answer the harness's requests together.

    What ``loglikelihood`` says of a continuation, in nats:

    - one model: the sum over its own tokens, cut as the harness's ``hf`` cuts them; ``is_greedy``: each is the likeliest;
    - ``byte_mixture`` and ``pack_llm``: the exact log-probability of its bytes under the models' mixture over the next byte; ``is_greedy``: each
      is the likeliest byte;
    - all other methods: the weighted mean over the models of what each, as a judge, says of the whole continuation (``Session.judge``); it
      decides as ``score=nats_per_byte`` would among continuations of one length. ``is_greedy``: the models together would write it.

    ``loglikelihood_rolling`` is the same for a whole text behind a start token. ``generate_until`` is ``FusedWriter``.
    """

    def __init__(
        self,
        models: object = (),
        method: str = "cool",
        *,
        model: str = "",
        chat_template: str = "own",
        document_start: str = "auto",
        dtype: str = "bfloat16",
        devices: object = (),
        device: str | None = None,
        batch_size: int | str | None = 1,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        seed: int | None = None,
        **parameters: Any,
    ) -> None:
        """Load the models; what is not named here is a parameter of the method.

        Args:
            models: folders or hub names as ``A+B+C``, or a list of them, the reference model first.
            method: how they write together.
            model: how the harness calls its folder of results; it makes up a name otherwise.
            chat_template: with which each reads conversations: ``own``, ``openchat``, or the path of a jinja file. Used where
                ``--apply_chat_template`` makes prompts conversations.
            document_start: what stands before a plain text: by default what the tokenizer itself puts there, often nothing.
            dtype: of the weights.
            devices: as ``cuda:0+cuda:1``, one for all or one for each; else ``device``.
            device: the harness's ``--device``.
            batch_size: how many texts are read or written at once; ``auto``: 8.
            max_batch_size: the most that ``auto`` may take.
            max_gen_toks: of a text whose task names no limit, in tokens of the reference model.
            seed: of what is drawn; else the third of the harness's ``--seed``.
            parameters: of the method.

        Raises:
            InputError: lm_eval is missing, or an argument is unknown or impossible; or see ``load_model``.
            ModelError, TokenizerError, ResourceError: see ``load_model``.
        """
        check_installed()
        super().__init__()
        how = make_method(str(method), parameters, ARGUMENTS)
        specs = [
            ModelSpec(name, dtype=checked_dtype(dtype), chat_template=str(chat_template), document_start=str(document_start))
            for name in names(models)
        ]
        self.ensemble = Ensemble(specs, device_names(devices, device), how)
        automatic = str(batch_size or 1).startswith("auto")
        self.batch = min(AUTO_BATCH, max_batch_size or AUTO_BATCH) if automatic else int(batch_size or 1)
        self.max_gen_toks, self._seed = int(max_gen_toks), seed

    # ── conversations ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def tokenizer_name(self) -> str:
        """Return what the harness's cache of prompts distinguishes: not the models, whose templates are applied later."""
        return "lmfuse-conversation"

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return all models' templates, for the harness's log; a name chooses another one than ``own``.

        Raises:
            InputError, TokenizerError: a model has none.
        """
        if not chat_template:
            return ""
        self.ensemble.use_template(chat_template if isinstance(chat_template, str) else self.ensemble.specs[0].chat_template)
        models = zip(self.ensemble.labels, self.ensemble.models("chat"), strict=True)
        return "\n".join(f"{label}: {model.tokenizer.chat.source if model.tokenizer.chat else ''}" for label, model in models)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the conversation as JSON, to which each model applies its own template when it reads it.

        Where one of the templates has no place for a system message, the first user's message begins with it, for all models.

        Raises:
            InputError, TokenizerError: a model has no template, or a role that none knows.
        """
        if any(message["role"] == "system" for message in chat_history) and not self.ensemble.takes_system:
            chat_history = without_system(chat_history)
        self.ensemble.models("chat")
        return write_conversation(chat_history, begun=not add_generation_prompt)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness writes into its results: which models, and how they write together."""
        writer, method = self.ensemble.writer("empty"), self.ensemble.method
        known = {"lmfuse_models": list(writer.models), "lmfuse_keys": list(writer.keys)}
        return {**known, "lmfuse_method": asdict(method)}  # type: ignore[call-overload]

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return for each (context, continuation) its log-likelihood in nats, and whether greedy writing gives it.

        Raises:
            InputError, TokenizerError, ResourceError: see ``Writer.write``.
        """
        asked = [(str(request.args[0]), str(request.args[1])) for request in requests]
        found, groups = dict[tuple[str, str], tuple[float, bool]](), dict[str, list[tuple[str, str]]]()
        for pair in dict.fromkeys(asked):
            groups.setdefault(pair[0], []).append(pair)
        own = [pair for pair in dict.fromkeys(asked) if self.ensemble.own_tokens and not pair[0].startswith(MARK)]
        with tqdm(total=len(set(asked)), desc="lmfuse: loglikelihood", disable=disable_tqdm) as bar:

            def add(pairs: Sequence[tuple[str, str]], scored: Sequence[scores.Score]) -> None:
                for pair, score in zip(pairs, scored, strict=True):
                    found[pair] = score.log_prob, score.greedy
                    self.cache_hook.add_partial("loglikelihood", pair, found[pair])
                bar.update(len(pairs))

            self._score_tokens(own, add)
            for contexts in batches([context for context in groups if groups[context][0] not in found], self.batch):
                some = [groups[context] for context in contexts]
                for pairs, scored in zip(some, scores.score_continuations(self.ensemble, list(map(_group, some))), strict=True):
                    add(pairs, scored)
        return [found[pair] for pair in asked]

    def _score_tokens(self, pairs: Sequence[tuple[str, str]], add: Callable[..., None]) -> None:
        """Score a single model's plain texts, those of similar length together."""
        moved = [spaces_moved(*pair) for pair in pairs]
        cut = [scores.token_pair(self.ensemble, *each) if each[1] else ([], []) for each in moved]
        order = sorted(range(len(pairs)), key=lambda place: -sum(map(len, cut[place])))
        model = self.ensemble.models("empty")[0]
        for at in range(0, len(order), self.batch):
            some = order[at : at + self.batch]
            asked = [place for place in some if cut[place][1]]
            scored = dict(zip(asked, scores.score_tokens(model, [cut[place] for place in asked]), strict=True)) if asked else {}
            add([pairs[place] for place in some], [scored.get(place, scores.Score(0.0, True)) for place in some])

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of whole texts in nats.

        Raises:
            InputError: a model has no start token; or see ``Writer.write``.
        """
        found = []
        for request in tqdm(requests, desc="lmfuse: loglikelihood_rolling", disable=disable_tqdm):
            (text,) = request.args
            by_bytes = self.ensemble.by_bytes
            total = scores.roll_bytes(self.ensemble, text) if by_bytes else scores.roll_tokens(self.ensemble, text, self.batch)
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Return texts; prompts that stand several times are drawn with different seeds, or written once where nothing is drawn.

        Raises:
            InputError: an unknown generation argument; a conversation that exceeds a model's context; or see ``Writer.write``.
        """
        first, seen = self._seed if self._seed is not None else torch.initial_seed() % (1 << 31), Counter[str]()
        wanted: list[tuple[str, WritingSettings]] = []
        for request in requests:
            context, arguments = request.args[:2]
            settings = settings_of(arguments, self.max_gen_toks, first)
            if settings.temperature:
                settings = replace(settings, seed=first + seen[f"{context}{arguments}"])
                seen[f"{context}{arguments}"] += 1
            wanted.append((str(context), settings))
        arguments_of = {key: request.args[:2] for key, request in zip(wanted, requests, strict=True)}
        found: dict[tuple[str, WritingSettings], str] = {}
        with tqdm(total=len(arguments_of), desc="lmfuse: generate_until", disable=disable_tqdm) as bar:

            def add(key: tuple[str, WritingSettings], text: str) -> None:
                found[key] = text
                self.cache_hook.add_partial("generate_until", tuple(arguments_of[key]), text)
                bar.update(1)

            self._write(list(arguments_of), add)
        return [found[key] for key in wanted]

    def _write(self, wanted: Sequence[tuple[str, WritingSettings]], add: Callable[[tuple[str, WritingSettings], str], None]) -> None:
        """Write texts, as many at once as ``batch`` says, longest prompts first."""
        fitted = {key: self._fitted(*key) for key in wanted}
        by_context: dict[str, list[tuple[str, WritingSettings]]] = {}
        for key in wanted:
            by_context.setdefault(key[0], []).append(key)
        for contexts in batches([key[0] for key in wanted], self.batch):
            some = [by_context[context].pop(0) for context in contexts]
            for key, text in zip(some, self.ensemble.write([fitted[key] for key in some], [how for _, how in some]), strict=True):
                add(key, text)

    def _fitted(self, context: str, settings: WritingSettings) -> Context:
        """Leave room for the text; of a plain prompt at least the half of what a model reads stays."""
        rooms = [min(settings.max_tokens or 1, model.context // 2) for model in self.ensemble.models("empty")]
        found = read_context(context)
        return scores.fitted(self.ensemble, found, [1] * len(rooms) if found.messages else rooms)


def batches(contexts: Sequence[str], size: int) -> Iterator[list[str]]:
    """Yield contexts of one kind (conversations, or plain texts) together, at most ``size`` of them, the longest first.

    >>> list(batches(["a", "bbb", 'lmfuse conversation [["user", "?"]]', "cc"], 2))
    [['lmfuse conversation [["user", "?"]]'], ['bbb', 'cc'], ['a']]
    """
    order = sorted(contexts, key=lambda context: -len(context))
    for talks in (True, False):
        same = [context for context in order if bool(read_context(context).messages) == talks]
        yield from (same[at : at + size] for at in range(0, len(same), size))


def _group(pairs: Sequence[tuple[str, str]]) -> tuple[Context, list[str]]:
    """Return one context and its continuations as the models are asked; a conversation's spaces are its template's."""
    context = read_context(pairs[0][0])
    if context.messages:
        return context, [continuation for _, continuation in pairs]
    return Context(spaces_moved(context.text, "")[0]), [spaces_moved(*pair)[1] for pair in pairs]
