"""``make serve``: from a checkout to a running MONAI Label server, saying what to open. Imports nothing heavy.

The console stays quiet: what starts, the token where one is needed, READY with what to open, and the last lines of the
server's output if it fails. All of that output goes to a log file (``ServerLog``).

python -m ultrarefiner_monai.cli.launch [--studies DIR_OR_URL] [--host H] [--port P] [more options of start_server]
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO, cast

ROOT = Path(__file__).resolve().parents[2]
READY_TIMEOUT_S = 600
GRACE_S = 15
LOOPBACK = ("127.", "localhost", "::1")
# The first and last words of the message with the token (``lib/routes/doors.py``): for the console, never for the log.
TOKEN_BEGINS, TOKEN_ENDS = "This machine can use the server at once.", "(docs/it/security.md)."
MOST_TOKEN_LINES = 10  # should the last words not come, the log goes on after so many lines
LOG_BYTES, LOG_FILES, LAST_LINES = 10 << 20, 5, 15
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class LaunchError(Exception):
    """The server cannot be started; the message says why and what to do."""


def choose_studies(given: str, root: Path = ROOT) -> str:
    """The absolute studies folder or DICOMweb address. None given: a copy of sample-data in .work, made only once."""
    if given.startswith(("http://", "https://")):
        if "@" in given.split("/")[2]:
            raise LaunchError(
                "STUDIES: no user or password in the address, it would stand in logs: use pacs.user and "
                "pacs.password_file (docs/it/pacs.md)"
            )
        return given
    if given:
        folder = Path(given).expanduser().absolute()
        if not folder.is_dir():
            raise LaunchError(f"STUDIES: there is no folder {str(folder)!r}")
        return str(folder)
    copy, source = root / ".work" / "studies", root / "sample-data"
    if not copy.exists():
        if not source.is_dir():
            raise LaunchError(f"there are no sample studies in {source}: give a folder, make serve STUDIES=/path")
        part = copy.with_name("studies.part")
        with _written(copy):
            shutil.rmtree(part, ignore_errors=True)
            shutil.copytree(source, part, ignore=shutil.ignore_patterns("README.md"))
            os.replace(part, copy)
    return str(copy)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """LaunchError where ``path`` cannot be made."""
    try:
        yield
    except OSError as error:
        raise LaunchError(
            f"cannot write {path}: {error.strerror or error}. Move away what lies there, or make its folder writable"
        ) from error


def check_port(host: str, port: int) -> None:
    """Refuse early, in words, what uvicorn would refuse after the seconds of importing."""
    if not 0 < port < 65536:
        raise LaunchError(f"PORT must be a number from 1 to 65535, got {port}")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise LaunchError(
                f"cannot listen on {host} port {port}: {error.strerror or error}. Is another server running? Stop it, "
                f"or take another port: make serve PORT={port + 1 if port < 65535 else 8000}"
            ) from error


class ServerLog:
    """What the server writes to stdout and stderr, line by line into a file that is bounded.

    path: the newest 10 MB, for its owner only; older ones lie beside it as path.1 to path.5. last: the last lines,
    without colours. Raises LaunchError where the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.last = path, deque[str](maxlen=LAST_LINES)
        self._token_lines = 0  # how many may still belong to the message with the token
        with _written(path):
            self._file = _OwnersFile(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(message)s"))

    def follow(self, stream: TextIO) -> None:
        """Write until the server closes ``stream``; the message with the token goes to the console in place of the file.

        Reads on whatever fails: a server whose output nobody takes stands still once the pipe is full.
        """
        with contextlib.closing(self._file):
            for line in stream:
                with contextlib.suppress(OSError, ValueError):  # ValueError: the console was closed
                    self._take(_COLOURS.sub("", line.rstrip("\n")))

    def _take(self, text: str) -> None:
        if self._is_about_token(text):
            print(text, flush=True)
            return
        self.last.append(text)
        self._file.emit(logging.makeLogRecord({"msg": text}))

    def _is_about_token(self, text: str) -> bool:
        if text.startswith(TOKEN_BEGINS):
            self._token_lines = MOST_TOKEN_LINES
        about = self._token_lines > 0
        self._token_lines = 0 if text.endswith(TOKEN_ENDS) else max(self._token_lines - 1, 0)
        return about


class _OwnersFile(RotatingFileHandler):
    """Its mode is 0600: names of images stand in it. A failure is said once, not with each line."""

    _failed = False

    def _open(self) -> TextIOWrapper:
        def owners(path: str, flags: int) -> int:
            return os.open(path, flags, 0o600)

        file = cast(TextIOWrapper, open(self.baseFilename, self.mode, encoding=self.encoding, opener=owners))
        with contextlib.suppress(OSError):  # one that was there before
            os.chmod(self.baseFilename, 0o600)
        return file

    def handleError(self, record: logging.LogRecord) -> None:
        if not self._failed:
            self._failed = True
            print(f"{self.baseFilename} cannot be written: {sys.exc_info()[1]}. The server goes on.", file=sys.stderr)


def server_url(host: str, port: int) -> str:
    """The address to open on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def wait_until_ready(url: str, running: threading.Event) -> bool:
    """True when the server answers; False when ``running`` was cleared or time is up. Never through a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + READY_TIMEOUT_S
    while running.is_set() and time.monotonic() < end:
        try:
            with opener.open(f"{url}/info/", timeout=5):
                return True
        except urllib.error.HTTPError:  # it wants a login: it is there
            return True
        except OSError:
            time.sleep(0.3)
    return False


def _announce(url: str, running: threading.Event, begun: float, port_of_all: int | None) -> None:
    """Say what to open once the server answers. port_of_all: where other machines can reach it too, else None."""
    if wait_until_ready(url, running):
        seconds = time.monotonic() - begun
        elsewhere = (
            f"  From other machines: http://ADDRESS-OF-THIS-MACHINE:{port_of_all}; where a token stands above, it is the\n"
            "  password, with your name as the user (docs/it/security.md).\n"
        )
        print(
            f"\nREADY after {seconds:.0f} s.  In a browser: {url}/\n"
            f"  In 3D Slicer: install the extension MONAILabel, open the module MONAILabel, enter the server {url},\n"
            "  press the reload button, then Next Sample; correct with points in SmartEdit (docs/users/slicer.md).\n"
            f"{elsewhere if port_of_all else ''}"
            "  Research use only. Not a medical device.  Ctrl-C stops the server.\n",
            flush=True,
        )


def run(studies: str, host: str, port: int, more: list[str], root: Path = ROOT) -> int:
    """Start the server and stay until it ends. Returns its exit code; 0 when it was stopped by Ctrl-C or SIGTERM."""
    app, work = root / "apps" / "ultrarefiner", root / ".work"
    if not (app / "main.py").is_file():
        raise LaunchError(f"{app} holds no app: this starts the server from a checkout of the repository")
    check_port(host, port)
    with _written(work):
        work.mkdir(exist_ok=True)
    studies, url = choose_studies(studies, root), server_url(host, port)
    output = ServerLog(work / f"serve-{port}.log")
    if not host.startswith(LOOPBACK):
        print(
            f"{host} can be reached from other machines. Unless a login is configured, or --conf open_to_network true is "
            "given, they need the token\nthat is printed below, as the password with any user name "
            "(docs/it/security.md)."
        )
    print(f"Starting {url} for {studies} (research use only, not a medical device) ...", flush=True)
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(app), "--studies", studies]
    command += ["--host", host, "--port", str(port), *more]
    # Tools that packages bring (itkimage2segimage) lie beside this Python. From .work: a stray .env is not read.
    environment = {**os.environ, "PATH": str(Path(sys.executable).parent) + os.pathsep + os.environ.get("PATH", "")}
    begun, running, stopped = time.monotonic(), threading.Event(), False
    running.set()
    environment["PYTHONUNBUFFERED"] = "1"  # or its output would reach the log in lumps
    print(f"The server's output goes to {output.path}", flush=True)
    server = subprocess.Popen(
        command,
        cwd=work,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    assert server.stdout is not None
    follower = threading.Thread(target=output.follow, args=(server.stdout,), daemon=True)
    follower.start()

    def end(*_: object) -> None:
        nonlocal stopped
        stopped = True
        server.terminate()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(
        target=_announce, args=(url, running, begun, None if host.startswith(LOOPBACK) else port), daemon=True
    ).start()
    while (code := server.poll()) is None:
        try:
            server.wait()
        except KeyboardInterrupt:  # from a terminal the server got it too and shuts down by itself
            if stopped:
                server.kill()
            stopped = True
            with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                server.wait(GRACE_S)
            if server.poll() is None:
                server.terminate()
    running.clear()
    follower.join(GRACE_S / 5)  # a training that is still ending may hold the pipe open
    if code and not stopped:
        last = "\n  ".join(output.last)
        print(f"The server ended with code {code}. The end of {output.path}:\n  {last}", file=sys.stderr)
    return 0 if stopped else code


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ultrarefiner_monai.cli.launch", description=__doc__, allow_abbrev=False)
    parser.add_argument("--studies", default="")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", default=8000, type=int)
    options, more = parser.parse_known_args(arguments)
    try:
        return run(options.studies, options.host, options.port, more)
    except LaunchError as error:
        print(f"Cannot start: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
