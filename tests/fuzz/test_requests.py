"""Requests that no client sends, to the real server: what it cannot use is refused with 4xx, and it goes on."""

from __future__ import annotations

import time

import pytest
import requests
import schemathesis
from hostile import make, send
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(400)]

HOSTILE = 450  # about ten for each address
EXAMPLES = 12  # of each operation of the schema


def alive(server) -> None:
    begin = time.monotonic()
    assert requests.get(f"{server.url}/info/", timeout=30).status_code == 200
    assert time.monotonic() - begin < 10


def test_hostile_requests(server):
    faults = []
    for number in range(HOSTILE):
        request = make(number)
        status = send(server.url, request)
        if status >= 500:
            faults.append(f"{number}: {status} for {request}")
    requests.delete(f"{server.url}/train/")
    requests.delete(f"{server.url}/batch/infer")
    assert not faults, "\n".join(faults[:20])
    alive(server)


def test_what_the_schema_allows_and_what_it_does_not(server):
    """Schemathesis: values that fit /openapi.json, for every operation that it names."""
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 25
    faults: list[str] = []
    for operation in operations:
        _ask(operation, server.url, faults)
        if operation.method == "post":
            requests.delete(f"{server.url}/train/")
            requests.delete(f"{server.url}/batch/infer")
    assert not faults, "\n".join(faults[:20])
    alive(server)


def _ask(operation, url: str, faults: list[str]) -> None:
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def ask(case):
        try:
            answer = case.call(base_url=url, timeout=60)
        except requests.Timeout:
            faults.append(f"no answer: {case.as_curl_command()}"[:900])
        except (requests.RequestException, ValueError, UnicodeError):  # what no HTTP client sends
            pass
        else:
            if answer.status_code >= 500:
                faults.append(f"{answer.status_code}: {case.as_curl_command()} -> {answer.text[:200]}"[:900])

    ask()


def test_the_schema_tells_of_what_answers(server):
    paths = requests.get(f"{server.url}/openapi.json").json()["paths"]
    save = paths["/datastore/label"]["put"]
    assert {p["name"] for p in save["parameters"]} >= {"image", "tag"} and "multipart/form-data" in str(
        save["requestBody"]
    )
    assert "/infer/wsi_v2/{model}" not in paths and "put" not in paths.get("/model/{model}", {}), "they only refuse"
    assert {p["name"] for p in paths["/infer/{model}"]["post"]["parameters"]} >= {"frame"}, "not MONAI Label's own"
