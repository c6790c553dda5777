"""What all tests share: in CI nothing may skip; elsewhere a skip says what is missing."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from databases import postgres, registry_place  # noqa: F401 - fixtures for all


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """In CI a skip is a failure: a promise that was not checked must not look kept."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.skipped and os.environ.get("CI") and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may skip: {report.longrepr}"
