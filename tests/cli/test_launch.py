"""What make serve does before and around the server; the server itself is driven in tests/app."""

from __future__ import annotations

import http.server
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ultrarefiner_monai.cli import launch
from ultrarefiner_monai.cli.launch import LaunchError


def checkout(root: Path, main: str = "") -> Path:
    (root / "sample-data").mkdir(parents=True)
    (root / "sample-data" / "one.png").write_bytes(b"1")
    (root / "apps" / "ultrarefiner").mkdir(parents=True)
    (root / "apps" / "ultrarefiner" / "main.py").write_text(main)
    return root


def test_sample_data_is_copied_once_and_never_overwritten(tmp_path: Path) -> None:
    root = checkout(tmp_path / "a checkout")
    (root / ".work").mkdir()
    studies = Path(launch.choose_studies("", root))
    assert studies == root / ".work" / "studies" and (studies / "one.png").read_bytes() == b"1"
    (studies / "one.png").write_bytes(b"mine")
    assert launch.choose_studies("", root) == str(studies)
    assert (studies / "one.png").read_bytes() == b"mine"
    assert (root / "sample-data" / "one.png").read_bytes() == b"1"


def test_studies_given_become_absolute_and_keep_their_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my studies").mkdir()
    monkeypatch.chdir(tmp_path)
    assert launch.choose_studies("my studies") == str(tmp_path / "my studies")
    assert launch.choose_studies("http://pacs:8042/dicom-web") == "http://pacs:8042/dicom-web"
    with pytest.raises(LaunchError, match="no user or password"):
        launch.choose_studies("http://me:secret@pacs/dicom-web")
    with pytest.raises(LaunchError, match="no folder"):
        launch.choose_studies("my studie")


def test_a_busy_port_is_said_in_words() -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        with pytest.raises(LaunchError, match=rf"port {port}.*make serve PORT={port + 1 if port < 65535 else 8000}"):
            launch.check_port("127.0.0.1", port)
    launch.check_port("127.0.0.1", port)
    with pytest.raises(LaunchError, match="PORT"):
        launch.check_port("127.0.0.1", 70000)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("pc7", "http://pc7:80"),
    ],
)
def test_the_address_shown_can_be_opened(host: str, url: str) -> None:
    assert launch.server_url(host, 80) == url


def test_ready_is_said_when_the_server_answers_even_behind_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/info/" else 404)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    running = threading.Event()
    running.set()
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert launch.wait_until_ready(f"http://127.0.0.1:{server.server_address[1]}", running)
        server.shutdown()
    running.clear()
    assert not launch.wait_until_ready("http://127.0.0.1:9", running)


def test_the_command_line_ends_with_a_message_not_a_traceback(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "ultrarefiner_monai.cli.launch",
        "--studies",
        str(tmp_path / "none"),
        "--port",
        "1",
    ]
    command[-1] = str(free_port())
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Cannot start" in done.stderr


def launched(tmp_path: Path, port: int, *more: str) -> tuple[Path, subprocess.Popen[str]]:
    """A checkout, and the launcher started in it with a stand-in for MONAI Label: the real one is driven in tests/app."""
    root = checkout(tmp_path / "a checkout")
    (tmp_path / "stand-in" / "monailabel").mkdir(parents=True)
    (tmp_path / "stand-in" / "monailabel" / "__init__.py").write_text("")
    (tmp_path / "stand-in" / "monailabel" / "main.py").write_text(STAND_IN)
    code = "import sys; from pathlib import Path; from ultrarefiner_monai.cli.launch import run; "
    code += f"sys.exit(run('', '127.0.0.1', {port}, {list(more)}, Path({str(root)!r})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "stand-in"), str(launch.ROOT)])}
    command = [sys.executable, "-c", code]
    return root, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def test_stopping_the_launcher_stops_the_server(tmp_path: Path) -> None:
    port = free_port()
    root, launcher = launched(tmp_path, port, "--conf", "a", "b c")
    assert launcher.stdout is not None
    lines = []
    for line in launcher.stdout:
        lines.append(line)
        if "Ctrl-C" in line:
            break
    launcher.terminate()
    text = "".join([*lines, launcher.stdout.read()])
    assert launcher.wait(60) == 0
    assert "READY" in text and f"http://127.0.0.1:{port}/" in text and "Not a medical device" in text
    assert "ended with code" not in text
    with socket.socket() as probe, pytest.raises(OSError):
        probe.connect(("127.0.0.1", port))
    arguments = (root / ".work" / "arguments.txt").read_text().splitlines()
    assert str(root / ".work" / "studies") in arguments and arguments[-3:] == ["--conf", "a", "b c"]
    log = root / ".work" / f"serve-{port}.log"
    assert str(log) in text and "chatter" not in text and "s3cret" in text
    assert "chatter\n" in log.read_text() and "s3cret" not in log.read_text()


def test_a_server_that_fails_shows_its_last_words(tmp_path: Path) -> None:
    port = free_port()
    root, launcher = launched(tmp_path, port, "--fail")
    text, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 3 and "ended with code 3" in text and "READY" not in text
    assert "no such option" in text and "line 1 of 40" not in text
    log = (root / ".work" / f"serve-{port}.log").read_text()
    assert "line 1 of 40" in log and log.endswith("no such option\n")


def test_the_message_with_the_token_is_known_to_the_launcher() -> None:
    text = (launch.ROOT / "apps" / "ultrarefiner" / "lib" / "routes" / "doors.py").read_text()
    message = text.split('_ASKS_FOR_TOKEN = """')[1].split('"""')[0].strip()
    assert message.startswith(launch.TOKEN_BEGINS) and message.endswith(launch.TOKEN_ENDS)


STAND_IN = f"""
import http.server, pathlib, sys
print("\\x1b[32mchatter\\x1b[0m", file=sys.stderr)
print("{launch.TOKEN_BEGINS} Others ...\\n\\n    s3cret\\n\\n{launch.TOKEN_ENDS}")
pathlib.Path("arguments.txt").write_text("\\n".join(sys.argv))
if "--fail" in sys.argv:
    print(*[f"line {{n}} of 40" for n in range(1, 41)], "no such option", sep="\\n")
    sys.exit(3)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler).serve_forever()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_unsuitable_python(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((launch.ROOT / "Makefile").read_text())
    (tmp_path / "setup.cfg").write_text("")
    done = subprocess.run(
        ["make", "serve", "PYTHON=/no such/python"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and "3.10, 3.11 or 3.12" in done.stderr
    assert not (tmp_path / ".venv").exists()
