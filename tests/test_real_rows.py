"""What real teachers say, through the whole door: rows collected from the pico models, aligned to the pico target's tokens."""

import json

import numpy as np
import pytest
import torch

from lmfuse.align.byte_law import ByteLaw
from lmfuse.align.pair import build_pair
from lmfuse.collect import collect
from lmfuse.models import ModelSpec, load_model, load_tokenizer
from lmfuse.pico import model_folder, text_file
from lmfuse.types import Document

torch.set_num_threads(1)
TARGET = load_tokenizer(ModelSpec(str(model_folder("target"))))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    """Four evaluation documents of each domain."""
    found = []
    for domain in ("code", "math", "prose"):
        lines = text_file("eval", domain).read_text(encoding="utf-8").splitlines()[:4]
        found += [Document.plain(json.loads(line)["text"], domain) for line in lines]
    return found


@pytest.fixture(scope="module", params=["code", "math", "prose"])
def source(request, documents, tmp_path_factory):
    """A specialist's tokenizer and its rows, as exact as they can be stored."""
    model = load_model(ModelSpec(str(model_folder(request.param)), dtype="float32"))
    options = {"k": 16, "batch_tokens": 2048, "shard_documents": 16, "precision": "float32"}
    store = collect(model, documents, tmp_path_factory.mktemp("rows") / "rows", **options)
    return model.tokenizer, store


def test_telescoping(source, documents):
    """The law of the target's tokens adds up to the source's own negative log-likelihood of the document."""
    tokenizer, store = source
    pair = build_pair(tokenizer.vocabulary, TARGET.vocabulary, TARGET.first_pieces)
    for document in documents:
        rows, encoding = store[document.id], TARGET.encode(document)
        said = ByteLaw()(rows, encoding, pair)
        assert (said.source_row[encoding.starts >= 0] >= 0).all()
        assert np.nansum(said.truth_nll_nats, dtype=np.float64) == pytest.approx(rows.nll_nats.sum(dtype=np.float64), rel=1e-4)


def test_no_row_is_off_by_one(source, documents):
    """Where both tokenizers have the same token, the aligned row gives it what the source gave it: exp(-nll)."""
    tokenizer, store = source
    pair = build_pair(tokenizer.vocabulary, TARGET.vocabulary, TARGET.first_pieces)
    given, own = [], []
    for document in documents:
        rows, encoding = store[document.id], TARGET.encode(document)
        said = ByteLaw()(rows, encoding, pair)
        spans = {(int(a), int(b)): row for row, (a, b) in enumerate(zip(rows.starts, rows.ends, strict=True))}
        for token, span in enumerate(zip(encoding.starts.tolist(), encoding.ends.tolist(), strict=True)):
            if span in spans and span[0] > 0:
                slot = (said.topk.ids[token] == encoding.ids[token]) & (said.topk.log_probs[token] > -np.inf)
                given.append(np.exp(said.topk.log_probs[token][slot]).sum())
                own.append(np.exp(-rows.nll_nats[spans[span]]))
    assert len(own) > 200
    assert np.mean(given) == pytest.approx(np.mean(own), abs=1e-3)
    assert np.quantile(np.array(given) - np.array(own), 0.01) > -1e-3  # nothing is lost anywhere
