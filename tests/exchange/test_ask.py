"""What ``send`` takes for an answer; the server's own answers are asked for in tests/app/test_exchange.py."""

from __future__ import annotations

import http.server
import threading

import pytest

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.exchange.ask import TOKEN_VARIABLE, send_label


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_refused_and_the_request_not_sent_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(200 if self.path == "/elsewhere" else status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv(TOKEN_VARIABLE, "s3cret")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(InputError, match=rf"refuses: [A-Z].* \({status}\)"):
            send_label(f"http://127.0.0.1:{server.server_address[1]}", "1.2.3")
        server.shutdown()
    assert asked == [("/ultrarefiner/send?image=1.2.3&tag=final", "Bearer s3cret")]
