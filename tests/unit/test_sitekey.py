"""The site's signing key: made once, mended where it can be, never replaced behind anybody's back."""

from __future__ import annotations

from pathlib import Path

import pytest

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.sitekey import ensure_site_key, site_key_path, site_public


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "etc", tmp_path / "var")


def test_it_is_made_once_and_only_root_reads_it(paths: SitePaths) -> None:
    assert site_public(paths) is None
    key = ensure_site_key(paths)
    assert ensure_site_key(paths).public == key.public == site_public(paths)
    assert site_key_path(paths).stat().st_mode & 0o777 == 0o600


def test_a_public_half_that_is_missing_or_another_ones_is_made_again(paths: SitePaths) -> None:
    key, public = ensure_site_key(paths), site_key_path(paths).with_name("site.key.pub")
    for damage in (public.unlink, lambda: public.write_text("another")):
        damage()
        assert ensure_site_key(paths).public == key.public and public.read_text() == key.public.file_text


def test_a_lost_key_is_not_replaced_in_silence(paths: SitePaths) -> None:
    ensure_site_key(paths)
    site_key_path(paths).unlink()
    with pytest.raises(CapsulekitError, match="is gone") as caught:
        ensure_site_key(paths)
    assert "put it back from a backup" in str(caught.value.hint) and not site_key_path(paths).exists()
    site_key_path(paths).with_name("site.key.pub").unlink()
    ensure_site_key(paths)
