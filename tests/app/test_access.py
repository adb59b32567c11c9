"""Who gets in: names and origins, the token, and what clients are told; the middlewares alone, then the real server."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import socket
import stat
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
import requests
from app_server import Server, start
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse

from lib.commandline import listens_on
from lib.routes.access import Access, kept_token, visitor
from lib.routes.origins import Origins, is_loopback, route_path

TOKEN = "t" * 43
LOCAL, OTHER = ("127.0.0.1", 5000), ("10.1.2.3", 5000)
HERE, NETWORK = ("127.0.0.1", 8000), ("10.1.2.9", 8000)


async def inner(scope, receive, send) -> None:
    await PlainTextResponse(f"in as {visitor.get()!r}")(scope, receive, send)


def ask(app, method="GET", path="/info/", client=LOCAL, server=HERE, query=b"", **headers) -> tuple[int, str]:
    """(status, body) of one request. headers: host=None leaves that one out; ``_`` stands for ``-``."""
    headers = {"host": f"{server[0]}:{server[1]}", **headers}
    pairs = [(k.replace("_", "-").encode(), v.encode("latin-1")) for k, v in headers.items() if v is not None]
    scope = {"type": "http", "method": method, "path": path, "query_string": query, "headers": pairs}
    scope |= {"client": client, "server": server, "http_version": "1.1", "scheme": "http"}
    sent: list[dict] = []

    async def send(message) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b""}

    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(m.get("body", b"") for m in sent).decode()


# --- names and origins ------------------------------------------------------------------------------------------------

ORIGINS = Origins(inner, ["us.klinik.example"], ["https://viewer.example"], machine=["pc17"])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST:9", "localhost.:8000", "127.0.0.1", "127.9.9.9:1", "[::1]:8000", "us.klinik.example:443"],
)
def test_names_of_this_server(host):
    assert ask(ORIGINS, host=host)[0] == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "10.1.2.9",  # the address of another interface
        "2130706433",
        "0x7f.1",
        "pc17",  # from this machine, without a token: a name of the network could be forged
        "user@localhost",
        "localhost:0",
        "localhost:99999",
        "localhost:8000:8000",
        "localhost/x",
        "",
        " ",
        None,
    ],
)
def test_other_names_are_refused_in_words(host):
    status, text = ask(ORIGINS, host=host)
    assert status in (400, 421) and ("allowed_hosts" in text or "Host" in text)


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=30))
def test_no_name_but_ours_passes(host):
    if ask(ORIGINS, host=host)[0] == 200:
        assert re.fullmatch(
            r"(localhost\.?|127(\.\d+){3}|us\.klinik\.example\.?|viewer\.example\.?|\[::1\])(:\d+)?", host.strip(), re.I
        )


def test_the_address_that_was_called_and_the_machines_name_in_the_network():
    for host in ("10.1.2.9:8000", "pc17:8000"):
        assert ask(ORIGINS, client=OTHER, server=NETWORK, host=host)[0] == 200
    assert ask(ORIGINS, client=OTHER, server=NETWORK, host="10.1.2.8")[0] == 421


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_pages_of_other_origins_are_refused_with_every_method(method):
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:9000",
        "https://viewer.example.evil",
        "file://",
        "",
    ):
        status, text = ask(ORIGINS, method, origin=origin)
        assert status == 403 and (method == "HEAD" or "cors_origins" in text)
    for origin in ("http://127.0.0.1:8000", "https://viewer.example", "https://viewer.example:443"):
        assert ask(ORIGINS, method, origin=origin)[0] == 200


def test_an_origin_behind_a_proxy_with_tls():
    assert ask(ORIGINS, host="us.klinik.example", origin="https://us.klinik.example")[0] == 200
    assert ask(ORIGINS, host="us.klinik.example", origin="https://us.klinik.example:444")[0] == 403


def test_what_browsers_send_without_an_origin():
    for site in ("cross-site", "same-site"):
        assert ask(ORIGINS, sec_fetch_site=site, sec_fetch_mode="no-cors", sec_fetch_dest="image")[0] == 403
        assert ask(ORIGINS, sec_fetch_site=site)[0] == 403
        link = {"sec_fetch_site": site, "sec_fetch_mode": "navigate", "sec_fetch_dest": "document"}
        assert ask(ORIGINS, **link)[0] == 200 and ask(ORIGINS, "POST", **link)[0] == 403
        assert ask(ORIGINS, **(link | {"sec_fetch_dest": "iframe"}))[0] == 403
    for site in ("same-origin", "none"):
        assert ask(ORIGINS, sec_fetch_site=site)[0] == 200


def test_websockets_are_closed():
    sent = []

    async def send(message) -> None:
        sent.append(message)

    asyncio.run(ORIGINS({"type": "websocket", "headers": []}, None, send))
    assert sent[0]["type"] == "websocket.close"


@pytest.mark.parametrize("address", ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "::ffff:127.0.0.1", "localhost"])
def test_loopback(address):
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "::ffff:10.0.0.1", "127.0.0.1.x", "", "localhost.x"])
def test_no_loopback(address):
    assert not is_loopback(address)


def test_where_a_proxy_shows_the_server_below_a_path():
    scope = {"type": "http", "root_path": "/us/", "path": "/us/auth/"}
    assert route_path(scope) == "/auth/" and route_path({"path": "/us/auth/"}) == "/us/auth/"
    assert route_path(scope | {"path": "/usual"}) == "/usual"


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ([], "0.0.0.0"),
        (["--host", "127.0.0.1"], "127.0.0.1"),
        (["--host=10.0.0.1"], "10.0.0.1"),
        (["-i", "::1"], "::1"),
        (["-i127.0.0.1"], "127.0.0.1"),
        (["--host", "127.0.0.1", "--hos", "0.0.0.0"], "0.0.0.0"),  # argparse takes short forms, and the last one
        (["--host"], "0.0.0.0"),
    ],
)
def test_the_host_is_read_as_monai_label_reads_it(arguments, host):
    assert listens_on(["main.py", "start_server", "--app", "a", "--studies", "s", *arguments])[0] == host
    assert listens_on(["uvicorn", "monailabel.app:app", *arguments])[0] == "0.0.0.0"


# --- the token --------------------------------------------------------------------------------------------------------

ACCESS = Access(inner, TOKEN)


def basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_this_machine_needs_no_token_and_others_do():
    assert ask(ACCESS) == (200, "in as ''")
    for path in ("/", "/info/", "/ohif/", "/static/x", "/openapi.json", "/datastore/image", "/auth/token/valid"):
        status, text = ask(ACCESS, path=path, client=OTHER, server=NETWORK)
        assert status == 401 and "token" in text


@pytest.mark.parametrize(("client", "server"), [(LOCAL, NETWORK), (OTHER, HERE), (None, NETWORK), (LOCAL, None)])
def test_a_header_of_a_proxy_does_not_make_a_peer_local(client, server):
    """uvicorn puts what X-Forwarded-For says in place of the peer; where the connection came in, nobody can change."""
    assert ask(ACCESS, client=client, server=server or HERE, host="x")[0] == (200 if server is None else 401)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (f"Bearer {TOKEN}", ""),
        (f"bearer {TOKEN}", ""),
        (f"Bearer {TOKEN}.{base64.urlsafe_b64encode('Ärztin'.encode()).decode().rstrip('=')}", "Ärztin"),
        (basic("anna", TOKEN), "anna"),
        (basic("", TOKEN), ""),
    ],
)
def test_ways_to_bring_it(value, name):
    assert ask(ACCESS, client=OTHER, server=NETWORK, authorization=value) == (200, f"in as {name!r}")


@pytest.mark.parametrize(
    "value",
    ["", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer .{TOKEN}", f"Token {TOKEN}", TOKEN]
    + [basic("anna", "x"), basic(TOKEN, ""), "Basic !!", "Basic", "Bearer ü", basic("a\nb", TOKEN)],
)
def test_what_is_no_token(value):
    assert ask(ACCESS, client=OTHER, server=NETWORK, authorization=value)[0] == 401


@given(st.text(st.characters(max_codepoint=255), max_size=60))
def test_any_authorization_is_answered(value):
    assert ask(ACCESS, client=OTHER, server=NETWORK, authorization=value)[0] == 401


def test_where_only_loopback_is_served_a_proxy_on_this_machine_lets_in():
    closed = Access(inner, "")
    assert ask(closed, client=OTHER, server=HERE)[0] == ask(closed)[0] == 200
    assert ask(closed, client=OTHER, server=NETWORK)[0] == 401
    assert ask(closed, client=OTHER, server=NETWORK, authorization="Bearer ")[0] == 401


def test_the_image_of_a_next_sample_can_be_fetched_by_who_was_offered_it():
    async def offers(scope, receive, send) -> None:
        if give := scope.get("state", {}).get("handed_out"):
            give("a b")
        await inner(scope, receive, send)

    app = Access(offers, TOKEN)
    fetch = {"path": "/datastore/image", "query": b"image=a+b", "server": NETWORK}
    assert ask(app, client=OTHER, **fetch)[0] == 401
    ask(app, "POST", "/activelearning/first", client=OTHER, server=NETWORK, authorization=f"Bearer {TOKEN}")
    assert ask(app, client=OTHER, **fetch)[0] == 200
    assert ask(app, client=("10.1.2.4", 1), **fetch)[0] == 401
    assert ask(app, "DELETE", client=OTHER, **fetch)[0] == 401
    for query in (b"image=c", b"image=a+b&image=c", b""):
        assert ask(app, client=OTHER, **(fetch | {"query": query}))[0] == 401


def test_the_token_is_kept_for_its_owner_alone(tmp_path):
    token = kept_token(tmp_path / "token")
    assert len(token) >= 43 and kept_token(tmp_path / "token") == token
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    (tmp_path / "token").chmod(0o644)
    assert kept_token(tmp_path / "token") == token and stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    for content in (b"", b"short", b"\xff" * 50):
        (tmp_path / "token").write_bytes(content)
        assert len(kept_token(tmp_path / "token")) >= 43
    assert kept_token(tmp_path / "none" / "token") != token  # a folder that cannot be written: one for this run


# --- the real server --------------------------------------------------------------------------------------------------


def own_address() -> str:
    """An address of this machine that is not loopback; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no network")
        return probe.getsockname()[0]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path):
    """A server as MONAI Label starts it by default: on every interface. Yields it and its address in the network."""
    folder = tmp_path_factory.mktemp("network")
    from app_server import encoded, picture
    from PIL import Image

    (folder / "studies").mkdir()
    for n in range(2):
        (folder / "studies" / f"{n}.png").write_bytes(encoded(Image.fromarray(picture(n)), "PNG"))
    running = start(folder / "studies", checkpoint, folder, host="0.0.0.0")
    yield running, running.url.replace("127.0.0.1", own_address())
    running.stop()


