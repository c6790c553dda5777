"""The written protocol and the application agree: neither has an address that the other lacks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from provisioner.server.app import ROUTES

DOCUMENT = Path(__file__).parents[2] / "docs" / "reference" / "openapi.yaml"


@pytest.fixture(scope="module")
def written() -> dict[tuple[str, str], dict[str, Any]]:
    paths = yaml.safe_load(DOCUMENT.read_text())["paths"]
    return {(method.upper(), path): told for path, methods in paths.items() for method, told in methods.items()}


def test_every_route_is_written_down_and_everything_written_exists(written: dict[tuple[str, str], Any]) -> None:
    assert set(written) == {(route.method, route.path) for route in ROUTES}


def test_ports_and_sessions_are_as_written(written: dict[tuple[str, str], Any]) -> None:
    for route in ROUTES:
        told = written[route.method, route.path]
        assert set(told["x-ports"]) == route.ports, route.path
        assert ("security" in told) == route.session, route.path
        assert ("401" in told["responses"]) == route.session, route.path


def test_what_is_secret_is_never_on_the_plain_port() -> None:
    for route in ROUTES:
        if route.path.startswith("/v1/") and route.path != "/v1/boot.ipxe":
            assert route.ports == {"tls"}
            assert route.session or route.path in ("/v1/session", "/v1/ticket")


def test_every_reference_in_the_document_leads_somewhere() -> None:
    text = DOCUMENT.read_text()
    document = yaml.safe_load(text)
    for reference in set(re.findall(r'"#/([^"]+)"', text)):
        here = document
        for step in reference.split("/"):
            here = here[step]
