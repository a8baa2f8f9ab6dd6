"""A stand-in for a worker or router: answers 200 to every GET, ends on SIGTERM.

    python fake_child.py PORT [fail|stubborn|log]

fail: says why and exits with 3. stubborn: ignores SIGTERM. log: writes a line before it serves.
"""

import signal
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    port, mode = int(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    if mode == "fail":
        print("error: no such model", file=sys.stderr)
        sys.exit(3)
    if mode == "log":
        print("warning: the oven is cold", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if mode == "stubborn" else signal.SIG_DFL)
    HTTPServer.allow_reuse_address = True
    HTTPServer(("127.0.0.1", port), _Handler).serve_forever()


if __name__ == "__main__":
    main()
