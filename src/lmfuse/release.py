"""What a finished run leaves behind: report.json, the page, and the model with its card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from lmfuse.artefacts import content_key, is_complete, publish, read_manifest, write_atomic
from lmfuse.console import Console
from lmfuse.report.page import headline, render_folder


def comparisons_of_interest(
    arms: list[str], sources: list[str], result: str, clm: str = "clm", target: str = "target"
) -> list[tuple[str, str]]:
    """Return which pairs a reader wants to see: the result against controls, other arms and sources; the controls among themselves.

    >>> comparisons_of_interest(["clm", "self", "fused"], ["qwen"], "fused")
    [('fused', 'clm'), ('fused', 'self'), ('fused', 'target'), ('fused', 'qwen'), ('self', 'clm'), ('clm', 'target')]
    """
    others = [arm for arm in arms if arm not in (clm, "self", result)]
    controls = [arm for arm in (clm, "self") if arm in arms and arm != result]
    pairs = [(result, other) for other in (*controls, target, *others, *sources)]
    pairs += [(arm, clm) for arm in (*(c for c in controls if c == "self"), *others) if clm in arms and arm != clm]
    return pairs + ([(clm, target)] if result != clm else [])


def results_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a Markdown table: bits per byte by arm and domain."""
    domains = [*report["domains"], "macro"]
    lines = ["| arm | " + " | ".join(domains) + " |", "|---" * (len(domains) + 1) + "|"]
    return lines + ["| " + " | ".join([arm, *(f"{values[d]:.4f}" for d in domains)]) + " |" for arm, values in report["arms"].items()]


def model_card(report: Mapping[str, Any], recipe_yaml: str) -> str:
    """Return README.md of a fused model: what it is made of, under which licences, what was measured, and how to make it again."""
    run = report["run"]
    licences = sorted({model["licence"] or "unknown" for model in [run["target"], *run["sources"]]})
    lines = ["---", "library_name: transformers", "tags: [lmfuse, knowledge-fusion]", "---", "", f"# {run['name']}", ""]
    lines += [f"{run['target']['name']}, trained on text and on what these models know of it, with lmfuse {run['version']}:", ""]
    lines += [
        f"- {model['name']} ({model['architecture']}, {model['parameters']:,} parameters, licence: {model['licence'] or 'unknown'})"
        for model in run["sources"]
    ]
    lines += ["", f"Licences of what it was made from: {', '.join(licences)}. All of them bind whoever uses or shares this model.", ""]
    lines += ["## Measured", "", *(f"- {line['text']}" for line in headline(report)), ""]
    lines += ["Bits per byte on evaluation text, lower is better:", "", *results_table(report)]
    return "\n".join([*lines, "", "## Recipe", "", "```yaml", recipe_yaml.rstrip(), "```", ""])


def release(run: Path, report: Mapping[str, Any], model: Path, recipe_yaml: str) -> Path:
    """Write the report and the model of a run into its folder; return the page.

    The model is published once; a run that is repeated finds it there.
    """
    (run / "report").mkdir(exist_ok=True)
    write_atomic(run / "report" / "report.json", (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    target = run / "model"
    identity = {"model": model.name, "report": content_key(report)}
    if is_complete(target) and not identity.items() <= read_manifest(target).provenance.items():
        shutil.rmtree(target)  # of an earlier run of this folder, over other text or other weights under the same names
    if not is_complete(target):
        with publish(target, kind="fused model") as publication:
            for file in sorted(model.iterdir()):
                if file.is_file() and file.name not in ("manifest.json", "README.md"):
                    shutil.copyfile(file, publication.path / file.name)
            (publication.path / "README.md").write_text(model_card(report, recipe_yaml), encoding="utf-8")
            publication.provenance |= identity
    return render_folder(run)


def tell(console: Console, report: Mapping[str, Any], page: Path) -> None:
    """Print the values of every arm, the verdict, and where everything is."""
    table = Table("arm", *report["domains"], "macro", title="bits per byte on evaluation text, lower is better", min_width=60)
    for arm, values in report["arms"].items():
        table.add_row(arm, *(f"{values[domain]:.4f}" for domain in (*report["domains"], "macro")))
    console.table(table)
    for line in headline(report):
        console.say(line["text"], style={"better": "green", "worse": "red", "even": "yellow"}[line["kind"]])
    console.say(f"report: {page}")
    console.say(f"model:  {page.parent.parent / 'model'}")