@pytest.mark.server
def test_a_server_on_every_interface(network: tuple[Server, str], tmp_path: Path):
    from monailabel.client import MONAILabelClient

    server, address = network
    token = (server.studies / ".ultrarefiner" / "token").read_text().strip()
    assert server.log.count(token) == 1  # printed once
    log = requests.get(f"{server.url}/logs/?text=true&lines=10000")
    assert log.status_code == 200 and token not in log.text
    for headers in ({}, {"X-Forwarded-For": "127.0.0.1"}, {"Host": "localhost"}, {"Forwarded": "for=127.0.0.1"}):
        for method, path in [("GET", "/info/"), ("GET", "/"), ("POST", "/activelearning/first"), ("GET", "/logs/")]:
            answer = requests.request(method, address + path, headers=headers)
            assert answer.status_code == 401 and "token" in answer.json()["detail"]
            assert answer.headers["www-authenticate"].startswith("Basic ")

    client = MONAILabelClient(address, str(tmp_path), "slicer")
    assert client.auth_enabled() and not client.auth_valid_token()
    with pytest.raises(Exception, match="not the token"):
        client.auth_token("anna", "wrong")
    client.update_auth(client.auth_token("Anna Ärztin", token))
    assert client.auth_valid_token() and client.info()["models"]
    sample = client.next_sample("first", {})
    assert sample["path"] == "" and not MONAILabelClient(server.url).auth_enabled()
    assert (
        requests.get(f"{address}/datastore/image", {"image": sample["id"]}).status_code == 200
    )  # as Slicer fetches it
    other = {"0": "1", "1": "0"}[sample["id"]]
    assert requests.get(f"{address}/datastore/image", {"image": other}).status_code == 401
    mask, _ = client.infer("transunet", sample["id"], {})
    client.save_label(sample["id"], mask)
    assert client.datastore()["objects"][sample["id"]]["labels"]["final"]["info"]["user"] == "Anna Ärztin"

    browser = requests.Session()
    browser.auth = ("anna", token)
    assert browser.get(f"{address}/").status_code == browser.get(f"{address}/ohif/").status_code == 200
    assert browser.get(f"{address}/datastore/?output=train").status_code == 403
    assert requests.get(f"{server.url}/datastore/?output=train").json()[0]["image"] == str(
        (server.studies / f"{sample['id']}.png").resolve()
    )


