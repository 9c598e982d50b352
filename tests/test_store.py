"""Rows on disk: what goes in comes out, in the narrowest types; what was damaged is found."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmfuse import store as store_module
from lmfuse.artefacts import publish
from lmfuse.errors import InputError, VerificationError
from lmfuse.safetensors_header import read_header
from lmfuse.store import SHARD_NAME, RowStore, pack_shard
from lmfuse.types import Document, Rows, TopK

A, B, C = (Document.plain(text).id for text in "abc")
EMPTY = np.zeros(0, np.int64)


def make_rows(spans: list[tuple[int, int]], *, k: int = 2, vocab_size: int = 50, seed: int = 0) -> Rows:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(len(spans), k + 3)) * 4
    log_probs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    log_probs = -np.sort(-log_probs, axis=1).astype(np.float32)
    starts, ends = (np.array([span[i] for span in spans], np.int64) for i in (0, 1))
    ids = random.integers(0, vocab_size, (len(spans), k))
    nll = random.exponential(2.0, len(spans)).astype(np.float32)
    tail = np.logaddexp.reduce(log_probs[:, k:], axis=1)
    return Rows(starts, ends, random.integers(0, vocab_size, len(spans)), nll, TopK(ids, log_probs[:, :k], tail, vocab_size))


def joined(parts: list[Rows]) -> Rows:
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("starts", "ends", "next_ids", "nll_nats"))
    return Rows(*columns, TopK.concatenate([part.topk for part in parts]))


def write(folder: Path, *shards: dict[str, Rows], precision: str = "float32") -> RowStore:
    with publish(folder, kind="rows") as publication:
        for number, documents in enumerate(shards):
            data = pack_shard(list(documents), np.array([len(r) for r in documents.values()]), joined(list(documents.values())), precision)
            (publication.path / SHARD_NAME.format(number)).write_bytes(data)
    return RowStore.open(folder)


def assert_equal(found: Rows, expected: Rows, kind: type = np.float32) -> None:
    for name in ("starts", "ends", "next_ids"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(found.topk.ids, expected.topk.ids)
    for a, b in (
        (found.nll_nats, expected.nll_nats),
        (found.topk.log_probs, expected.topk.log_probs),
        (found.topk.tail, expected.topk.tail),
    ):
        np.testing.assert_array_equal(a, b.astype(kind))
        assert a.dtype == np.float32


def test_one_row_by_hand(tmp_path):
    topk = TopK(np.array([[7, 3]]), np.array([[-0.5, -1.5]], np.float32), np.array([-1.75], np.float32), 10)
    row = Rows(np.array([2]), np.array([6]), np.array([9]), np.array([3.25], np.float32), topk)
    rows = write(tmp_path / "rows", {A: row}, precision="float16")[A]
    assert (rows.starts.tolist(), rows.ends.tolist(), rows.next_ids.tolist(), rows.nll_nats.tolist()) == ([2], [6], [9], [3.25])
    assert (rows.topk.ids.tolist(), rows.topk.log_probs.tolist(), rows.topk.tail.tolist()) == ([[7, 3]], [[-0.5, -1.5]], [-1.75])
    assert (rows.topk.vocab_size, rows.num_bytes) == (10, 4)


def test_documents_gaps_and_long_tokens_across_shards(tmp_path):
    a = make_rows([(0, 1), (1, 3), (7, 8), (8, 8), (20, 320)])  # masked spans, a token without bytes, one of 300
    b = make_rows([], seed=1)
    c = make_rows([(5, 6), (6, 9)], seed=2)
    store = write(tmp_path / "rows", {B: b, A: a}, {C: c})
    assert list(store) == [B, A, C]
    assert (len(store), store.k, store.vocab_size, store.precision) == (3, 2, 50, "float32")
    for name, rows in ((A, a), (B, b), (C, c)):
        assert name in store
        assert_equal(store[name], rows)


@pytest.mark.parametrize(("vocab_size", "types"), [(1 << 16, {"U16"}), ((1 << 16) + 1, {"U16", "U8"}), (1 << 24, {"U16", "U8"})])
def test_ids_take_two_bytes_or_three(tmp_path, vocab_size, types):
    rows = make_rows([(0, 2), (2, 3)], vocab_size=vocab_size)
    rows.topk.ids[0, 0] = rows.next_ids[1] = vocab_size - 1
    store = write(tmp_path / "rows", {A: rows})
    assert_equal(store[A], rows)
    held = read_header(next((tmp_path / "rows").glob("*.safetensors"))).tensors
    assert {entry.dtype for name, entry in held.items() if name.startswith("topk_ids")} == types


@st.composite
def documents(draw):
    spans, position = [], 0
    for gap, length in draw(st.lists(st.tuples(st.sampled_from([0, 0, 0, 1, 300]), st.sampled_from([0, 1, 2, 5, 70000])), max_size=8)):
        spans.append((position + gap, position + gap + length))
        position += gap + length
    return spans


@settings(max_examples=40, deadline=None)
@given(st.lists(documents(), min_size=1, max_size=5), st.sampled_from(["float16", "float32"]), st.integers(1, 4))
def test_any_rows_survive_a_round_trip(tmp_path_factory, spans, precision, per_shard):
    rows = {Document.plain(str(i)).id: make_rows(part, seed=i) for i, part in enumerate(spans)}
    names = list(rows)
    shards = [{name: rows[name] for name in names[i : i + per_shard]} for i in range(0, len(names), per_shard)]
    store = write(tmp_path_factory.mktemp("rows") / "rows", *shards, precision=precision)
    assert list(store) == names
    for name in names:
        assert_equal(store[name], rows[name], np.dtype(precision).type)


def test_extreme_probabilities_stay_sane_in_float16(tmp_path):
    log_probs = np.array([[-1e-9, np.log(1e-8)], [0.0, -np.inf], [-1e5, -7e4]], np.float32)
    topk = TopK(np.zeros((3, 2), int), log_probs, np.array([-18.4, -np.inf, 1e-7], np.float32), 9)
    rows = Rows(np.arange(3), np.arange(3) + 1, np.zeros(3, int), np.array([1e-9, np.inf, 1e6], np.float32), topk)
    found = write(tmp_path / "rows", {A: rows}, precision="float16")[A]
    assert not np.isnan(found.topk.log_probs).any()
    np.testing.assert_allclose(np.exp(found.topk.log_probs[0]), [1, 1e-8], rtol=1e-2)
    assert found.topk.log_probs[1:].tolist() == [[0.0, -np.inf], [-65504.0, -65504.0]]
    assert (found.topk.tail[1], found.topk.tail[2], found.nll_nats.tolist()) == (-np.inf, 0.0, [0.0, np.inf, 65504.0])


@pytest.mark.parametrize(("vocab_size", "most"), [(32000, 47.5), (262144, 66.0)])
def test_bytes_per_token(vocab_size, most):
    spans = [(i * 4, i * 4 + 4) for i in range(300)]
    rows = make_rows(spans, k=10, vocab_size=vocab_size)
    data = pack_shard([Document.plain(str(i)).id for i in range(16)], np.full(16, 300), joined([rows] * 16), "float16")
    assert len(data) / (16 * 300) <= most


def test_equal_rows_give_equal_bytes():
    rows = make_rows([(0, 2), (4, 5)])
    first, second = (pack_shard([A], np.array([2]), rows, "float16", {"rows": 2, "bytes": 5}) for _ in range(2))
    assert first == second


def test_few_shards_are_open_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(store_module, "OPEN_SHARDS", 2)
    rows = {name: make_rows([(0, i + 1)], seed=i) for i, name in enumerate((A, B, C))}
    store = write(tmp_path / "rows", *({name: part} for name, part in rows.items()))
    for name in (A, B, C, A, C, B):
        assert_equal(store[name], rows[name])
        assert len(store._shards) <= 2


def test_ids_that_begin_alike_are_told_apart(tmp_path):
    names = ["ab" * 8 + f"{i:016x}" for i in (3, 1, 2)]
    rows = {name: make_rows([(0, i + 1)], seed=i) for i, name in enumerate(names)}
    store = write(tmp_path / "rows", rows)
    for name in names:
        assert_equal(store[name], rows[name])
    assert "ab" * 8 + f"{4:016x}" not in store


def test_a_store_travels_to_worker_processes(tmp_path):
    rows = make_rows([(0, 3)])
    store = pickle.loads(pickle.dumps(write(tmp_path / "rows", {A: rows})))
    assert_equal(store[A], rows)


# ------------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", [C, "", "zz" * 16, A[:-1], A + "0", A.upper() + "x", "+" + A[1:], A.upper()])
def test_a_document_that_is_not_there_is_a_clear_key_error(tmp_path, name):
    store = write(tmp_path / "rows", {A: make_rows([(0, 1)])})
    assert name not in store
    with pytest.raises(KeyError, match="holds no rows of document"):
        store[name]


@pytest.mark.parametrize("column", ["log_probs", "tail", "nll_nats"])
def test_nan_is_refused(column):
    rows = make_rows([(0, 1)])
    (rows.nll_nats if column == "nll_nats" else getattr(rows.topk, column))[:] = np.nan
    with pytest.raises(InputError, match="nan"):
        pack_shard([A], np.array([1]), rows, "float16")


@pytest.mark.parametrize("spans", [[(0, 3), (2, 4)], [(4, 3)], [(-1, 2)]])
def test_rows_that_overlap_or_run_backwards_are_refused(spans):
    with pytest.raises(InputError, match="overlap or run backwards"):
        pack_shard([A], np.array([len(spans)]), make_rows(spans), "float32")


def test_vocabularies_beyond_three_bytes_are_refused():
    with pytest.raises(InputError, match="16777216"):
        pack_shard([A], np.array([1]), make_rows([(0, 1)], vocab_size=(1 << 24) + 1), "float32")


def spoil_header(folder: Path, change) -> None:
    """Rewrite the first shard's header in place, and the manifest with it."""
    path = min(folder.glob("rows-*"))
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"][path.name]["size"] = path.stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))


