"""HTTP servers that serve a folder well, badly or not at all."""

import contextlib
import http.server
import re
import threading
import time


class _Handler(http.server.BaseHTTPRequestHandler):
    """Serves files of `server.folder`; `server.mode` says how."""

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        server = self.server
        with server.lock:
            server.requests.append((self.command, self.path, self.headers.get("Range")))
            troubled = body and server.troubles > 0
            server.troubles -= troubled
        path = server.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        if troubled and server.mode == "busy":
            self.send_error(503)
            return
        if troubled and server.mode == "slow":
            time.sleep(server.pause_s)
        content = path.read_bytes()
        size = len(content)
        bounds = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
        if bounds and server.mode != "whole":
            first, last = int(bounds[1]), min(int(bounds[2]), size - 1)
            content = content[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
        self.end_headers()
        if body:
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[: len(content) // 2] if troubled and server.mode == "cut" else content)
                self.wfile.flush()
                if troubled and server.mode == "cut":
                    self.connection.close()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve(folder, mode="ranges", *, troubles=0, pause_s=3.0):
    """A server of a folder on this machine; the first `troubles` answers with a body go wrong as `mode` says.

    Modes: ranges; whole (ignores ranges); cut (closes the connection halfway); busy (status 503); slow (late by
    `pause_s`).
    """
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.folder, server.mode, server.troubles, server.pause_s = folder, mode, troubles, pause_s
    server.requests, server.lock = [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
