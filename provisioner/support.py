"""`contact`: the bundle for whoever helps, mailed only when asked to, and the site's identity where the site wants it.

The bundle is a tar.gz of text files: system.txt (`info system`), the settings files, nodes.json, capsules.json,
modules.json, events.json and changes.json with the newest lines, problem.txt. Everything goes through redact.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from capsulekit.errors import CapsulekitError, UsageError
from capsulekit.files import atomic_write
from capsulekit.sitepaths import SitePaths
from provisioner.redact import HIDDEN, is_secret, redact
from provisioner.registry.registry import Registry
from provisioner.siteconf import SiteConfig, load_site, site_file
from provisioner.siteinfo import system

MOST_LINES = 2000
# Seconds that a mail server may take for each answer.
MAIL_TIMEOUT = 60.0
# Kept back even where redact finds nothing in them: they are a node's or a person's own.
HELD_BACK = {"machine_id", "public_key"}


@dataclass(frozen=True)
class Question:
    """What the person who asks says: all of it may be empty."""

    name: str = ""
    mail: str = ""  # where the answer goes
    problem: str = ""

    @property
    def text(self) -> str:
        """As it stands in the bundle and in the mail."""
        return f"Name: {self.name}\nMail: {self.mail}\n\n{self.problem}\n"


def bundle(paths: SitePaths, registry: Registry, question: Question) -> bytes:
    """The bundle's bytes (tar.gz). Raises UsageError for words that cannot stand in a mail, NotInitialised."""
    if not (question.name.isprintable() and re.fullmatch(r"([^@\s<>,;]+@[^@\s<>,;]+)?", question.mail)):
        raise UsageError("your name must be one line, and the mail address one like me@example.org")
    if not all(char.isprintable() or char in "\n\t" for char in question.problem):
        raise UsageError("the problem must be text, without control characters")
    out = io.BytesIO()
    now = int(time.time())
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, text in _files(paths, registry, question):
            content = text.encode()
            entry = tarfile.TarInfo(f"capsulekit-support/{name}")
            entry.size, entry.mtime, entry.mode = len(content), now, 0o600
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def write_bundle(target: Path, content: bytes) -> None:
    """Write it whole or not at all, for its owner's eyes; raises CapsulekitError where a file is already."""
    if target.exists():
        raise CapsulekitError(f"{target} is there already", hint="name another file with -o")
    if not target.parent.is_dir():
        raise CapsulekitError(f"there is no folder {target.parent} to write the bundle to")
    atomic_write(target, content, 0o600)


def mail_target(paths: SitePaths) -> SiteConfig:
    """The settings, once they say where support mail goes. Raises CapsulekitError when they do not."""
    config = load_site(paths)
    if not config.support_mail:
        raise CapsulekitError(
            "this site has no address for support mail", hint=f'set support_mail = "…" in {site_file(paths)}'
        )
    return config


def send_bundle(config: SiteConfig, name: str, content: bytes, question: Question) -> None:
    """Mail it to the site's support_mail through its mail_server. Raises CapsulekitError naming what went wrong."""
    import smtplib
    from email.message import EmailMessage

    letter = EmailMessage()
    letter["Subject"] = f"capsulekit support: {config.name}"
    letter["From"] = question.mail or f"capsulekit@{config.domain}"
    letter["To"] = config.support_mail
    letter.set_content(redact(question.text))
    letter.add_attachment(content, maintype="application", subtype="gzip", filename=name)
    host, _, port = config.mail_server.partition(":")
    try:
        with smtplib.SMTP(host, int(port or 25), timeout=MAIL_TIMEOUT) as server:
            refused = server.send_message(letter)
    except (OSError, smtplib.SMTPException) as error:
        why = " ".join(str(error).split())
        raise CapsulekitError(
            f"the mail server {config.mail_server} did not take the mail: {why}",
            hint="the bundle is kept; mail_server in site.toml names another server",
        ) from error
    if refused:
        raise CapsulekitError(f"the mail server {config.mail_server} refused {', '.join(refused)}")


def identity(paths: SitePaths) -> dict[str, Any]:
    """What `contact register` writes: the site's name, domain, version, and the sha256 of its CA certificate."""
    from provisioner.pki import ca_path

    config = load_site(paths)
    certificate = ca_path(paths).read_bytes()
    return {
        "site": config.name,
        "domain": config.domain,
        "capsulekit": version("capsulekit"),
        "ca_sha256": hashlib.sha256(certificate).hexdigest(),
        "ca": certificate.decode("ascii"),
    }


def register(paths: SitePaths, *, dry_run: bool = False) -> tuple[Path, dict[str, Any]]:
    """Write the identity to the file the site names; (where, what). Raises CapsulekitError when it names none."""
    config = load_site(paths)
    if not config.register_file:
        raise CapsulekitError(
            "this site does not say where it registers", hint=f'set register_file = "/…" in {site_file(paths)}'
        )
    target, what = Path(config.register_file), identity(paths)
    if not target.parent.is_dir():
        raise CapsulekitError(f"there is no folder {target.parent} to register in")
    if not dry_run:
        atomic_write(target, (json.dumps(what, indent=2, sort_keys=True) + "\n").encode(), 0o644)
    return target, what


def _files(paths: SitePaths, registry: Registry, question: Question) -> Iterator[tuple[str, str]]:
    """(name, text) of each of the bundle's files, without secrets."""
    yield "problem.txt", redact(question.text)
    yield "system.txt", redact("".join(f"{name}: {value}\n" for name, value in system(paths, registry)))
    for file in (site_file(paths), paths.config / "defaults.toml"):
        if file.exists():
            yield file.name, redact(file.read_text(encoding="utf-8", errors="replace"))
    yield "nodes.json", _json([asdict(node) for node in registry.nodes()])
    yield "capsules.json", _json([asdict(capsule) for capsule in registry.capsules()])
    yield "modules.json", _json(registry.roles())
    events = registry.db.rows(
        "SELECT nodeid, time, kind, state, step, status, seconds, detail FROM events ORDER BY id DESC LIMIT ?",
        (MOST_LINES,),
    )
    yield "events.json", _json([dict(row) for row in reversed(events)])
    changes = registry.changes(limit=MOST_LINES)
    yield (
        "changes.json",
        _json([asdict(one) | ({"old": HIDDEN, "new": HIDDEN} if is_secret(one.key) else {}) for one in changes]),
    )


def _json(value: Any) -> str:
    return json.dumps(_clean(value), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _clean(value: Any) -> Any:
    """The value with every text in it redacted: done before it is written, so that it stays JSON."""
    if isinstance(value, dict):
        return {key: _clean(inner) for key, inner in value.items() if key not in HELD_BACK}
    if isinstance(value, list):
        return [_clean(inner) for inner in value]
    return redact(value) if isinstance(value, str) else value
