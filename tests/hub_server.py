"""A model hub on a loopback port: what the hub's own client asks of it, and a record of which bytes were asked for."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "c0ffee" + "0" * 34


class Hub(ThreadingHTTPServer):
    """Serves folders as ``owner/<folder's name>``; ``sent`` counts the bytes of each file that went out."""

    def __init__(self, *folders: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folders = {f"owner/{folder.name}": folder for folder in folders}
        self.sent: dict[str, int] = {}
        self.knows_ranges = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name, what = "/".join(parts[2:4]), parts[4:5]
            folder = self.server.folders.get(name)
            if folder is None:
                return self._answer(404, b"", {"X-Error-Code": "RepoNotFound"})
            return self._json(self._tree(folder) if what == ["tree"] else self._info(folder, name))
        folder = self.server.folders.get("/".join(parts[:2]))
        file = folder / "/".join(parts[4:]) if folder else None
        if file is None or not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        asked = self.headers.get("Range")
        if asked is None or not self.server.knows_ranges:
            return self._answer(200, content, headers, file.name)
        first, last = asked.removeprefix("bytes=").split("-")
        part = content[int(first) : int(last or len(content)) + 1]
        return self._answer(206, part, headers | {"Content-Range": f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"}, file.name)

    def _info(self, folder: Path, name: str) -> dict[str, object]:
        files = [{"rfilename": f["path"], "size": f["size"], "blobId": f["oid"], "lfs": f["lfs"]} for f in self._tree(folder)]
        for file in files:
            if file["lfs"] is None:
                del file["lfs"]
        return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}

    def _tree(self, folder: Path) -> list[dict[str, object]]:
        files = []
        for path in sorted(folder.iterdir()):
            size, digest = path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest()
            large = {"sha256": digest, "oid": digest, "size": size, "pointerSize": 130} if path.suffix == ".safetensors" else None
            files.append({"type": "file", "path": path.name, "size": size, "oid": "0" * 40, "lfs": large})
        return files

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):  # the client has read enough
                for first in range(0, len(body), 4096):
                    self.wfile.write(body[first : first + 4096])
                    self.server.sent[name] = self.server.sent.get(name, 0) + len(body[first : first + 4096])


@contextmanager
def hub(*folders: Path) -> Iterator[Hub]:
    """Serve folders until the block ends."""
    server = Hub(*folders)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
