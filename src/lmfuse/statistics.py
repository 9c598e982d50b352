"""What merging may ask of a model's behaviour on text: the diagonal of its Fisher information, or Gram matrices of its layers' inputs.

Gram matrices are collected in rounds: as many layers at a time as memory was given for, one pass over the text for each round.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor, nn

from lmfuse.artefacts import publish
from lmfuse.errors import InputError, ModelError
from lmfuse.forward import encode_all
from lmfuse.memory import out_of_memory_is_an_error
from lmfuse.merge.informed import Kind
from lmfuse.models import LanguageModel
from lmfuse.types import Document, Encoding
from lmfuse.weights.statistics import ARTEFACT

AT_ONCE_BYTES = 2 * 10**9
Advance = Callable[[int], None]  # is told how many documents were read


def collect_statistics(
    model: LanguageModel,
    documents: Sequence[Document],
    kind: Kind,
    out: Path,
    *,
    key: str,
    at_once_bytes: int = AT_ONCE_BYTES,
    progress: Advance = lambda _: None,
) -> None:
    """Write a folder of statistics, float32, by the names of the model's tensors.

    Args:
        model: held in float32; smaller types lose small gradients.
        documents: each must fit the context and counts the same.
        kind: ``fisher`` or ``gram``.
        out: the folder.
        key: of the model's weights, so that they are never merged with another's.
        at_once_bytes: of Gram matrices in memory.
        progress: see ``Advance``.

    Raises:
        InputError: no documents, or one is longer than the context.
        ModelError: a gradient or an input is not finite.
        ResourceError: memory or disk do not suffice.
    """
    if not documents:
        raise InputError("statistics: no documents", "give some text")
    encodings = [each for each in encode_all(model, documents) if (each.starts[1:] >= 0).any()]
    if not encodings:
        raise InputError("statistics: no document has two tokens", "give longer text")
    with publish(out, kind=ARTEFACT) as publication, out_of_memory_is_an_error(f"collecting {kind} statistics"):
        rounds = _fisher(model, encodings, progress) if kind == "fisher" else _grams(model, encodings, at_once_bytes, progress)
        for number, tensors in enumerate(rounds, start=1):
            for name, tensor in tensors.items():
                if not bool(torch.isfinite(tensor).all()):
                    raise ModelError(f"{name}: a statistic is not finite", "try dtype float32")
            save_file(dict(tensors), publication.path / f"statistics-{number:05d}.safetensors")
        publication.provenance |= {"kind": kind, "model": key}
        publication.counters |= {"documents": len(encodings), "documents_left_out": len(documents) - len(encodings)}


def _log_likelihood(model: LanguageModel, encoding: Encoding) -> Float[Tensor, ""]:
    """Return the log-likelihood of a document's tokens that have text, summed, in nats."""
    ids = torch.from_numpy(encoding.ids).long().to(model.device)
    wanted = torch.from_numpy(encoding.starts[1:] >= 0).to(model.device)
    logits = model.module(input_ids=ids[None], use_cache=False).logits[0, :-1][wanted].float()
    return torch.log_softmax(logits, -1).gather(1, ids[1:][wanted][:, None]).sum()


def _fisher(model: LanguageModel, encodings: Sequence[Encoding], progress: Advance) -> Iterator[Mapping[str, Tensor]]:
    """Yield the mean over documents of squared gradients: the diagonal of the empirical Fisher information."""
    parameters = dict(model.module.named_parameters())
    sums = {name: torch.zeros(each.shape, dtype=torch.float32, device=each.device) for name, each in parameters.items()}
    frozen = [each for each in parameters.values() if not each.requires_grad]
    try:
        for each in frozen:
            each.requires_grad_(True)
        for encoding in encodings:
            with torch.enable_grad():
                _log_likelihood(model, encoding).backward()
            for name, each in parameters.items():
                if each.grad is not None:
                    sums[name] += each.grad.float().square()
                    each.grad = None
            progress(1)
    finally:
        for each in frozen:
            each.requires_grad_(False)
    yield {name: (total / len(encodings)).cpu() for name, total in sums.items()}


def _grams(model: LanguageModel, encodings: Sequence[Encoding], at_once_bytes: int, progress: Advance) -> Iterator[Mapping[str, Tensor]]:
    """Yield, round by round, the mean over tokens of ``x x^T`` for the inputs x of linear layers; a head tied to the embedding is none."""
    embedding = model.module.get_input_embeddings().weight
    layers = {
        f"{name}.weight": each
        for name, each in model.module.named_modules()
        if isinstance(each, nn.Linear) and each.weight is not embedding
    }
    for some in _rounds(layers, at_once_bytes):
        sums = {name: torch.zeros(layer.in_features, layer.in_features, device=model.device) for name, layer in some.items()}
        tokens = 0
        with _listening(some, sums), torch.no_grad():
            for encoding in encodings:
                model.module(input_ids=torch.from_numpy(encoding.ids).long().to(model.device)[None], use_cache=False)
                tokens += len(encoding.ids)
                progress(1)
        yield {name: (total / tokens).cpu() for name, total in sums.items()}


def _rounds(layers: Mapping[str, nn.Linear], at_once_bytes: int) -> Iterator[dict[str, nn.Linear]]:
    """Yield layers in groups whose matrices fit, at least one each time."""
    some: dict[str, nn.Linear] = {}
    room = at_once_bytes
    for name, layer in layers.items():
        size = 4 * layer.in_features**2
        if some and size > room:
            yield some
            some, room = {}, at_once_bytes
        some[name] = layer
        room -= size
    if some:
        yield some


@contextmanager
def _listening(layers: Mapping[str, nn.Linear], sums: Mapping[str, Tensor]) -> Iterator[None]:
    """Add up what layers are given while they work."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().reshape(-1, given[0].shape[-1]).float()
            sums[name].addmm_(rows.mT, rows)

        return add

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
