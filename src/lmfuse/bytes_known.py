r"""Parts of tokenizers that are known to do no harm and need no trial, as their files spell them exactly.

Each pattern is a flat list of alternatives without nested repetition, so that matching takes time in proportion to the text. A test tries
every one of them all the same. What is missing here costs a short trial when a tokenizer is loaded, nothing else.
"""

from __future__ import annotations

_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_WORDS = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CASES}?|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CASES}?"

KNOWN_PATTERNS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2, as tiktoken spells it
        rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",  # cl100k, Llama 3, GLM-4
        rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}",  # Qwen 2, 2.5, 3
        rf"{_WORDS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",  # o200k, Llama 4
        rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",  # Mistral's Tekken
        r"\p{N}{1,3}",  # DeepSeek-V3
        r"\p{N}",
        r"\d",
        r"[0-9]",
        r"[\r\n]",
        r"[一-龥぀-ゟ゠-ヿ]+",
        " {2,}",  # spaces folded, as sentencepiece does
        r"\s{2,}",
    }
)

KNOWN_CHARSMAPS = frozenset(  # SHA-256 of the base64 text
    {
        "ce10d747170c5e102c99b841d1cdea976d54405ebc44791f9c3636741a894d8f",  # sentencepiece's nmt_nfkc: T5, mT5, XLM-R
    }
)
