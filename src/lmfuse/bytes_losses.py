"""What a tokenizer may lose: announced by its parts, to be confirmed by a round trip."""

from __future__ import annotations

from lmfuse.bytes_vocabulary import Given

# Types of parts that lose something, the reason in words, a text that shows it.
LOSSES: tuple[tuple[frozenset[str], str, str], ...] = (
    (frozenset({"NFC"}), "NFC normaliser", "cafe\u0301"),
    (frozenset({"NFD"}), "NFD normaliser", "caf\u00e9"),
    (frozenset({"NFKC", "NFKD"}), "NFKC/NFKD normaliser", "\ufb01ne \u2460"),
    (frozenset({"Precompiled"}), "Precompiled (NFKC-like) normaliser", "\ufb01ne \u2460 cafe\u0301"),
    (frozenset({"Lowercase"}), "lower-casing", "The Cat"),
    (frozenset({"StripAccents"}), "accents stripped", "caf\u00e9 cafe\u0301"),
    (frozenset({"BertNormalizer"}), "BERT normaliser (case, accents, control characters)", "The Cat caf\u00e9 \x01a"),
    (frozenset({"Strip"}), "outer whitespace stripped", "  a  "),
    (frozenset({"Nmt"}), "NMT normaliser", "a\u200bb\x01"),
    (frozenset({"Whitespace", "WhitespaceSplit", "BertPreTokenizer", "CharDelimiterSplit"}), "whitespace dropped", "a  b\n\tc\n"),
)
GENERAL_PROBE = 'The quick (brown) fox\'s 12 apples = 3.5%,\n\tif x_1: [y] <z> {w} "q";  # 10\n\ncafé Zürich – 東京 🙂 привет שלום\r\n'


def possible_losses(given: Given) -> list[tuple[str, str]]:
    """Return what the parts of a tokenizer say it may lose: pairs of a reason and a text that shows it if it is so."""
    types = given.part_types()
    found = [(reason, probe) for losing, reason, probe in LOSSES if types & losing]
    if missing := given.missing_bytes():
        named = " ".join(f"0x{byte:02x}" for byte in sorted(missing)[:8])
        partial = f"{len(missing)} byte values have no token: {named}{' ...' if len(missing) > 8 else ''}"
        all_bytes = given.spelling.byte_level or given.byte_tokens
        found.append((f"unknown characters ({partial if all_bytes else 'no byte fallback'})", _every_byte()))
    return found


def _every_byte() -> str:
    """Return a text whose UTF-8 contains every byte that UTF-8 can contain."""
    leads = [*range(0x800, 0xD800, 0x1000), 0xE000, 0xF000, *range(0x10000, 0x110000, 0x40000), 0x10FFFF]
    return " ".join(map(chr, [*range(0x800), *leads]))
