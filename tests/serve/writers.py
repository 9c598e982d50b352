"""Writers without a model: what they write is given, and they remember who listened to the end."""

import math
import threading
import time
from dataclasses import dataclass, field

from lmfuse.errors import InputError
from lmfuse.writing import Finish, Passage, Usage, prompt_bytes

STORY = (
    Passage("Once", "a", {"a": 0.5, "b": 0.75}, {"a": "Once", "b": "One"}),
    Passage(" upon a", "b", {"a": 1.0, "b": math.inf}, {"a": "", "b": " upon a"}),
    Passage(" ti\u0301me, 你好 🙂\n", "a"),
)


@dataclass
class Story:
    """Writes the same passages again and again, as the settings allow, with a pause before each."""

    name: str = "story"
    models: tuple[str, ...] = ("a", "b")
    passages: tuple[Passage, ...] = STORY
    pause_seconds: float = 0.0
    endless: bool = False
    deaf: bool = False  # never asks whether to stop
    begun: int = 0
    over: int = 0
    at_once: int = 0
    most_at_once: int = 0
    prompts: list = field(default_factory=list)
    settings: list = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def write(self, prompt, settings, cancelled=lambda: False):
        with self.lock:
            self.begun += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            self.prompts.append(prompt)
            self.settings.append(settings)
        try:
            yield from self._written(prompt, settings, cancelled)
        finally:
            with self.lock:
                self.over += 1
                self.at_once -= 1

    def _written(self, prompt, settings, cancelled):
        count, size = 0, 0
        while True:
            for passage in self.passages:
                time.sleep(self.pause_seconds)
                if not self.deaf and cancelled():
                    return
                if settings.max_tokens is not None and count == settings.max_tokens:
                    yield self._finish("length", prompt, count, size)
                    return
                if any(stop in passage.text for stop in settings.stop):
                    yield self._finish("stop", prompt, count, size)
                    return
                count, size = count + 1, size + len(passage.text.encode())
                yield passage
            if not self.endless:
                yield self._finish("stop", prompt, count, size)
                return

    def _finish(self, reason, prompt, count, size):
        read = prompt_bytes(prompt)
        return Finish(reason, Usage(read, size, dict.fromkeys(self.models, count), dict.fromkeys(self.models, read)))


@dataclass
class Failing:
    """Raises, before the first passage or after it."""

    error: Exception
    after: int = 0
    name: str = "failing"
    models: tuple[str, ...] = ("a",)

    def write(self, prompt, settings, cancelled=lambda: False):
        yield from STORY[: self.after]
        raise self.error


@dataclass
class Silent:
    """Neither writes nor asks whether to stop, until it is released."""

    name: str = "silent"
    models: tuple[str, ...] = ("a",)
    released: threading.Event = field(default_factory=threading.Event)

    def write(self, prompt, settings, cancelled=lambda: False):
        self.released.wait(60)
        return
        yield


@dataclass
class Picky(Story):
    """Refuses every prompt, as a chat template or a short context does."""

    def write(self, prompt, settings, cancelled=lambda: False):
        raise InputError("model a's chat template cannot express it", hint="a hint for the command line")
        yield


@dataclass
class Forgetful(Story):
    """Ends without saying how."""

    def write(self, prompt, settings, cancelled=lambda: False):
        yield self.passages[0]


@dataclass
class Counting(Story):
    """Can say how long a text is: a token is a byte."""

    def usage(self, prompt, text):
        size, read = len(text.encode()), prompt_bytes(prompt)
        return Usage(read, size, dict.fromkeys(self.models, size), dict.fromkeys(self.models, read))
