"""What make serve does before and around the server; the server itself is driven in tests/app."""

from __future__ import annotations

import http.server
import io
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from ports import free_port

from ultrarefiner_monai.cli import launch, server_log
from ultrarefiner_monai.cli.launch import LaunchError, Place

ROOT = Path(launch.__file__).resolve().parents[2]


def place_of(root: Path) -> Place:
    return Place(root / "apps" / "ultrarefiner", root / "sample-data", root / ".work")


def checkout(root: Path, main: str = "") -> Path:
    (root / "sample-data").mkdir(parents=True)
    (root / "sample-data" / "one.png").write_bytes(b"1")
    (root / "apps" / "ultrarefiner").mkdir(parents=True)
    (root / "apps" / "ultrarefiner" / "main.py").write_text(main)
    return root


def test_sample_data_is_copied_once_and_never_overwritten(tmp_path: Path) -> None:
    root = checkout(tmp_path / "a checkout")
    (root / ".work").mkdir()
    studies = Path(launch.choose_studies("", place_of(root)))
    assert studies == root / ".work" / "studies" and (studies / "one.png").read_bytes() == b"1"
    (studies / "one.png").write_bytes(b"mine")
    assert launch.choose_studies("", place_of(root)) == str(studies)
    assert (studies / "one.png").read_bytes() == b"mine"
    assert (root / "sample-data" / "one.png").read_bytes() == b"1"


def test_studies_given_become_absolute_and_keep_their_spaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my studies").mkdir()
    monkeypatch.chdir(tmp_path)
    assert launch.choose_studies("my studies", place_of(tmp_path)) == str(tmp_path / "my studies")
    assert launch.choose_studies("http://pacs:8042/dicom-web", place_of(tmp_path)) == "http://pacs:8042/dicom-web"
    with pytest.raises(LaunchError, match="no user or password"):
        launch.choose_studies("http://me:secret@pacs/dicom-web", place_of(tmp_path))
    with pytest.raises(LaunchError, match="no folder"):
        launch.choose_studies("my studie", place_of(tmp_path))


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


def test_with_a_certificate_it_is_https() -> None:
    assert launch.server_url("0.0.0.0", 80, tls=True) == "https://127.0.0.1:80"


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
    code = "import sys; from pathlib import *; from ultrarefiner_monai.cli.launch import Place, run; "
    code += f"sys.exit(run('', '127.0.0.1', {port}, {list(more)}, {place_of(root)!r}))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "stand-in"), str(ROOT)])}
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


def test_a_log_that_cannot_be_written_is_said_before_the_server_starts(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "a checkout" / ".work" / f"serve-{port}.log").mkdir(parents=True)
    root, launcher = launched(tmp_path, port)
    text, _ = launcher.communicate(timeout=60)
    assert f"LaunchError: cannot write {root}/.work/serve-{port}.log: Is a directory" in text
    assert not (root / ".work" / "arguments.txt").exists()


def test_a_work_folder_that_cannot_be_made_is_said_in_words(tmp_path: Path) -> None:
    root = checkout(tmp_path / "a checkout")
    (root / ".work").write_text("in the way")
    with pytest.raises(LaunchError, match=r"cannot write .*\.work: File exists"):
        launch.run("", "127.0.0.1", free_port(), [], place_of(root))


def test_the_servers_output_is_read_to_its_end_whatever_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "work").mkdir()
    log = server_log.ServerLog(tmp_path / "work" / "serve.log")
    shutil.rmtree(tmp_path / "work")
    (tmp_path / "work").write_text("the disk is gone")  # the next file cannot be opened
    log.follow(io.StringIO("x" * server_log.LOG_BYTES + "\nsecond\nthird\nlast words\n"))
    assert log.last[-1] == "last words"
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_closed_console_does_not_stop_the_log(tmp_path: Path) -> None:
    code = (
        "import io, sys; from pathlib import Path; from ultrarefiner_monai.cli import server_log; sys.stdout.close(); "
    )
    code += f"log = server_log.ServerLog(Path({str(tmp_path / 'serve.log')!r})); "
    code += "log.follow(io.StringIO(f'{server_log.TOKEN_BEGINS} {server_log.TOKEN_ENDS}\\nlast words\\n'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "serve.log").read_text() == "last words\n"


def test_the_log_is_its_owners_and_goes_on_after_half_a_message_with_the_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "serve.log"
    path.write_text("an older one\n")
    path.chmod(0o644)
    many = "".join(f"line {n}\n" for n in range(40))
    server_log.ServerLog(path).follow(io.StringIO(f"{server_log.TOKEN_BEGINS}\n\n    s3cret\n{many}"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "s3cret" in capsys.readouterr().out and "s3cret" not in path.read_text()
    assert "line 7\n" in path.read_text() and path.read_text().endswith("line 39\n")


def test_the_message_with_the_token_is_known_to_the_launcher() -> None:
    text = (ROOT / "apps" / "ultrarefiner" / "lib" / "routes" / "doors.py").read_text()
    message = text.split('_ASKS_FOR_TOKEN = """')[1].split('"""')[0].strip()
    assert message.startswith(server_log.TOKEN_BEGINS) and message.endswith(server_log.TOKEN_ENDS)


STAND_IN = f"""
import http.server, pathlib, sys
print("\\x1b[32mchatter\\x1b[0m", file=sys.stderr)
print("{server_log.TOKEN_BEGINS} Others ...\\n\\n    s3cret\\n\\n{server_log.TOKEN_ENDS}")
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


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_refuses_an_unsuitable_python(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    for name in ("setup.cfg", "setup.py"):
        (tmp_path / name).write_text("")
    done = subprocess.run(
        ["make", "serve", "PYTHON=/no such/python"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0 and "3.10 to 3.14" in done.stderr
    assert not (tmp_path / ".venv").exists()
