"""``make serve`` and ``ultrarefiner serve``: from an installation to a running MONAI Label server, saying what to open. Imports nothing heavy.

The console stays quiet: what starts, the token where one is needed, READY with what to open, and the last lines of the
server's output if it fails. All of that output goes to a log file (``ServerLog``).

python -m ultrarefiner_monai.cli.launch [--studies DIR_OR_URL] [--host H] [--port P] [more options of start_server]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from ultrarefiner_monai.cli.server_log import LaunchError, ServerLog, written
from ultrarefiner_monai.core import places

READY_TIMEOUT_S = 600
GRACE_S = 15
LOOPBACK = ("127.", "localhost", "::1")


@dataclass(frozen=True)
class Place:
    """What is served and where: the app's folder, sample-data, and the home of studies and logs when no folder is given."""

    app: Path
    samples: Path
    home: Path
    in_place: bool = True  # a checkout: the app is served where it lies

    @classmethod
    def here(cls) -> Place:
        """That of this checkout, or of the installed package; LaunchError where there is no app."""
        try:
            return cls(places.app_folder(), places.sample_data(), places.home(), places.is_checkout())
        except ValueError as error:  # InputError
            raise LaunchError(str(error)) from error

    def runnable(self) -> Path:
        """The app's folder to serve from: MONAI Label writes its log there, so that of an installed package is copied into home once."""
        if not (self.app / "main.py").is_file():
            raise LaunchError(f"{self.app} holds no app: install the package from the repository or from its wheel")
        if self.in_place:
            return self.app
        files = sorted(p for p in self.app.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        facts = [(str(p.relative_to(self.app)), p.stat().st_size, p.stat().st_mtime_ns) for p in files]
        folder = self.home / f"app-{hashlib.sha256(repr(facts).encode()).hexdigest()[:12]}"
        if not folder.is_dir():
            _copy_whole(self.app, folder, "__pycache__")
        return folder


def _copy_whole(source: Path, folder: Path, *left_out: str) -> None:
    """``folder`` holds all of ``source`` but names like these, or is not there. LaunchError where it cannot be made."""
    part = folder.with_name(f"{folder.name}.part")
    with written(folder):
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(*left_out))
        os.replace(part, folder)


def choose_studies(given: str, place: Place) -> str:
    """The absolute studies folder or DICOMweb address. None given: a copy of sample-data in the home folder, made only once."""
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
    copy, source = place.home / "studies", place.samples
    if not copy.exists():
        if not source.is_dir():
            raise LaunchError(f"there are no sample studies in {source}: give a folder, make serve STUDIES=/path")
        _copy_whole(source, copy, "README.md", "__pycache__", "*.py")
    return str(copy)


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


def server_url(host: str, port: int, tls: bool = False) -> str:
    """The address to open on this machine."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http{'s' if tls else ''}://{f'[{shown}]' if ':' in shown else shown}:{port}"


def wait_until_ready(url: str, running: threading.Event) -> bool:
    """True when the server answers; False when ``running`` was cleared or time is up. Never through a proxy."""
    # Its certificate names the department's machine, not the loopback address that is asked here; nothing secret is sent.
    trusting = urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), trusting)
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
            f"  From other machines: {url.split(':')[0]}://ADDRESS-OF-THIS-MACHINE:{port_of_all}; where a token stands above, it is the\n"
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


def run(studies: str, host: str, port: int, more: list[str], place: Place | None = None) -> int:
    """Start the server and stay until it ends. Returns its exit code; 0 when it was stopped by Ctrl-C or SIGTERM."""
    place = place or Place.here()
    if importlib.util.find_spec("monailabel") is None:
        raise LaunchError(
            "MONAI Label is missing; it is installed without what it asks for (setup.cfg says why): "
            "pip install --no-deps monailabel==0.8.5"
        )
    work = place.home
    check_port(host, port)
    with written(work):
        work.mkdir(parents=True, exist_ok=True)
    app, studies = place.runnable(), choose_studies(studies, place)
    url = server_url(host, port, tls=any(option.split("=")[0] == "--ssl_certfile" for option in more))
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
    environment = dict(os.environ)
    begun, running, stopped = time.monotonic(), threading.Event(), False
    running.set()
    environment["PYTHONUNBUFFERED"] = "1"  # or its output would reach the log in lumps
    print(f"The server's output goes to {output.path}", flush=True)
    server = subprocess.Popen(
        command,
        cwd=work,  # a stray .env elsewhere is not read
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
