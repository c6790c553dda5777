"""The site's own certificate authority: nodes pin it, so nobody else's certificate opens the provisioner's TLS.

Validity is for all time, because a node's clock may be anywhere at its first boot.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from capsulekit.errors import CapsulekitError
from capsulekit.files import atomic_write, exclusive_lock
from capsulekit.sitepaths import SitePaths

NOT_BEFORE = datetime(1970, 1, 1, tzinfo=UTC)
NOT_AFTER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280, 4.1.2.5: "no well-defined expiration date"


def pki_dir(paths: SitePaths) -> Path:
    """Folder of the CA and server certificates and keys."""
    return paths.config / "pki"


def ca_path(paths: SitePaths) -> Path:
    """The CA certificate (PEM), which goes into site.img."""
    return pki_dir(paths) / "ca.pem"


def ensure_ca(paths: SitePaths) -> None:
    """Make the site's CA (EC P-256) unless there is one; an existing one is never replaced.

    Raises CapsulekitError when the certificate is there and its key is gone or does not fit.
    """
    folder = pki_dir(paths)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with exclusive_lock(folder / ".lock"):
        if ca_path(paths).exists():
            _load_ca(paths)
            return
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "capsulekit site CA")])
        cert = (
            _builder(name, name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        # The key first: a certificate without its key would be a CA that can never sign.
        _write_key(folder / "ca.key", key)
        atomic_write(ca_path(paths), cert.public_bytes(Encoding.PEM))


def server_cert(paths: SitePaths, address: str, names: Iterable[str]) -> tuple[Path, Path]:
    """The (certificate, key) files of the server for an IP ``address`` (no prefix) and DNS ``names``.

    Kept between starts; made anew when the address, the names or the CA changed. Raises CapsulekitError as ensure_ca.
    """
    ensure_ca(paths)
    folder = pki_dir(paths)
    cert_file, key_file = folder / "server.pem", folder / "server.key"
    wanted: list[x509.GeneralName] = [x509.IPAddress(ipaddress.ip_address(address))]
    wanted += [x509.DNSName(name) for name in sorted(set(names)) if name]
    with exclusive_lock(folder / ".lock"):
        ca_cert, ca_key = _load_ca(paths)
        if not _still_good(cert_file, key_file, ca_cert, wanted):
            key = ec.generate_private_key(ec.SECP256R1())
            subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
            cert = (
                _builder(subject, ca_cert.subject, key.public_key())
                .add_extension(x509.SubjectAlternativeName(wanted), critical=False)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(_usage(signs_certificates=False), critical=True)
                .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
                .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
                .sign(ca_key, hashes.SHA256())
            )
            _write_key(key_file, key)
            atomic_write(cert_file, cert.public_bytes(Encoding.PEM))
    return cert_file, key_file


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    atomic_write(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)


def _load_ca(paths: SitePaths) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA's certificate and key; CapsulekitError when they are unreadable or not a pair."""
    key_file = pki_dir(paths) / "ca.key"
    hint = f"restore {pki_dir(paths)} from a backup, or remove it to make a new CA (running nodes must then reboot)"
    try:
        cert = x509.load_pem_x509_certificate(ca_path(paths).read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
    except FileNotFoundError as gone:
        raise CapsulekitError(f"the site CA's file is missing: {gone.filename}", hint=hint) from gone
    except (ValueError, TypeError) as bad:
        raise CapsulekitError(f"the site CA in {pki_dir(paths)} is damaged: {bad}", hint=hint) from bad
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != cert.public_key():
        raise CapsulekitError(f"the site CA's key {key_file} does not belong to its certificate", hint=hint)
    return cert, key


def _still_good(cert_file: Path, key_file: Path, ca: x509.Certificate, wanted: list[x509.GeneralName]) -> bool:
    """True when the server certificate is a pair with its key, signed by ``ca`` and names exactly ``wanted``."""
    try:
        cert = x509.load_pem_x509_certificate(cert_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
        names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        cert.verify_directly_issued_by(ca)
    except (OSError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
        return False
    return key.public_key() == cert.public_key() and list(names) == wanted
