"""The nouns of the house and the legend of its axes.

Axis legend, used in every signature:

====  =========================================================
S     sources
B     documents of a batch
T     target tokens of a document
U     source tokens of a document (one *row* each)
V, W  target vocabulary, source vocabulary
K     kept candidates of a row
N     anything counted once (bytes, positions, non-zeros)
W1    W + 1: offsets of W things
====  =========================================================

All of them are frozen and hold numpy arrays; what a training step needs of them as tensors is in ``losses/teacher.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

IndexLike = Any  # whatever numpy accepts between square brackets: int, slice, integer or boolean array
END_OF_TURN = b"\xff"  # no UTF-8 contains this byte, so on the byte axis it can stand for the end of a turn
PLAIN_ROLE = "text"
UnfitRule = Literal["stop", "leave_out"]  # what becomes of a conversation that a chat template cannot express


@dataclass(frozen=True)
class Segment:
    """A stretch of text with one author. Only the bytes of *trained* segments are aligned, taught and measured.

    The role is ``text`` in a plain document, and ``system``, ``user`` or ``assistant`` in a conversation.
    """

    text: str
    role: str = PLAIN_ROLE
    trained: bool = True


@dataclass(frozen=True)
class Document:
    """A text, plain (one trained segment) or a conversation, with the domain it counts for and where it came from."""

    segments: tuple[Segment, ...]
    domain: str = "text"
    origin: str = ""

    @cached_property
    def id(self) -> str:
        """Return 32 hex digits of the SHA-256 of roles, trained flags and texts; domain and origin are not part of it."""
        digest = hashlib.sha256()
        for segment in self.segments:
            data = segment.text.encode()
            digest.update(f"{segment.role}\0{int(segment.trained)}\0{len(data)}\0".encode() + data)
        return digest.hexdigest()[:32]

    @property
    def is_conversation(self) -> bool:
        """Return whether its segments are the turns of a conversation."""
        return any(segment.role != PLAIN_ROLE for segment in self.segments)

    @cached_property
    def trained_bytes(self) -> bytes:
        r"""Return the UTF-8 bytes of all trained segments, concatenated: the byte axis that every model shares.

        In a conversation one byte more, ``END_OF_TURN``, stands behind each of them: that a turn ends is learned like any other byte.

        >>> Document((Segment("Hi!", "user", trained=False), Segment("Hello.", "assistant"))).trained_bytes
        b'Hello.\xff'
        """
        end = END_OF_TURN if self.is_conversation else b""
        return b"".join(segment.text.encode() + end for segment in self.segments if segment.trained)

    @cached_property
    def num_bytes(self) -> int:
        """Return the bytes of all its segments, and one for the end of each trained turn: how long it is to read."""
        untrained = sum(len(segment.text.encode()) for segment in self.segments if not segment.trained)
        return len(self.trained_bytes) + untrained

    @classmethod
    def plain(cls, text: str, domain: str = "text", origin: str = "") -> Document:
        """Return a document of one trained segment."""
        return cls((Segment(text),), domain, origin)


@dataclass(frozen=True)
class Vocabulary:
    """What every token id of a tokenizer writes, in bytes.

    Attributes:
        flat: the bytes of all tokens, one after the other.
        offsets: token ``i`` owns ``flat[offsets[i]:offsets[i + 1]]``; control tokens own nothing, but for the one that ends a turn where
            conversations are read: it owns ``END_OF_TURN``.
        strings: the tokens as the tokenizer spells them (``Ġthe``, ``▁the``, ``<0x0A>``), for the papers' string rules.
        control: ids by class: ``bos``, ``eos``, ``pad``, ``unk``, ``end_of_turn``, ``start`` (what stands before a plain text), where there is one.
        key: a hash of everything above; the identity of the tokenizer in caches.
    """

    flat: UInt8[np.ndarray, "N"]
    offsets: Int[np.ndarray, "W1"]
    strings: tuple[str, ...] = field(repr=False)
    control: Mapping[str, int]
    key: str

    @property
    def size(self) -> int:
        """Return the number of ids, control tokens included, padded rows of a model's embedding excluded."""
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> Int[np.ndarray, "W"]:
        """Return the number of bytes of each token."""
        return np.diff(self.offsets)

    def bytes_of(self, token_id: int) -> bytes:
        """Return the bytes that one token writes; ``b""`` for a control token."""
        return self.flat[self.offsets[token_id] : self.offsets[token_id + 1]].tobytes()

    @classmethod
    def from_tokens(
        cls, tokens: list[bytes], *, strings: list[str] | None = None, control: Mapping[str, int] | None = None, key: str = ""
    ) -> Vocabulary:
        """Build a vocabulary from a list of byte strings, ``b""`` for control tokens.

        >>> words = Vocabulary.from_tokens([b"", b"ab", b"c"])
        >>> words.size, words.bytes_of(1), words.lengths.tolist()
        (3, b'ab', [0, 2, 1])
        """
        flat = np.frombuffer(b"".join(tokens), dtype=np.uint8)
        offsets = np.concatenate([[0], np.cumsum([len(token) for token in tokens])]).astype(np.int64)
        spelled = tuple(strings) if strings is not None else tuple(token.decode("utf-8", "backslashreplace") for token in tokens)
        if not key:
            digest = hashlib.sha256(flat.tobytes() + offsets.tobytes())
            digest.update(repr((spelled, sorted((control or {}).items()))).encode())
            key = digest.hexdigest()[:32]
        return cls(flat, offsets, spelled, dict(control or {}), key)


