"""Bits per byte, against each document alone."""

import math

import numpy as np
import pytest
import torch

from lmfuse.errors import InputError, ModelError
from lmfuse.evaluate.bits_per_byte import bits_per_byte, score_documents
from lmfuse.models import ModelSpec, load_model
from lmfuse.types import Document, DocumentScore
from tests.fakes import KINDS, TEXT, save_model

torch.set_num_threads(1)
DOCUMENTS = [Document.plain(text, domain=f"d{i % 2}") for i, text in enumerate([*TEXT, "", TEXT[0][:7]])]


@pytest.fixture(scope="module", params=KINDS)
def model(request, tmp_path_factory):
    return load_model(ModelSpec(str(save_model(tmp_path_factory.mktemp("m"), KINDS[request.param]())), dtype="float32"))


def test_by_hand():
    scores = [DocumentScore("a", "text", 8 * math.log(2), 2), DocumentScore("b", "text", 4 * math.log(2), 4)]
    assert bits_per_byte(scores) == pytest.approx(2.0)


def test_scores_are_those_of_each_document_alone(model):
    done = []
    scores = score_documents(model, DOCUMENTS, batch_tokens=64, progress=done.append)
    assert sum(done) == model.count_tokens(DOCUMENTS)
    for document, score in zip(DOCUMENTS, scores, strict=True):
        encoding = model.tokenizer.encode(document)
        expected, num_bytes = 0.0, 0
        if len(encoding.ids):
            with torch.no_grad():
                logits = model.module(input_ids=torch.from_numpy(encoding.ids.astype(np.int64))[None]).logits[0]
            for t in range(1, len(encoding.ids)):
                if encoding.starts[t] >= 0:
                    expected -= float(logits[t - 1, : model.tokenizer.vocabulary.size].log_softmax(-1)[encoding.ids[t]])
                    num_bytes += int(encoding.ends[t] - encoding.starts[t])
        assert (score.document, score.domain, score.num_bytes) == (document.id, document.domain, num_bytes)
        assert score.nll_nats == pytest.approx(expected, rel=1e-5)


def test_batches_change_nothing(model):
    values = [bits_per_byte(score_documents(model, DOCUMENTS, batch_tokens=size)) for size in (1, 50, 10000)]
    assert values == pytest.approx([values[0]] * 3, rel=1e-6)


def test_a_model_that_knows_nothing_needs_log2_of_the_vocabulary_per_token(model):
    with torch.no_grad():
        saved = model.module.model.norm.weight.clone()
        model.module.model.norm.weight.zero_()
        scores = score_documents(model, DOCUMENTS[:2], batch_tokens=64)
        model.module.model.norm.weight.copy_(saved)
    tokens = model.count_tokens(DOCUMENTS[:2])
    expected = tokens * math.log2(model.tokenizer.vocabulary.size) / sum(score.num_bytes for score in scores)
    assert bits_per_byte(scores) == pytest.approx(expected, rel=1e-5)


def test_nothing_to_measure_is_refused(model):
    with pytest.raises(InputError, match="no bytes"):
        bits_per_byte(score_documents(model, [Document.plain("")], batch_tokens=8))


def test_probabilities_that_are_not_finite_name_the_document(model):
    with torch.no_grad():
        saved = model.module.model.norm.weight.clone()
        model.module.model.norm.weight.fill_(float("nan"))
        with pytest.raises(ModelError, match=f"document {DOCUMENTS[0].id}"):
            score_documents(model, DOCUMENTS, batch_tokens=64)
        model.module.model.norm.weight.copy_(saved)
