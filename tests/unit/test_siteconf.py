"""The site's servers: which mirrors and which order site.toml takes, and that stage 1 takes the same ones."""

from __future__ import annotations

import subprocess
from dataclasses import replace

import pytest
from node_shell import LIB

from capsulekit.errors import CapsulekitError
from provisioner.siteconf import SiteConfig, check_site, is_mirror

SITE = SiteConfig(interface="eth0", address="10.0.0.1/24", range_start="10.0.0.10", range_end="10.0.0.20")
GOOD = ["http://10.0.0.9", "http://10.0.0.9:8080/a/b_c~d", "https://cache.site.example", "http://[fd00::1]:80/x"]
BAD = ["ftp://10.0.0.9", "http://", "http://10.0.0.9/", "http://10.0.0.9:0", "http://10.0.0.9:65536", "http://a/../b",
       "http://user@a", "http://a?x", "http://a#x", 'http://a"b', "http://a\\b", "http://a'b", "http://a;b", "http://$(x)",
       "http://-a", "10.0.0.9", "http://a//b", "http://" + "a" * 300]  # fmt: skip


def test_mirrors_and_order_are_taken() -> None:
    check_site(replace(SITE, mirrors=" ".join(GOOD), order="listed"), "site.toml")
    assert replace(SITE, mirrors=" ".join(GOOD)).mirror_urls == tuple(GOOD)
    assert SITE.mirror_urls == ()


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_base_address_is_named(url: str) -> None:
    with pytest.raises(CapsulekitError, match=r"site\.toml: mirrors .*not http"):
        check_site(replace(SITE, mirrors=f"{GOOD[0]} {url}"), "site.toml")


@pytest.mark.parametrize("order", ["", "random", "Listed"])
def test_an_unknown_order_is_named(order: str) -> None:
    with pytest.raises(CapsulekitError, match=r"site\.toml: order .* is neither shuffled nor listed"):
        check_site(replace(SITE, order=order), "site.toml")


@pytest.mark.parametrize("shell", [["busybox", "sh"], ["dash"]])
@pytest.mark.parametrize("url", GOOD)
def test_stage_1_takes_every_mirror_that_the_site_takes(url: str, shell: list[str]) -> None:
    assert is_mirror(url)
    subprocess.run([*shell, "-c", f'. {LIB}/say.sh; is_url "$1"', "sh", url], check=True, timeout=30)


@pytest.mark.parametrize("days", [0, -1])
def test_history_is_kept_for_a_day_at_least(days: int) -> None:
    with pytest.raises(CapsulekitError, match=r"site\.toml: history_days .* is not a number of days"):
        check_site(replace(SITE, history_days=days), "site.toml")


@pytest.mark.parametrize("registry", ["mysql://u@h/d", "postgresql://u:secret@h/d", "postgresql://u@h", "a\nb"])
def test_a_registry_that_cannot_be_is_refused(registry: str) -> None:
    with pytest.raises(CapsulekitError) as caught:
        check_site(replace(SITE, registry=registry), "site.toml")
    assert "secret" not in str(caught.value)
