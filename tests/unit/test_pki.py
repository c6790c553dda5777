"""The site CA: made once, never replaced in silence, and good enough for curl and OpenSSL."""

from __future__ import annotations

import ssl
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from capsulekit.errors import CapsulekitError
from capsulekit.sitepaths import SitePaths
from provisioner.pki import ca_path, ensure_ca, pki_dir, server_cert


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    return SitePaths(tmp_path / "config", tmp_path / "state")


def test_a_second_call_keeps_the_ca(paths: SitePaths) -> None:
    ensure_ca(paths)
    before = ca_path(paths).read_bytes()
    ensure_ca(paths)
    assert ca_path(paths).read_bytes() == before


def test_keys_are_readable_by_their_owner_only(paths: SitePaths) -> None:
    server_cert(paths, "10.0.0.1", [])
    modes = {p.name: p.stat().st_mode & 0o777 for p in pki_dir(paths).glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600}


def test_the_certificate_is_valid_on_any_clock_a_node_may_have(paths: SitePaths) -> None:
    cert_file, _ = server_cert(paths, "10.0.0.1", [])
    for file in (ca_path(paths), cert_file):
        cert = x509.load_pem_x509_certificate(file.read_bytes())
        assert cert.not_valid_before_utc == datetime(1970, 1, 1, tzinfo=UTC)
        assert cert.not_valid_after_utc == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_the_server_certificate_names_address_and_hosts(paths: SitePaths) -> None:
    cert_file, _ = server_cert(paths, "10.0.0.1", ["master", "master.site"])
    cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
    san = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(a) for a in san.get_values_for_type(x509.IPAddress)] == ["10.0.0.1"]
    assert san.get_values_for_type(x509.DNSName) == ["master", "master.site"]


def test_the_server_certificate_changes_only_with_its_names(paths: SitePaths) -> None:
    first = server_cert(paths, "10.0.0.1", ["m"])[0].read_bytes()
    assert server_cert(paths, "10.0.0.1", ["m"])[0].read_bytes() == first
    assert server_cert(paths, "10.0.0.2", ["m"])[0].read_bytes() != first


def test_openssl_accepts_the_chain_in_strict_mode(paths: SitePaths) -> None:
    cert_file, key_file = server_cert(paths, "10.0.0.1", ["m"])
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert_file, key_file)
    client = ssl.create_default_context(cafile=str(ca_path(paths)))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname="10.0.0.1"),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() == "TLSv1.3"


def test_a_lost_ca_key_is_an_error_that_says_the_way_out(paths: SitePaths) -> None:
    ensure_ca(paths)
    (pki_dir(paths) / "ca.key").unlink()
    with pytest.raises(CapsulekitError, match=r"missing: .*ca\.key") as caught:
        ensure_ca(paths)
    assert "backup" in (caught.value.hint or "")


def test_a_foreign_ca_key_is_refused(paths: SitePaths, tmp_path: Path) -> None:
    ensure_ca(paths)
    other = SitePaths(tmp_path / "other", tmp_path / "otherstate")
    ensure_ca(other)
    (pki_dir(paths) / "ca.key").write_bytes((pki_dir(other) / "ca.key").read_bytes())
    with pytest.raises(CapsulekitError, match="does not belong"):
        ensure_ca(paths)
