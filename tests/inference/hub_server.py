"""A server with the part of the hub's protocol that uploads and downloads of models use."""

import base64
import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.ThreadingHTTPServer):
    """Keeps files by repository; `requests` lists all requests."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _answer(self, content=b"", *, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _missing(self):
        self._answer({"error": "Repository not found"}, status=404, X_Error_Code="RepoNotFound")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urllib.parse.urlparse(self.path).path
        self.server.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            facts = json.loads(body)
            name = f"{facts.get('organization') or 'me'}/{facts['name']}"
            self.server.files.setdefault(name, {})
            return self._answer({"url": f"{self.server.url}/{name}", "id": "1", "name": name})
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        if "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    self.server.files[name][line["value"]["path"]] = content
            url = f"{self.server.url}/{name}/commit/{SHA}"
            return self._answer({"commitUrl": url, "commitOid": SHA, "hookOutput": ""})
        if "/paths-info/" in path:
            return self._answer([])
        return self._answer({"error": "what?"}, status=400)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            files = self.server.files.get("/".join(parts[2:4]))
            if files is None:
                return self._missing()
            if parts[4:5] == ["tree"]:
                tree = [
                    {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                    for name, content in files.items()
                ]
                return self._answer(tree)
            names = [{"rfilename": name, "size": len(files[name])} for name in files]
            info = {"_id": "1", "id": "/".join(parts[2:4]), "sha": SHA, "siblings": names,
                    "private": False, "downloads": 0, "likes": 0, "tags": []}  # fmt: skip
            return self._answer(info)
        files = self.server.files.get("/".join(parts[:2]))
        if files is None:
            return self._missing()
        content = files["/".join(parts[4:])]
        return self._answer(content, ETag=f'"{_oid(content)}"', X_Repo_Commit=SHA)


def _oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextlib.contextmanager
def serving():
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
