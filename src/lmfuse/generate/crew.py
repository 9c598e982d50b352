"""The sessions of one text, worked side by side: those on one device one after the other, those on different devices at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from lmfuse.generate.cache import Seat
from lmfuse.generate.session import Session
from lmfuse.memory import out_of_memory_is_an_error
from lmfuse.models import LanguageModel
from lmfuse.writing import Prompt, WritingSettings

Found = TypeVar("Found")


class CancelledError(Exception):
    """Nobody wants the text any more."""


class Crew:
    """The models that write a text, the reference model first."""

    def __init__(
        self,
        models: Sequence[LanguageModel],
        labels: Sequence[str],
        prompt: Prompt,
        settings: WritingSettings,
        cancelled: Callable[[], bool] = lambda: False,
        seats: Sequence[Seat] | None = None,
    ) -> None:
        """Let every model read the prompt; ``cancelled`` is asked before every token from then on.

        With ``seats``, one for each model, the text is written beside others, and everything happens in the caller's thread.

        Raises:
            InputError: see ``Writer.write``.
            TokenizerError: likewise.
            ResourceError: memory does not suffice.
        """
        self.labels, self.prompt, self._cancelled = tuple(labels), prompt, cancelled
        places: dict[str, list[int]] = {}
        for index, model in enumerate(models):
            places.setdefault(str(model.device), []).append(index)
        self.groups = list(places.values())
        self._pool = ThreadPoolExecutor(len(self.groups), "lmfuse-device") if len(self.groups) > 1 and seats is None else None
        try:
            self.sessions = self.each(
                lambda index: Session(models[index], labels[index], prompt, settings, index, seats[index] if seats else None)
            )
        except BaseException:
            self.close()
            raise

    def each(self, work: Callable[[int], Found]) -> list[Found]:
        """Return what work gives for each index; a thread for each device where there are several and the text is written alone.

        Raises:
            ResourceError: memory does not suffice.
        """
        found: dict[int, Found] = {}

        def group(indices: Sequence[int]) -> None:
            with torch.inference_mode(), out_of_memory_is_an_error("writing with several models"):  # both are a thread's own
                found.update((index, work(index)) for index in indices)

        if self._pool is None:
            for indices in self.groups:
                group(indices)
        else:
            for done in [self._pool.submit(group, indices) for indices in self.groups]:
                done.result()
        return [found[index] for index in range(len(found))]

    def go_on(self) -> None:
        """Do nothing, or raise CancelledError."""
        if self._cancelled():
            raise CancelledError

    def close(self) -> None:
        """Let the threads go."""
        if self._pool is not None:
            self._pool.shutdown()
