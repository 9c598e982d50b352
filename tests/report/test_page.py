import json

import pytest

from lmfuse.errors import InputError
from lmfuse.report.page import headline, render, render_folder


def report(**changes):
    """Return a small report with every section."""
    model = {
        "name": "tiny <b>",
        "architecture": "Llama",
        "parameters": 1000,
        "vocabulary": 409,
        "tokenizer": "exact",
        "licence": "",
        "key": "k",
    }
    line = {"step": 1, "clm_nats": 2.0}
    values = {
        "schema": 1, "metric": "bits_per_byte", "domains": ["code", "prose"],
        "arms": {"target": {"code": 2.0, "prose": 1.5, "macro": 1.75}, "clm": {"code": 1.5, "prose": 1.4, "macro": 1.45},
                 "fused": {"code": 1.4, "prose": 1.4, "macro": 1.4}},
        "comparisons": [
            {"a": "fused", "b": "clm", "domain": d, "mean": -0.05, "ci95": [-0.1, high], "n": 60} for d, high in (("code", -0.01), ("macro", 0.01))
        ],
        "sources": {"a": {"coverage": 0.99, "lost_mass": 0.01, "win_rate": 0.7, "one_hot": 0.0}},
        "counters": {"windows_cut": 3, "nothing_here": 0},
        "run": {"name": "<script>alert(1)</script>", "version": "0", "result": "fused", "target": model, "sources": [model], "windows": {"train": 10},
                "learning_rate": 1e-3, "learning_rates_tried": {"0.001": 1.4}, "seeds": [0], "verdicts": {"a": ["code"], "b": []},
                "curves": {"clm": [line, {"step": 2, "clm_nats": 1.9}], "fused": [line]}},
    }  # fmt: skip
    return values | changes


def test_everything_from_outside_is_escaped():
    page = render(report())
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "tiny &lt;b&gt;" in page


def test_the_page_is_self_contained_and_says_what_was_found():
    page = render(report())
    assert page.count("<svg") == 4
    assert "http-equiv" in page
    assert 'src="http' not in page
    assert "no gain of fused over clm can be told from chance" in page
    assert "windows cut" in page
    assert "nothing here" not in page
    assert page.index("Counters") < page.index("Bits per byte")


def test_the_headline_tells_gain_from_loss_from_nothing():
    kinds = []
    for low, high in ((-0.2, -0.1), (0.1, 0.2), (-0.1, 0.1)):
        found = {"a": "fused", "b": "clm", "domain": "macro", "mean": (low + high) / 2, "ci95": [low, high], "n": 9}
        kinds.append(headline(report(comparisons=[found]))[0]["kind"])
    assert kinds == ["better", "worse", "even"]


def test_equal_reports_give_equal_pages():
    assert render(report()) == render(report())


def test_a_run_without_fusion_has_a_page_too():
    values = report(comparisons=[], sources={}, counters={})
    values["run"]["curves"] = {}
    assert render(values).count("<svg") == 1


@pytest.mark.parametrize("content", [None, "{", "{}", '{"run": 3}'])
def test_a_folder_without_a_report_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.json").write_text(content)
    with pytest.raises(InputError, match=r"report\.json"):
        render_folder(tmp_path)


def test_a_folder_with_a_report_gets_its_page(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.json").write_text(json.dumps(report()))
    assert render_folder(tmp_path).read_text() == render(report())


def test_the_headline_shows_every_seed_where_there_are_several():
    run = report()["run"] | {"macro_by_seed": {"fused": [1.40, 1.50], "clm": [1.45, 1.45]}}
    assert headline(report(run=run))[0]["text"].endswith("; seed by seed -0.0500, +0.0500")
    assert "seed by seed" not in headline(report())[0]["text"]
