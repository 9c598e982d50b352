"""How many tokens a text has whose end the writer never saw: its time was over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from lmfuse.bytes import ByteTokenizer
from lmfuse.generate.prompt import read_prompt
from lmfuse.types import Document
from lmfuse.writing import Finish, Passage, Prompt, Usage, Writer, WritingSettings, prompt_bytes


class CountingWriter:
    """A writer that can say how long a text is, because its models' tokenizers are at hand.

    Args:
        writer: what writes.
        tokenizers: of its models, in their order.
    """

    def __init__(self, writer: Writer, tokenizers: Sequence[ByteTokenizer]) -> None:
        self.name, self.models = writer.name, writer.models
        self._writer, self._tokenizers = writer, dict(zip(writer.models, tokenizers, strict=True))

    def write(self, prompt: Prompt, settings: WritingSettings, cancelled: Callable[[], bool] = lambda: False) -> Iterator[Passage | Finish]:
        """Write; see ``Writer.write``."""
        return self._writer.write(prompt, settings, cancelled)

    def usage(self, prompt: Prompt, text: str) -> Usage:
        """Return how many tokens each tokenizer makes of a text; those that were really written may be a few more, cut in other places."""
        read = {label: len(read_prompt(tokenizer, prompt)[0]) for label, tokenizer in self._tokenizers.items()}
        made = {label: _count(tokenizer, text) for label, tokenizer in self._tokenizers.items()}
        return Usage(prompt_bytes(prompt), len(text.encode()), made, read)


def _count(tokenizer: ByteTokenizer, text: str) -> int:
    """Return the number of tokens of a text, without those that stand before every text."""
    if not text:
        return 0
    return len(tokenizer.encode(Document.plain(text)).ids) - len(tokenizer.start_ids)
