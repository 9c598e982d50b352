"""Tokenizers and axes for the doctor's tests."""

from functools import cache

import numpy as np

from lmfuse.bytes import ByteTokenizer
from lmfuse.doctor.axis import Axis, Tokens
from lmfuse.types import Document
from tests import fakes

ODD = [
    "def f(x):\n        return x + 1\n\n\tpass   \n",
    "東京 café naïve ﬁne 🙂 مرحبا 1234567 and The End.",
    "x" * 300,
    "Anna has 12 apples <b>&amp;</b> \u202eoverride\u202c \x1b[31m \x00 {{ jinja }}\n\n\n",
]


@cache
def tokenizer(kind: str) -> ByteTokenizer:
    return ByteTokenizer.from_tokenizer(fakes.KINDS[kind]())


def documents(*texts: str) -> list[Document]:
    return [Document.plain(text, origin=f"/home/me/text.txt:{n}") for n, text in enumerate(texts, start=1)]


def tokens(*spans: tuple[int, int], masked: int = 0) -> Tokens:
    starts, ends = (np.array([span[side] for span in spans], np.int64) for side in (0, 1))
    return Tokens(np.arange(len(spans)), starts, ends, np.zeros(len(spans), np.int64), masked)


def axis(text: bytes, target: Tokens, source: Tokens) -> Axis:
    return Axis(np.frombuffer(text, np.uint8), np.array([0]), np.array([len(text)]), target, source)
