"""What can be said of a model without reading its weights, and the hash that identifies it."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmfuse.artefacts import content_key, write_atomic
from lmfuse.bytes import ByteTokenizer
from lmfuse.errors import LmfuseError, ModelError
from lmfuse.folder_files import read_object
from lmfuse.model_files import ModelFolder, ModelSpec, look_at
from lmfuse.types import Vocabulary

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in)\.weight$")
UNLIMITED_CONTEXT = 1 << 30
WORTH_CACHING = 16 << 20  # bytes; hashing less than this costs no more than looking the hash up
CONTEXT_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")


@dataclass(frozen=True)
class ModelFacts:
    """What a model is, before any weight is read.

    Attributes:
        architecture: the transformers class it will be.
        parameters: numbers in its weight files; tied weights that are stored once count once.
        bytes_on_disk: size of its weight files.
        bytes_to_fetch: how much of that is still on the hub.
        context: the most tokens it reads at once.
        hidden_size: width of its final hidden states.
        num_layers: how many blocks it stacks.
        vocab_size: rows of its output, padding included.
        tokenizer_size: ids of its tokenizer.
        tokens_left_out: control tokens of its tokenizer that have no row and that nothing needs.
        licence: what its folder says, or ``""``.
        dtype: the type of most of its numbers on disk, as safetensors spells it.
        key: a hash of its configuration and weights; other weights, another key.
    """

    architecture: str
    parameters: int
    bytes_on_disk: int
    bytes_to_fetch: int
    context: int
    hidden_size: int
    num_layers: int
    vocab_size: int
    tokenizer_size: int
    tokens_left_out: tuple[str, ...]
    licence: str
    dtype: str
    key: str


def inspect_model(spec: ModelSpec, cache: Path | None = None) -> ModelFacts:
    """Judge a model by its configuration, the headers of its weight files and its tokenizer.

    Args:
        spec: the model.
        cache: folder in which hashes of large files are remembered; default ``$LMFUSE_CACHE`` or ``~/.cache/lmfuse``.

    Raises:
        ModelError: see ``look_at``; or the embedding has another number of rows than the configuration says, or the tokenizer has more ids.
        TokenizerError: the tokenizer cannot be read as bytes.
    """
    return inspect_with_tokenizer(spec, cache)[0]


def inspect_with_tokenizer(spec: ModelSpec, cache: Path | None = None) -> tuple[ModelFacts, ByteTokenizer]:
    """Return what ``inspect_model`` returns, and the tokenizer that it has read on the way."""
    checked = look_at(spec)
    config = load_config(checked).get_text_config(decoder=True)
    check_embedding(checked, config.vocab_size)
    tokenizer = load_bytes(checked.path, spec, config.vocab_size)
    check_vocabulary(checked.path, tokenizer.vocabulary, config.vocab_size)
    entries = [entry for header in checked.headers.values() for entry in header.tensors.values()]
    numbers: Counter[str] = Counter()
    for entry in entries:
        numbers[entry.dtype] += entry.size
    facts = ModelFacts(
        architecture=architecture_of(checked),
        parameters=sum(entry.size for entry in entries),
        bytes_on_disk=sum(header.num_bytes for header in checked.headers.values()),
        bytes_to_fetch=checked.bytes_to_fetch,
        context=context_of(config),
        hidden_size=int(config.hidden_size),
        num_layers=int(config.num_hidden_layers),
        vocab_size=int(config.vocab_size),
        tokenizer_size=tokenizer.vocabulary.size,
        tokens_left_out=tokenizer.left_out,
        licence=licence_of(checked.path),
        dtype=max(numbers, key=lambda name: (numbers[name], name), default=""),
        key=content_key([model_key(checked, cache), tokenizer.key]),
    )
    return facts, tokenizer


def load_bytes(folder: Path, spec: ModelSpec, rows: int | None) -> ByteTokenizer:
    """Return the tokenizer of a model's folder as bytes, with the chat template that its specification names.

    Raises:
        TokenizerError: it cannot be read as bytes.
        InputError: there is no such chat template, or it is at fault.
    """
    return ByteTokenizer.load(folder, spec.document_start, rows, chat_template=spec.chat_template, model=spec.label)


def load_config(checked: ModelFolder) -> Any:
    """Return the transformers configuration of a checked folder, every default filled in.

    Raises:
        ModelError: transformers refuses it, or it describes an encoder-decoder.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(checked.path), local_files_only=True, trust_remote_code=False)
    except Exception as reason:  # configuration classes raise whatever their validators raise
        what = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ModelError(f"{checked.path / 'config.json'} cannot be used: {what}", "fetch or write the file again") from reason
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{checked.path}: model_type {config.model_type!r} is an encoder-decoder", "use a decoder-only language model")
    return config


