"""The viewer's files: MONAI Label's own, and a dist that was built for a server's root."""

from __future__ import annotations

from pathlib import Path

import pytest
from app_server import save_tiny_system, start
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.routes.ohif import OhifRoutes
from ultrarefiner_monai.config import ConfigError

PAGE = (
    '<head><script>window.PUBLIC_URL="/"</script><link href="/app.bundle.css" rel="stylesheet">'
    '<meta name="msapplication-config" content="/assets/x.xml"><a href="//elsewhere.example/">a</a>'
    '<script src="/app.bundle.0123456789abcdef.js"></script></head>'
)


@pytest.fixture
def dist(tmp_path: Path) -> Path:
    folder = tmp_path / "dist"
    folder.mkdir()
    (folder / "index.html").write_text(PAGE)
    (folder / "app.bundle.css").write_text("a{src:url(/x.woff2)} b{src:url(data:font/woff2;base64,AA)}")
    (folder / "app.bundle.0123456789abcdef.js").write_text('x.p = "/"; n.p="/"; y.p = "/other";')
    (folder / "app-config.js").write_text("window.config = {dataSources: ['https://pacs.example']}")
    (folder / "0123456789abcdef.wasm").write_bytes(b"wasm")
    (tmp_path / "secret.js").write_text("secret")
    return folder


def served(folder: str) -> TestClient:
    server = FastAPI()
    for method, path, route in OhifRoutes(folder).routes():
        server.add_api_route(path, route, methods=[method])
    return TestClient(server)


def test_a_dist_for_a_servers_root_is_moved_below_ohif(dist: Path) -> None:
    client = served(str(dist))
    page = client.get("/ohif/ultrarefiner?StudyInstanceUIDs=1.2").text
    assert page.count('"/ohif/') == 4 and page.count('"/') == 5 and 'href="//elsewhere.example/"' in page
    assert client.get("/ohif/app.bundle.css").text == "a{src:url(/ohif/x.woff2)} b{src:url(data:font/woff2;base64,AA)}"
    script = client.get("/ohif/app.bundle.0123456789abcdef.js")
    assert script.text == 'x.p = "/ohif/"; n.p="/ohif/"; y.p = "/other";'
    assert "no-cache" in script.headers["Cache-Control"], "it is another text than its name tells"
    again = client.get("/ohif/app.bundle.0123456789abcdef.js", headers={"If-None-Match": script.headers["ETag"]})
    assert again.status_code == 304 and not again.content
    plain = client.get("/ohif/0123456789abcdef.wasm").headers["Cache-Control"]
    assert "immutable" in plain, "its name changes with its content"


def test_a_dist_that_is_replaced_is_seen_at_once(dist: Path) -> None:
    client = served(str(dist))
    assert client.get("/ohif/").text
    (dist / "index.html").write_text(PAGE + '<link href="/new.css">')
    assert '"/ohif/new.css"' in client.get("/ohif/").text


def test_a_dist_that_lies_below_ohif_goes_out_as_it_is(dist: Path) -> None:
    page = PAGE.replace('"/', '"/ohif/')
    (dist / "index.html").write_text(page)
    client = served(str(dist))
    assert client.get("/ohif/").text == page
    assert client.get("/ohif/app.bundle.css").text.startswith("a{src:url(/x.woff2)}")


@pytest.mark.parametrize("own", [True, False])
def test_the_configuration_asks_this_server_only(dist: Path, own: bool) -> None:
    text = served("" if own else str(dist)).get("/ohif/app-config.js").text
    assert "/proxy/dicom/" in text and "UltraRefiner" in text and "pacs.example" not in text


def test_nothing_outside_the_folder_is_handed_out(dist: Path) -> None:
    client = served(str(dist))
    (dist / "link.js").symlink_to(dist.parent / "secret.js")
    for path in ("..%2Fsecret.js", "%2e%2e/secret.js", "link.js", "a%00b"):
        assert "secret" not in client.get(f"/ohif/{path}").text


def test_a_folder_that_is_no_ohif_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no built OHIF"):
        OhifRoutes(str(tmp_path))


@pytest.mark.server
def test_the_server_does_not_start_with_it(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    with pytest.raises(RuntimeError, match="holds no built OHIF"):
        start(tmp_path / "studies", save_tiny_system(tmp_path / "tiny.safetensors"), tmp_path, ohif=tmp_path)