def about(**changes):
    def change(header):
        header["__metadata__"]["rows"] = json.dumps(json.loads(header["__metadata__"]["rows"]) | changes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h.pop("__metadata__"), "is no shard of rows"),
        (about(version=99), "shard version 99, expected 1"),
        (about(k=3), "do not make up rows of k 3"),
        (about(vocab_size=70000), "do not make up rows"),
        (about(precision="float16"), "do not make up rows"),
        (about(precision="float8"), "is no shard of rows"),
        (lambda h: h.update(tail=h["tail"] | {"dtype": "I32"}), "do not make up rows"),
        (lambda h: h.update(next_ids=h["next_ids"] | {"dtype": "I16"}), "types that no shard has"),
        (lambda h: h.update(extra=h.pop("tail")), "do not make up rows"),
        (lambda h: h.update(tail=h["tail"] | {"data_offsets": [0, 99999]}), "do not fill"),
    ],
)
def test_a_damaged_shard_is_found_on_opening(tmp_path, change, message):
    folder = write(tmp_path / "rows", {A: make_rows([(0, 1), (1, 2)])}).folder
    spoil_header(folder, change)
    with pytest.raises(VerificationError, match=message) as caught:
        RowStore.open(folder)
    assert caught.value.hint


def test_truncated_missing_and_flipped_shards_are_found(tmp_path):
    folder = write(tmp_path / "rows", {A: make_rows([(0, 1)])}).folder
    path = next(folder.glob("rows-*"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert len(RowStore.open(folder)) == 1, "sizes alone do not show a flipped bit"
    with pytest.raises(VerificationError, match="sha256"):
        RowStore.open(folder, deep=True)
    path.write_bytes(data[:-1])
    with pytest.raises(VerificationError, match="the manifest promises"):
        RowStore.open(folder)
    path.unlink()
    with pytest.raises(VerificationError, match="missing"):
        RowStore.open(folder)
    with pytest.raises(VerificationError):
        RowStore.open(tmp_path / "nowhere")


def test_row_counts_that_lie_are_found(tmp_path):
    folder = write(tmp_path / "rows", {A: make_rows([(0, 1)])}).folder
    path = next(folder.glob("rows-*"))
    entry = read_header(path).tensors["row_counts"]
    data = bytearray(path.read_bytes())
    data[entry.start] = 2
    path.write_bytes(data)
    with pytest.raises(VerificationError, match="documents have 2 rows, 1 are there"):
        RowStore.open(folder)


def test_shards_of_different_stores_do_not_mix(tmp_path):
    with pytest.raises(VerificationError, match="differ in k"):
        write(tmp_path / "rows", {A: make_rows([(0, 1)])}, {B: make_rows([(0, 1)], k=3)})


def test_an_artefact_of_another_kind_is_no_store(tmp_path):
    with publish(tmp_path / "other", kind="map") as publication:
        (publication.path / "map.json").write_text("{}")
    with pytest.raises(VerificationError, match="holds no rows"):
        RowStore.open(tmp_path / "other")