def architecture_of(checked: ModelFolder) -> str:
    """Return the name of the causal language model class of a checked folder."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[checked.config["model_type"]])


def context_of(config: Any) -> int:
    """Return the most tokens that a model reads at once; ``UNLIMITED_CONTEXT`` where its configuration sets no limit (recurrent models)."""
    values = (getattr(config, name, None) for name in CONTEXT_NAMES)
    return next((value for value in values if isinstance(value, int) and value > 0), UNLIMITED_CONTEXT)


def check_embedding(checked: ModelFolder, rows: int) -> None:
    """Refuse weights whose embedding has another number of rows than the configuration says, before they are read.

    Only names that every transformers model uses for its embedding of tokens are looked at; of several, one that fits is enough.

    Raises:
        ModelError: none of the embeddings fits.
    """
    found = {
        (path, name): entry.shape[0]
        for path, header in checked.headers.items()
        for name, entry in header.tensors.items()
        if EMBEDDING.search(name) and len(entry.shape) == 2
    }
    if found and rows not in found.values():
        (path, name), held = next(iter(found.items()))
        raise ModelError(
            f"{path}: the embedding {name} has {held} rows, config.json says {rows} (vocab_size)",
            "the folder mixes the files of two models",
        )


def check_vocabulary(where: Path | str, vocabulary: Vocabulary, rows: int) -> None:
    """Refuse a tokenizer with ids that the model has no row for. More rows than ids are padding.

    Raises:
        ModelError: the tokenizer is larger than the model.
    """
    if vocabulary.size > rows:
        last = vocabulary.strings[-1]
        raise ModelError(
            f"{where}: the tokenizer has {vocabulary.size} ids, the model only {rows} rows; the last is {last[:80]!r}, id {vocabulary.size - 1}",
            "the folder mixes the files of two models, or tokens were added to the tokenizer and no rows to the model",
        )


def rows_of(folder: Path) -> int | None:
    """Return how many rows the model of a folder has, None for a folder that holds only a tokenizer.

    Raises:
        ModelError: config.json cannot be used.
    """
    config = read_object(folder, "config.json", ModelError)
    if config is None:
        return None
    inner = config.get("text_config")
    rows = (inner if isinstance(inner, dict) else config).get("vocab_size")
    if type(rows) is int:
        return rows
    found = getattr(load_config(ModelFolder(folder, config, {})).get_text_config(decoder=True), "vocab_size", None)
    if type(found) is not int:
        raise ModelError(f"{folder / 'config.json'}: no vocab_size: not a language model", "use a decoder-only language model")
    return found


def model_key(checked: ModelFolder, cache: Path | None = None) -> str:
    """Return 32 hex digits that change whenever the configuration or any weight changes."""
    weights = [[path.name, checked.hashes.get(path) or _file_hash(path, cache)] for path in sorted(checked.headers)]
    config = hashlib.sha256((checked.path / "config.json").read_bytes()).hexdigest()
    return content_key({"config": config, "weights": weights})


def _file_hash(path: Path, cache: Path | None) -> str:
    """Return the SHA-256 of a file's content; for a large file remembered under everything that the system knows of its last change."""
    real = path.resolve()
    state = real.stat()
    folder = cache or Path(os.environ.get("LMFUSE_CACHE") or Path.home() / ".cache" / "lmfuse")
    name = content_key([str(real), state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino])
    remembered = folder / "hashes" / name
    if state.st_size >= WORTH_CACHING:
        with suppress(OSError, UnicodeDecodeError):
            digest = remembered.read_text(encoding="ascii")
            if re.fullmatch("[0-9a-f]{64}", digest):
                return digest
    with real.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if state.st_size >= WORTH_CACHING:
        with suppress(OSError, LmfuseError):  # a cache that cannot be written costs time, nothing else
            remembered.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(remembered, digest.encode())
    return digest


def licence_of(folder: Path) -> str:
    """Return the licence that a folder names: in the front matter of its README, or in the first line of its LICENSE; else ``""``."""
    readme = folder / "README.md"
    with suppress(OSError):
        text = readme.read_text(encoding="utf-8", errors="replace") if readme.is_file() else ""  # a pipe would block
        matter = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        found = dict(re.findall(r"^(license(?:_name)?):\s*(\S.*?)\s*$", matter[1], re.MULTILINE)) if matter else {}
        name = found.get("license_name") if found.get("license", "other").strip("'\"") == "other" else found.get("license")
        if name:
            return str(name).strip("'\"")
    for path in filter(Path.is_file, sorted(folder.glob("LICEN[SC]E*"))):
        with suppress(OSError):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip() for line in lines if line.strip()), "")
    return ""
