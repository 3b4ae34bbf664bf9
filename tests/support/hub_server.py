"""A small server on 127.0.0.1 that speaks as much of the hub's HTTP API as `huggingface_hub` uses for models.

Repositories with branches, commits and private ones; the listing of files; `resolve` with redirects to a "CDN" and
ranges; uploads by Git LFS, and commits. Not the storage protocol Xet, which the library's own switch turns off
(HF_HUB_DISABLE_XET): it is spoken by compiled code to servers of its own.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34
LARGE = (".safetensors", ".png", ".pt", ".bin")  # kept by Git LFS, under their SHA-256


@dataclasses.dataclass
class Repo:
    """Commits by their id, each a table of files; and what branches point at."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = dataclasses.field(default_factory=dict)
    branches: dict[str, str] = dataclasses.field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        before = self.commits.get(self.branches.get(branch, ""), {})
        content = before | files
        facts = repr((branch, len(self.commits), sorted((k, sha256(v)) for k, v in content.items())))
        sha = hashlib.sha1(facts.encode()).hexdigest()
        self.commits[sha] = content
        self.branches[branch] = sha
        return sha

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


class Hub:
    """The state of the server, what it was asked, and what it does wrong.

    Attributes:
        asked: (method, path) of every request. ranges: the headers `Range` of the files that were sent.
        cut: after how many bytes of the next large files the connection ends; one entry a file that is sent.
        spoil: whether large files are sent with a bit turned round.
        licences: those that a card may name; None takes any.
        fail: the status to answer a request with, by its method and path; None answers it.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.asked: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.cut: list[int] = []
        self.spoil = self.closed = False
        self.licences: set[str] | None = None
        self.fail: Callable[[str, str], int | None] = lambda method, path: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (_Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    @property
    def cdn(self) -> str:  # another host, as far as the library can tell
        return f"http://localhost:{self.server.server_port}"

    def close(self) -> None:
        self.closed = True  # connections that are kept open outlive the server
        self.server.shutdown()
        self.server.server_close()

    def fetched(self) -> list[str]:
        """The names of the files that were sent, in order."""
        return [path.rpartition("/")[2] for method, path in self.asked if method == "GET" and "/resolve/" in path] + [
            path for method, path in self.asked if method == "GET" and path.startswith("/cdn/")
        ]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def content_id(path: str, content: bytes) -> str:
    """By what the hub tells whether a file has changed."""
    return sha256(content) if path.endswith(LARGE) else git_id(content)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, content: bytes | Any = b"", **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self) -> None:
        path, length = unquote(urlsplit(self.path).path), int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(length)
        if self.hub.closed:
            self.close_connection = True
            return None
        self.hub.asked.append((self.command, path))
        if (status := self.hub.fail(self.command, path)) is not None:
            return self._answer(status, b"out of order")
        if path.startswith(("/cdn/", "/put/")):
            return self._cdn(path.rpartition("/")[2], body)
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if self.command == "POST" and path == "/api/validate-yaml":
            content = json.loads(body)["content"]
            known = self.hub.licences is None or any(f'license: "{name}"' in content for name in self.hub.licences)
            errors = [] if known else [{"message": '"license" must be one of those that are known'}]
            return self._answer(200 if known else 400, {"errors": errors, "warnings": []})
        if self.command == "POST" and path == "/api/repos/create":
            return self._create(json.loads(body), authorised)
        if path == "/api/whoami-v2":
            return self._answer(200 if authorised else 401, {"name": "alice", "type": "user", "orgs": []})
        name, rest = self._split(path)
        repo = self.hub.repos.get(name)
        if repo is None or ((repo.private or self.command in ("POST", "PUT")) and not authorised):
            return self._answer(401, {"error": "no"}, X_Error_Code="RepoNotFound", X_Error_Message="not found")
        getattr(self, f"_{self.command.lower()}_repo")(name, repo, rest, body)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    @staticmethod
    def _split(path: str) -> tuple[str, str]:
        words = path.removeprefix("/api/models").strip("/").split("/", 2)
        name = "/".join(words[:2]).removesuffix(".git")
        return name, words[2] if len(words) > 2 else ""

    def _create(self, wanted: dict[str, Any], authorised: bool) -> None:
        name = f"{wanted.get('organization') or 'alice'}/{wanted['name']}"
        if not authorised:
            return self._answer(401, {"error": "Invalid username or password."})
        if wanted.get("organization") not in (None, "alice"):
            return self._answer(403, {"error": "You don't have the rights to create a model under this namespace"})
        status = 409 if name in self.hub.repos else 200
        if status == 200:
            self.hub.repos[name] = Repo(private=wanted.get("visibility") == "private")
            self.hub.repos[name].commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"})
        self._answer(status, {"url": f"{self.hub.url}/{name}", "name": name})

    def _get_repo(self, name: str, repo: Repo, rest: str, body: bytes) -> None:
        kind, _, rest = rest.partition("/")
        if kind == "":
            kind, rest = "revision", "main"
        revision = next((b for b in repo.branches if rest == b or rest.startswith(f"{b}/")), rest.partition("/")[0])
        found = repo.files(revision)
        if found is None:
            return self._answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev id")
        sha, files = found
        if kind == "revision":
            facts = {"siblings": [{"rfilename": file} for file in files], "private": repo.private, "tags": []}
            return self._answer(200, {"id": name, "sha": sha, **facts})
        if kind == "tree":
            return self._answer(200, [self._entry(*file) for file in files.items()])
        file = rest.removeprefix(f"{revision}/")
        if kind != "resolve" or file not in files:
            return self._answer(404, b"", X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        content = files[file]
        if file.endswith(LARGE):
            facts = {"X_Linked_Etag": f'"{sha256(content)}"', "X_Linked_Size": str(len(content)), "X_Repo_Commit": sha}
            self.hub.blobs[sha256(content)] = content
            return self._answer(302, b"", Location=f"{self.hub.cdn}/cdn/{sha256(content)}", **facts)
        self._answer(200, content, ETag=f'"{git_id(content)}"', X_Repo_Commit=sha)

    _head_repo = _get_repo

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
        if path.endswith(LARGE):
            entry["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 130}
        return entry

    def _cdn(self, sha: str, body: bytes) -> None:
        """A large file by its SHA-256: taken in, or sent, from where the header `Range` says."""
        if self.command == "PUT":
            self.hub.blobs[sha] = body
            return self._answer(200 if sha256(body) == sha else 400)
        content, status, headers = self.hub.blobs[sha], 200, {}
        if wanted := self.headers.get("Range"):
            self.hub.ranges.append(wanted)
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            headers = {"Content_Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
            content, status = content[start:], 206
        if self.hub.spoil:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.command == "GET" and self.hub.cut:
            size = self.hub.cut.pop(0)
            self._answer(status, content[:size], Content_Length=str(len(content)), **headers)
            self.close_connection = True
            return
        self._answer(status, content, **headers)

    def _post_repo(self, name: str, repo: Repo, rest: str, body: bytes) -> None:
        kind, _, branch = rest.partition("/")
        if kind == "branch":
            if branch in repo.branches:
                return self._answer(409, {"error": "Reference already exists"})
            repo.branches[branch] = repo.branches["main"]
            return self._answer(200, {})
        if kind == "preupload":
            found = repo.files(branch)
            if found is None:
                return self._answer(404, {"error": "no"}, X_Error_Code="RevisionNotFound")
            known = {path: {"oid": content_id(path, content)} for path, content in found[1].items()}
            files = [
                {
                    "path": entry["path"],
                    "uploadMode": "lfs" if entry["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    **known.get(entry["path"], {}),
                }
                for entry in json.loads(body)["files"]
            ]
            return self._answer(200, {"files": files})
        if rest == "info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for entry in objects:
                if entry["oid"] not in self.hub.blobs:
                    entry["actions"] = {"upload": {"href": f"{self.hub.url}/put/{entry['oid']}"}}
            return self._answer(200, {"transfer": "basic", "objects": objects})
        assert kind == "commit", rest
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        sha = repo.commit(branch, files)
        self._answer(200, {"commitUrl": f"{self.hub.url}/{name}/commit/{sha}", "commitOid": sha})
