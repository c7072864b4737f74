"""Receives webhooks on port 9000 and believes only those that carry our signature. Needs WEBHOOK_SECRET (whsec_…)."""

import base64
import hmac
import os
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

KEY = base64.b64decode(os.environ["WEBHOOK_SECRET"].removeprefix("whsec_"))


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        id, at, signatures = (self.headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
        expected = "v1," + base64.b64encode(hmac.digest(KEY, f"{id}.{at}.".encode() + body, "sha256")).decode()
        genuine = any(hmac.compare_digest(expected.encode(), found.encode()) for found in signatures.split())
        fresh = at.isdecimal() and abs(time.time() - int(at)) < 300  # an old one may have been recorded and replayed
        self.send_response(204 if genuine and fresh else 401)
        self.end_headers()
        print("genuine" if genuine and fresh else "refused", id, body.decode(errors="replace"), flush=True)


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", 9000), Receiver).serve_forever()