@dataclass(frozen=True)
class Encoding:
    """One model's view of a document.

    Attributes:
        ids: everything the model reads, start token and template included.
        starts: for each token the byte of the document's trained bytes at which it starts, or -1 for a token without text
            (control, template, untrained segment) and for a token inside a span that the tokenizer cannot represent.
        ends: the byte after its last one, or -1 likewise. Tokens with text cover the trained bytes once, in order,
            except for the masked spans. A token may write more than ``ends - starts`` bytes of its vocabulary: the
            surplus stands before ``starts`` and is a dummy prefix (Llama-2's space before a document).
        masked_bytes: how many trained bytes the tokenizer cannot represent (lossy normaliser).
    """

    ids: Integer[np.ndarray, "T"]
    starts: Integer[np.ndarray, "T"]
    ends: Integer[np.ndarray, "T"]
    masked_bytes: int = 0


@dataclass(frozen=True)
class TopK:
    """Truncated distributions, one per row: the kept ids, their true log-probabilities, and the log of what is left.

    ``exp(log_probs).sum(-1) + exp(tail) == 1`` up to storage precision. A slot that holds nothing has log-probability
    ``-inf`` (its id is then 0 and means nothing). Index it like an array: ``rows[3]``, ``rows[2:5]``, ``rows[mask]``.
    """

    ids: Integer[np.ndarray, "*T K"]
    log_probs: Float[np.ndarray, "*T K"]
    tail: Float[np.ndarray, "*T"]
    vocab_size: int

    def __getitem__(self, index: IndexLike) -> TopK:
        return TopK(self.ids[index], self.log_probs[index], np.asarray(self.tail[index]), self.vocab_size)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def k(self) -> int:
        """Return the number of slots of a row."""
        return int(self.ids.shape[-1])

    def first(self, k: int) -> TopK:
        """Return rows of the first k slots; what stood in the others is in the tail.

        >>> TopK(np.array([[3, 5]]), np.log([[0.5, 0.25]]), np.log([0.25]), 9).first(1).tail.round(4).tolist()
        [-0.6931]
        """
        cut = np.logaddexp.reduce(self.log_probs[..., k:], axis=-1, initial=-np.inf)
        tail = np.logaddexp(self.tail, cut).astype(self.tail.dtype)
        return TopK(self.ids[..., :k], self.log_probs[..., :k], tail, self.vocab_size)

    @classmethod
    def unknown(cls, num_rows: int, k: int, vocab_size: int) -> TopK:
        """Return rows that know nothing: no candidate, all mass in the tail."""
        return cls(
            np.zeros((num_rows, k), np.int64), np.full((num_rows, k), -np.inf, np.float32), np.zeros(num_rows, np.float32), vocab_size
        )

    @classmethod
    def certain(cls, ids: Integer[np.ndarray, "T"], k: int, vocab_size: int) -> TopK:
        """Return rows that give probability 1 to one id each.

        >>> TopK.certain(np.array([7]), k=2, vocab_size=9).log_probs.tolist()
        [[0.0, -inf]]
        """
        rows = cls.unknown(len(ids), k, vocab_size)
        rows.ids[:, 0], rows.log_probs[:, 0], rows.tail[:] = ids, 0.0, -np.inf
        return rows

    @classmethod
    def concatenate(cls, parts: list[TopK]) -> TopK:
        """Join rows of the same k and vocabulary along the first axis."""
        ids, log_probs, tail = (np.concatenate([getattr(part, name) for part in parts]) for name in ("ids", "log_probs", "tail"))
        return cls(ids, log_probs, tail, parts[0].vocab_size)


@dataclass(frozen=True)
class Rows:
    """What one source knows of one document: a distribution over its own vocabulary before each of its text tokens.

    Row ``u`` is the source's prediction for the bytes that begin at ``starts[u]``; ``next_ids[u]`` is the token that really
    stood there, ``nll_nats[u]`` its negative log-likelihood, in the top k or not. Tokens without text have no row.
    """

    starts: Integer[np.ndarray, "U"]
    ends: Integer[np.ndarray, "U"]
    next_ids: Integer[np.ndarray, "U"]
    nll_nats: Float[np.ndarray, "U"]
    topk: TopK

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, wanted: Bool[np.ndarray, "U"]) -> Rows:
        """Return some of the rows."""
        return Rows(self.starts[wanted], self.ends[wanted], self.next_ids[wanted], self.nll_nats[wanted], self.topk[wanted])

    @property
    def num_bytes(self) -> int:
        """Return the number of bytes that the rows' tokens cover."""
        return int((self.ends - self.starts).sum())

    @property
    def nats_per_byte(self) -> float:
        """Return the source's cross-entropy on the document in nats per byte; ``nan`` where no byte is covered."""
        return float(self.nll_nats.sum(dtype=np.float64) / self.num_bytes) if self.num_bytes else float("nan")

    @property
    def nats_per_token(self) -> float:
        """Return the source's cross-entropy in nats per own token, the published unit; ``nan`` without tokens."""
        return float(self.nll_nats.mean(dtype=np.float64)) if len(self) else float("nan")


