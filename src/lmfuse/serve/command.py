"""``lmfuse serve``: names of models in, a server until a signal comes. Whatever can be wrong is found before a weight is read."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmfuse.errors import InputError
from lmfuse.generate import FusedWriter
from lmfuse.named_models import NamedModels
from lmfuse.serve.app import create_app
from lmfuse.serve.counting import CountingWriter
from lmfuse.serve.gate import Access, host_name, own_names
from lmfuse.serve.intake import Limits
from lmfuse.serve.server import KEY_VARIABLE, address_of, bind, read_key, run


@dataclass(frozen=True)
class Serving:
    """How they are served, and to whom.

    Attributes:
        method: how they write together; a member of the ``decode`` family, None: the default one.
        name: of all together; one model alone has its own label unless it is given.
        places: how many requests may wait for each.
        temperature: where a request names none.
        key_file: whose content clients must show; None: that of ``LMFUSE_API_KEY``, if there is one.
        names: of this machine that clients without a key may ask for, besides its own.
    """

    method: Any = None
    name: str = ""
    host: str = "127.0.0.1"
    port: int = 8000
    places: int = 64
    limits: Limits = field(default_factory=Limits)
    temperature: float = 0.0
    key_file: Path | None = None
    names: tuple[str, ...] = ()

    def access(self, key: str | None, loopback: bool) -> Access:
        """Return who may ask.

        Raises:
            InputError: a name that no header can have.
        """
        for name in self.names:
            if not host_name(name) or ":" in name:
                raise InputError(f"--allow-host {name}: expected a host's name", "without http:// and without a port")
        own = own_names() if key is None and not loopback else frozenset()
        return Access(key, loopback, own | frozenset(map(host_name, self.names)))


def serve(named: NamedModels, serving: Serving, say: Callable[[str], None]) -> None:
    """Load models and serve them until a signal comes: several together under one name, and each alone under its own.

    Args:
        say: shows a line to whoever started it.

    Raises:
        InputError: an address, a key, or names that cannot be used; or see ``load_model``.
        ModelError, TokenizerError, ResourceError: see ``load_model``.
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    labels = named.labels
    together = serving.name or (labels[0] if len(labels) == 1 else "lmfuse")
    if len(labels) > 1 and together in labels:
        raise InputError(f"--name {together}: a model is called so", hint="another name for all of them together")
    key = read_key(serving.key_file)
    listener, loopback = bind(serving.host, serving.port)
    with listener:
        access = serving.access(key, loopback)
        if not loopback and key is None:
            say(f"warning: whoever reaches {serving.host} can use this server: it has no API key (${KEY_VARIABLE} or --api-key-file)")
        models = named.load()
        alone = [FusedWriter([model], [label], name=label) for model, label in zip(models, labels, strict=True)] if len(models) > 1 else []
        fused = FusedWriter(models, labels, serving.method, name=together)
        tokenizers = {label: model.tokenizer for model, label in zip(models, labels, strict=True)}
        writers = [CountingWriter(writer, [tokenizers[label] for label in writer.models]) for writer in (fused, *alone)]
        app = create_app(writers, places=serving.places, limits=serving.limits, temperature=serving.temperature, access=access)
        names, address = ", ".join(writer.name for writer in writers), address_of(listener)
        run(app, listener, started=lambda: say(f"{names}: chat at {address}, OpenAI's API at {address}/v1; Ctrl-C ends it"))
