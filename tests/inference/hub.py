"""A fake Hugging Face hub on loopback: the requests of its client for uploading and downloading a folder."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import urlsplit

Files = dict[str, bytes]


class Hub(ThreadingHTTPServer):
    """Repositories by name, in memory, with every requested commit; clients without a token see public ones only."""

    TOKEN = "hf_stand_in"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, Files] = {}
        self.is_private: dict[str, bool] = {}
        self.commits: dict[str, Files] = {}  # by id

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else self._chunks()
        path = urlsplit(self.path).path
        if not self._is_known():
            return self._json({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in self.server.repos:
                return self._json({"error": "already created", "url": f"{self.server.address}/{name}"}, 409)
            self.server.repos[name] = {".gitattributes": b"*.bin"}
            # older clients say it in the second way
            self.server.is_private[name] = asked.get("visibility") == "private" or asked.get("private", False)
            return self._json({"url": f"{self.server.address}/{name}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        repo, action = "/".join(path.split("/")[3:5]), path.split("/")[5]
        if action == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            return self._json({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        for line in body.splitlines():
            part = json.loads(line)
            if part["key"] == "file":
                self.server.repos[repo][part["value"]["path"]] = base64.b64decode(part["value"]["content"])
            elif part["key"] == "deletedFile":
                del self.server.repos[repo][part["value"]["path"]]
        oid = self._commit(self.server.repos[repo])
        return self._json(
            {"success": True, "commitOid": oid, "commitUrl": f"{self.server.address}/{repo}/commit/{oid}"}
        )

    def do_GET(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        parts, is_file = (parts[2:], False) if parts[0] == "api" else (parts, True)
        repo, action, revision = "/".join(parts[:2]), parts[2] if parts[2:] else "", parts[3] if parts[3:] else "main"
        files = self.server.repos.get(repo)
        if files is None or (self.server.is_private.get(repo) and not self._is_known()):
            status = 404 if self._is_known() else 401
            return self._json({"error": "Repository not found"}, status, {"X-Error-Code": "RepoNotFound"})
        if revision != "main":
            files = self.server.commits.get(revision)
        if files is None:
            return self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
        if is_file:  # <user>/<repo>/resolve/<revision>/<file>
            return self._file(files, "/".join(parts[4:]))
        if action == "tree":
            return self._json([_entry(name, data) for name, data in files.items()])
        facts = {"id": repo, "modelId": repo, "sha": self._commit(files), "private": self.server.is_private.get(repo)}
        return self._json({**facts, "siblings": [{"rfilename": name} for name in files]})

    def do_HEAD(self) -> None:
        self.do_GET()

    def _is_known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.server.TOKEN}"

    def _commit(self, files: Files) -> str:
        oid = commit_of(files)
        self.server.commits[oid] = dict(files)
        return oid

    def _file(self, files: Files, name: str) -> None:
        if name not in files:
            return self._json({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        headers = {"ETag": f'"{_entry(name, files[name])["oid"]}"', "X-Repo-Commit": commit_of(files)}
        return self._send(files[name], 200, headers)

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def _send(self, data: bytes, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def log_message(self, format: str, *args: object) -> None:
        pass


def _entry(name: str, data: bytes) -> dict[str, object]:
    oid = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return {"type": "file", "path": name, "size": len(data), "oid": oid}