@dataclass(frozen=True)
class VocabularyMap:
    """A sparse row-stochastic map from source ids to target ids (CSR): where each source candidate's probability goes.

    Source id ``w`` sends share ``weights[i]`` to ``target_ids[i]`` for ``i`` in ``indptr[w]:indptr[w + 1]``; an id with no entry
    is unmapped and its probability is *lost mass*, which goes to the tail and is counted.
    """

    indptr: Int[np.ndarray, "W1"]
    target_ids: Integer[np.ndarray, "N"]
    weights: Float[np.ndarray, "N"]
    target_size: int
    method: str

    @property
    def source_size(self) -> int:
        """Return the number of source ids."""
        return len(self.indptr) - 1

    @property
    def coverage(self) -> float:
        """Return the share of source ids that map anywhere."""
        return float((np.diff(self.indptr) > 0).mean())

    @classmethod
    def from_single(cls, target_of: Integer[np.ndarray, "W"], target_size: int, method: str) -> VocabularyMap:
        """Build a map in which each source id goes to one target id, or nowhere (-1).

        >>> one = VocabularyMap.from_single(np.array([2, -1, 0]), target_size=3, method="exact")
        >>> one.target_ids.tolist(), one.indptr.tolist(), round(one.coverage, 2)
        ([2, 0], [0, 1, 1, 2], 0.67)
        """
        mapped = target_of >= 0
        indptr = np.concatenate([[0], np.cumsum(mapped)]).astype(np.int64)
        return cls(indptr, target_of[mapped].astype(np.int64), np.ones(int(mapped.sum()), np.float32), target_size, method)

    def single(self) -> Int[np.ndarray, "W"]:
        """Return for each source id the target id that gets most of it, or -1."""
        best = np.full(self.source_size, -1, np.int64)
        source = np.repeat(np.arange(self.source_size), np.diff(self.indptr))
        order = np.lexsort((self.weights, source))
        best[source[order]] = self.target_ids[order]
        return best


@dataclass(frozen=True)
class Alignment:
    """What one source says about each token of a target's encoding.

    Attributes:
        source_row: for each target token the index of the source row that speaks for it, or -1.
        topk: that row over the target's vocabulary; rows without a source are ``TopK.unknown``.
        truth_nll_nats: the source's negative log-likelihood of the target token's own bytes where the method can tell, else ``nan``.
        lost_mass: for each target token the probability among kept candidates that found no target id (now in the tail).
        one_hot: True where a published fallback put all probability on one id instead of a source's row.
        boundary: True where the token ends with a token of the source: the chunks that both tokenizations share end there.
    """

    source_row: Integer[np.ndarray, "T"]
    topk: TopK
    truth_nll_nats: Float[np.ndarray, "T"]
    lost_mass: Float[np.ndarray, "T"]
    one_hot: Bool[np.ndarray, "T"]
    boundary: Bool[np.ndarray, "T"]

    @property
    def taught(self) -> Bool[np.ndarray, "T"]:
        """Return where there is anything to teach: a source row, or a published one-hot fallback."""
        return (self.source_row >= 0) | self.one_hot


@dataclass(frozen=True)
class Fused:
    """One teacher row per target token, and whose it is.

    Attributes:
        winner: the index of the source whose row it is, or that has the largest part in it; -1 without a teacher; -2 for a blend
            without a leader.
        truth_nll_nats: the teacher's negative log-likelihood of the target token's own bytes, ``nan`` where it is not known.
        boundary: True where the token ends with a token of the source, in a blend of every source that has a part in it.
    """

    topk: TopK
    taught: Bool[np.ndarray, "T"]
    winner: Integer[np.ndarray, "T"]
    truth_nll_nats: Float[np.ndarray, "T"]
    boundary: Bool[np.ndarray, "T"]


@dataclass(frozen=True)
class DocumentScore:
    """How one model did on one document: negative log-likelihood of the bytes it could represent, and how many those are."""

    document: str
    domain: str
    nll_nats: float
    num_bytes: int


@dataclass(frozen=True)
class Result:
    """A measured value with what it rests on: task, model, run, standard error and the per-document values."""

    task: str
    model: str
    value: float
    stderr: float
    documents: tuple[DocumentScore, ...] = field(repr=False, default=())
    run: str = ""