# --- a login ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def realm():
    """Where MONAI Label asks for its login: a realm as Keycloak answers for one, with a user for each role."""
    import jwt
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    public_key = base64.b64encode(key.public_key().public_bytes(*form)).decode()

    class Realm(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"public_key": public_key, "token_endpoint": f"{address}/token"})

        def do_POST(self) -> None:
            sent = parse_qs(self.rfile.read(int(self.headers["content-length"])).decode())
            name = sent["username"][0]
            if sent.get("password") != ["right"]:
                self.answer(401, {"error": "invalid_grant"})
                return
            claims = {"preferred_username": name, "realm_access": {"roles": [f"monailabel-{name}"]}}
            self.answer(200, {"access_token": jwt.encode(claims, key, "RS256"), "token_type": "bearer"})

        def answer(self, status: int, content: dict) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Realm) as served:
        address = f"http://127.0.0.1:{served.server_port}"
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield address
        served.shutdown()


@pytest.fixture
def with_login(tmp_path: Path, checkpoint: Path, realm: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MONAI_LABEL_AUTH_ENABLE", "true")
    monkeypatch.setenv("MONAI_LABEL_AUTH_REALM_URI", realm)
    (tmp_path / "studies").mkdir()
    running = start(tmp_path / "studies", checkpoint, tmp_path, host="0.0.0.0", path="/openapi.json")
    yield running
    running.stop()


@pytest.mark.server
def test_a_login_takes_the_tokens_place(with_login: Server):
    from monailabel.client import MONAILabelClient

    server = with_login
    assert not (server.studies / ".ultrarefiner" / "token").exists() and "TOKEN" not in server.log
    assert requests.get(f"{server.url}/info/").status_code == 401
    client = MONAILabelClient(server.url)
    assert client.auth_enabled()
    wrong = requests.post(f"{server.url}/auth/token", data={"username": "user", "password": "wrong"})
    assert wrong.status_code == 401 and "does not know" in wrong.json()["detail"]

    def status(name: str, method: str, path: str) -> int:
        token = client.auth_token(name, "right")["access_token"]
        return requests.request(method, server.url + path, headers={"Authorization": f"Bearer {token}"}).status_code

    assert status("user", "GET", "/info/") == 200
    assert status("annotator", "GET", "/datastore/dataset") == 400  # let in: there is no label yet
    assert status("admin", "GET", "/logs/") == 200
    for name in ("user", "annotator"):
        for method, path in [("GET", "/logs/"), ("POST", "/train/transunet"), ("DELETE", "/datastore/image?id=x")]:
            assert status(name, method, path) == 403
    assert requests.get(f"{server.url}/info/", headers={"Host": "evil.example"}).status_code == 421
