"""The plan of the house: arrows point down, methods are pure, everything is documented."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "lmfuse"
METHODS = ("align", "fuse", "losses", "merge", "decode", "vote", "evolve")
GROUND = ("errors", "types", "__init__")
EDGE = (
    "catalogue",
    "answers",
    "answer_stages",
    "asking",
    "tasks",
    "jobs",
    "modes",
    "generate_batch",
    "generate_command",
    "arms",
    "recipe",
    "pipeline",
    "cli",
    "plan",
    "plan_answers",
    "demo",
    "doctor",
    "compare",
    "report",
    "yaml_strict",
    "workspace",
    "corpus",
    "console",
    "results",
    "release",
    "stages",
    "inputs",
    "merge_recipe",
    "evolve_recipe",
    "statistics_command",
    "mergekit_yaml",
)
IMPURE = {"transformers", "datasets", "tokenizers", "pathlib", "logging", "os", "accelerate", "safetensors", "huggingface_hub"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def height(room: str) -> int:
    """Return how high a room lies: ground 0, methods 1, machinery 2, edge 3."""
    return 0 if room in GROUND else 1 if room in METHODS else 3 if room in EDGE else 2


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    room = room_of(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "lmfuse" and len(parts) > 1:
            other = parts[1]
            if not (PACKAGE / other).exists() and not (PACKAGE / f"{other}.py").exists():
                continue  # a name of the package itself, such as lmfuse.__version__
            assert height(other) <= height(room), f"{room} imports {other}, which lies above it"
            if room in METHODS and other in METHODS:
                assert other == room, f"method folder {room} imports method folder {other}"
        elif room in METHODS:
            assert parts[0] not in IMPURE, f"method file {path.name} imports {name}"


def test_no_file_reads_pickles_or_runs_remote_code():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert "trust_remote_code=True" not in text, path
        assert not re.search(r"\bimport pickle|torch\.load\(|yaml\.load\((?!.*_Loader)|yaml\.unsafe", text), path


def test_every_command_and_method_is_documented():
    from lmfuse import catalogue
    from lmfuse.cli import app

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        assert f"lmfuse {name}" in readme, f"README does not show `lmfuse {name}`"
        assert command.callback.__doc__
    for entry in catalogue.entries():
        assert entry.summary, entry.name


def test_generated_pages_are_fresh():
    from scripts.generate_docs import pages

    for name, text in pages().items():
        assert (ROOT / name).read_text(encoding="utf-8") == text, f"{name} is stale: run `make docs`"


def recipes() -> list[Path]:
    return [path for folder in ("src", "benchmarks", "docs") for path in sorted((ROOT / folder).rglob("*.yaml"))]


@pytest.mark.parametrize("path", recipes(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_recipe_loads_and_survives_a_round_trip(path):
    from lmfuse.recipe import load_recipe, parse_recipe
    from lmfuse.yaml_strict import load_yaml

    recipe = load_recipe(path)
    assert parse_recipe(load_yaml(recipe.to_yaml(), "again")) == recipe


def test_the_readmes_recipe_loads():
    from lmfuse.recipe import parse_recipe
    from lmfuse.yaml_strict import load_yaml

    found = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found
    assert len(parse_recipe(load_yaml(found[1], "README.md")).sources) == 3


def test_ci_runs_the_readmes_test_command():
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_help_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import sys, lmfuse.cli; print([m for m in ('torch', 'transformers', 'numpy', 'pydantic', 'datasets', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
