"""Small models with three kinds of tokenizers, writers over them, and what a text must be like whoever wrote it."""

from __future__ import annotations

from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LogitsProcessor

from lmfuse.bytes import ByteTokenizer
from lmfuse.generate.crew import Crew
from lmfuse.generate.tokens import Chooser
from lmfuse.models import LanguageModel, wrap_module
from lmfuse.types import Document
from lmfuse.writing import Finish, Passage, WritingSettings
from tests.fakes import KINDS


@cache
def small_model(kind: str = "byte_bpe", seed: int = 0, context: int = 512, *, ends: bool = True) -> LanguageModel:
    """Return a random Llama whose text is lively: no token is likely for ever; with ``ends`` it has an end token."""
    tokenizer = KINDS[kind]()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=context, tie_word_embeddings=False, initializer_range=0.4,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    end = {"byte_bpe": "<|endoftext|>", "metaspace_bpe": "</s>", "unigram": "</s>"}[kind]
    known = {"eos": end} if ends else {"document_start": end}
    return wrap_module(LlamaForCausalLM(config), ByteTokenizer.from_tokenizer(tokenizer, **known))


def run(writer, prompt, **settings) -> tuple[str, list[Passage], Finish]:
    """Write a text; return it, its passages and its end."""
    *passages, finish = writer.write(prompt, WritingSettings(**settings), lambda: False)
    assert isinstance(finish, Finish)
    assert all(isinstance(passage, Passage) and passage.text for passage in passages)
    text = "".join(passage.text for passage in passages)
    assert finish.usage.text_bytes == len(text.encode())
    return text, passages, finish


def check_session(session, text: bytes) -> None:
    """A session's ids write the text, its cache holds its ids, and its prediction is the model's own after them."""
    vocabulary = session.model.tokenizer.vocabulary
    written = b"".join(vocabulary.bytes_of(token_id) for token_id in session.ids[session.num_prompt :])
    assert session.text == text
    assert written == text or (session.spelling.dummy and written == b" " + text)
    assert session.reader.length == len(session.ids)
    assert len(session.ends) == len(session.nll_nats) == session.num_tokens
    with torch.inference_mode():
        whole = session.model.module(torch.tensor([session.ids])).logits[0, :, : vocabulary.size].float().log_softmax(-1)
    torch.testing.assert_close(session.prediction, whole[-1], atol=2e-4, rtol=1e-3)
    rows = whole[session.num_prompt - 1 : -1]
    nll = -rows[range(len(rows)), session.ids[session.num_prompt :]]
    torch.testing.assert_close(torch.tensor(session.nll_nats), nll, atol=2e-4, rtol=1e-3)


class WatchedCrew(Crew):
    """A crew that the tests can look at, and that is checked whenever a segment was committed."""

    last: WatchedCrew | None = None

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        WatchedCrew.last = self

    def check(self) -> None:
        """Check the invariants of all sessions."""
        for session in self.sessions:
            check_session(session, self.sessions[0].text)


class OnlyText(LogitsProcessor):
    """What ``Chooser`` allows, for transformers' own ``generate``: the oracle of a model that writes alone."""

    def __init__(self, model: LanguageModel, num_prompt: int) -> None:
        self.chooser, self.num_prompt = Chooser(model.tokenizer.vocabulary, WritingSettings(), 0), num_prompt

    def __call__(self, input_ids, scores):
        vocabulary = self.chooser.vocabulary
        data = b"".join(map(vocabulary.bytes_of, input_ids[0, self.num_prompt :].tolist()))
        pending = data[len(data.decode("utf-8", errors="ignore").encode()) :]
        allowed = torch.full_like(scores, -torch.inf)
        for token_id in scores[0, : vocabulary.size].argsort(descending=True).tolist():
            written = pending + vocabulary.bytes_of(token_id)
            fits = not pending if token_id in self.chooser.ends else len(written) > len(pending) and _can_go_on(written)
            if fits:
                allowed[0, token_id] = scores[0, token_id]
                return allowed
        raise AssertionError("no token fits")


def _can_go_on(data: bytes) -> bool:
    """Return whether some bytes make this UTF-8, by trying."""
    tails = [b"", *(bytes([first]) + b"\xbf" * more for first in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF) for more in range(3))]
    return any(_is_text(data + tail) for tail in tails)


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def greedy_ids(model: LanguageModel, prompt: str, max_new_tokens: int) -> list[int]:
    """Return what transformers' greedy ``generate`` writes, token for token, up to an end token."""
    ids = torch.from_numpy(model.tokenizer.encode(Document.plain(prompt)).ids)[None]
    oracle = OnlyText(model, ids.shape[1])
    found = model.module.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=0,
        eos_token_id=list(oracle.chooser.ends), logits_processor=[oracle],
    )  # fmt: skip
    return found[0, ids.shape[1] :].tolist()
