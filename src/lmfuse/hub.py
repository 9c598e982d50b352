"""A model on the Hugging Face hub, judged before its weights are fetched: the files' list, their hashes and the headers of the weights."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path

from lmfuse.errors import LmfuseError, ModelError, ResourceError
from lmfuse.safetensors_header import LONGEST_HEADER, SafetensorsHeader, parse_header

SMALL_FILES = ["*.json", "chat_template.jinja", "tokenizer.model", "merges.txt", "vocab.txt", "README.md", "LICENSE*"]
WEIGHT_FILES = ["model*.safetensors"]
TIMEOUT_SECONDS = 30.0  # of silence
USUAL_HEADER = 100_000  # bytes; holds that of most models, so one request is enough


def hub_cache() -> Path:
    """Return the folder into which the hub's client fetches models."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


@contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn whatever the hub's client raises into one line.

    Raises:
        ModelError: there is no such model, or it cannot be reached.
        ResourceError: the disk is full.
    """
    try:
        yield
    except (LmfuseError, MemoryError):
        raise
    except Exception as reason:  # the hub's client has a dozen unrelated error classes; all mean that there is no model here
        if isinstance(reason, OSError) and reason.errno == errno.ENOSPC:
            raise ResourceError(f"no space left on disk while fetching {name}", "free some, or move HF_HOME") from reason
        what = next(iter(str(reason).splitlines()), type(reason).__name__)
        raise ModelError(f"{name!r} is no folder here and cannot be fetched: {what}", "check the name, the network, HF_TOKEN") from reason


def fetch_snapshot(name: str, revision: str | None, *, weights: bool) -> Path:
    """Return the folder of a hub model, fetched where it is not here yet: JSON and tokenizer files, with or without weights, never code.

    Raises:
        ModelError, ResourceError: see ``hub_errors``.
    """
    from huggingface_hub import snapshot_download

    patterns = [*SMALL_FILES, *WEIGHT_FILES] if weights else SMALL_FILES
    with hub_errors(name):
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=["*/*"]))


class HubWeights:
    """The weight files of a hub model as far as they can be known without fetching them. One request, and a few for each header."""

    def __init__(self, name: str, commit: str, folder: Path) -> None:
        self.name, self.commit, self.folder = name, commit, folder

    @cached_property
    def _listed(self) -> Mapping[str, tuple[int, str]]:
        """Return each file's size and SHA-256; the hash is ``""`` for a file that is kept outside the large-file store."""
        from huggingface_hub import HfApi

        with hub_errors(self.name):
            siblings = HfApi().model_info(self.name, revision=self.commit, files_metadata=True).siblings or []
        return {each.rfilename: (each.size or 0, each.lfs.sha256 if each.lfs else "") for each in siblings}

    @cached_property
    def _wanted(self) -> set[str]:
        """Return the names of the weight files that ``fetch_snapshot`` would fetch."""
        from huggingface_hub.utils import filter_repo_objects

        return set(filter_repo_objects(self._listed, allow_patterns=WEIGHT_FILES, ignore_patterns=["*/*"]))

    def holds(self, name: str) -> bool:
        """Return whether there is such a weight file, and it would be fetched."""
        return name in self._wanted

    def names(self) -> list[str]:
        """Return the names of the files beside ``config.json``, sorted."""
        return sorted(name for name in self._listed if "/" not in name)

    @property
    def bytes_to_fetch(self) -> int:
        """Return the size of the weight files that are not here yet."""
        return sum(self._listed[name][0] for name in self._wanted if not (self.folder / name).exists())

    def header(self, name: str) -> SafetensorsHeader:
        """Return what a weight file holds, from its first bytes.

        Raises:
            ModelError: it cannot be reached, or is shorter or longer than its header says.
        """
        num_bytes = self._listed[name][0]
        start = self._first_bytes(name, USUAL_HEADER)
        needed = 8 + int.from_bytes(start[:8], "little")
        if len(start) < needed <= min(num_bytes, LONGEST_HEADER):
            start = self._first_bytes(name, needed)
        return parse_header(self.folder / name, BytesIO(start).read, num_bytes)

    def _first_bytes(self, name: str, count: int) -> bytes:
        """Return the beginning of a file; whatever a server sends beyond that is not read."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url, found = hf_hub_url(self.name, name, revision=self.commit), bytearray()
        headers = {**build_hf_headers(), "range": f"bytes=0-{count - 1}"}
        with hub_errors(self.name), get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_SECONDS) as answer:
            hf_raise_for_status(answer)
            for part in answer.iter_bytes():
                found += part
                if len(found) >= count:
                    break
        return bytes(found[:count])

    def sha256(self, name: str) -> str:
        """Return the hash of a file's content, as the hub knows it.

        Raises:
            ModelError: the hub does not know it.
        """
        digest = self._listed[name][1]
        if not digest:
            raise ModelError(f"{self.name}: the hub gives no hash of {name}", "fetch the model yourself and name its folder")
        return digest
