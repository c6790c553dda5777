"""`contact`: a bundle without secrets, mail only when asked, an identity where the site wants it. Real SMTP."""

from __future__ import annotations

import email
import io
import json
import socketserver
import stat
import tarfile
import threading
from collections.abc import Iterator
from email import policy
from pathlib import Path

import pytest
from capsulekit_cli import cli

from capsulekit.sitepaths import SitePaths
from provisioner.initsite import InitRequest, init_site
from provisioner.redact import is_secret, redact
from provisioner.registry.defaults import Defaults
from provisioner.registry.registry import open_registry

MAC = "52:54:00:00:00:01"
SECRETS = ("hunter2", "pa55phrase", "$6$salt$hashhash", "MIIEvQIBADANBg")


class MailServer(socketserver.ThreadingTCPServer):
    """The few words of SMTP (RFC 5321) that a mail needs; keeps what came."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, answer: bytes = b"250 ok") -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer
        self.mails: list[bytes] = []

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Handler(socketserver.StreamRequestHandler):
    server: MailServer

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        while line := self.rfile.readline():
            word = line.split()[0].upper() if line.split() else b""
            if word == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                self.server.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")))
            if word == b"QUIT":
                self.wfile.write(b"221 bye\r\n")
                return
            self.wfile.write((self.server.answer if word == b"RCPT" else b"250 ok") + b"\r\n")


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SitePaths:
    """A site with secrets in every corner that an admin could put one into."""
    made = SitePaths(tmp_path / "etc", tmp_path / "var")
    init_site(made, InitRequest("ck0", "10.0.0.1/16", "10.0.1.1-10.0.1.250", kargs="quiet bmc.password=hunter2"))
    registry = open_registry(made)
    registry.add_node(MAC, defaults=Defaults())
    registry.attribute_names = ("bmc_password",)
    registry.set_nodes("bmc_password", "pa55phrase", [MAC])
    registry.set_nodes("desc", "token: 'pa55phrase' root:$6$salt$hashhash:19000", [MAC])
    registry.record_state(MAC, "init", "10.0.1.1")
    registry.record_step(MAC, "x", "failed", 1.0, "-----BEGIN PRIVATE KEY----- MIIEvQIBADANBg")
    registry.close()
    monkeypatch.setenv("CAPSULEKIT_CONFIG_DIR", str(made.config))
    monkeypatch.setenv("CAPSULEKIT_STATE_DIR", str(made.state))
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    return made


def settings(paths: SitePaths, **values: str) -> None:
    file = paths.config / "site.toml"
    text = file.read_text()
    for key, value in values.items():
        lines = [f'{key} = "{value}"' if line.startswith(f"{key} = ") else line for line in text.splitlines()]
        text = "\n".join(lines) + "\n"
    file.write_text(text)


def contents(bundle: bytes) -> dict[str, str]:
    with tarfile.open(fileobj=io.BytesIO(bundle)) as archive:
        found = {}
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None
            found[entry.name.partition("/")[2]] = file.read().decode()
        return found


def test_the_bundle_tells_what_is_needed_and_no_secret(paths: SitePaths) -> None:
    done = cli("contact", "support", "-o", "b.tar.gz", "--name", "Ada", "--problem", "it does\nnot boot")
    assert (done.status, done.err) == (0, "") and done.out.startswith("Wrote b.tar.gz")
    assert stat.S_IMODE(Path("b.tar.gz").stat().st_mode) == 0o600
    found = contents(Path("b.tar.gz").read_bytes())
    assert set(found) == {
        "problem.txt", "system.txt", "site.toml", "defaults.toml", "nodes.json", "capsules.json", "modules.json",
        "events.json", "changes.json",
    }  # fmt: skip
    whole = "\n".join(found.values())
    assert not [secret for secret in SECRETS if secret in whole]
    assert "Name: Ada" in whole and "it does\nnot boot" in whole and MAC in found["nodes.json"]
    assert '"step": "x"' in found["events.json"] and "quiet" in found["site.toml"]
    assert all(json.loads(text) is not None for name, text in found.items() if name.endswith(".json"))


def test_keys_and_certificates_of_the_site_are_not_in_it(paths: SitePaths) -> None:
    cli("contact", "support", "-o", "b.tar.gz")
    whole = "".join(contents(Path("b.tar.gz").read_bytes()).values())
    for file in [*paths.config.rglob("*"), *paths.state.rglob("*")]:
        if file.is_file() and (b"PRIVATE KEY" in file.read_bytes() or "key" in file.name):
            lines = [line for line in file.read_bytes().splitlines() if len(line) > 30]
            assert not [line for line in lines if line.decode(errors="replace") in whole], file


def test_nothing_is_sent_unasked(paths: SitePaths, mail: MailServer) -> None:
    settings(paths, support_mail="help@example.org", mail_server=mail.place)
    for words in (["-o", "a.tgz"], ["-o", "b.tgz", "-y"], ["-o", "c.tgz", "--mail", "-n"], ["-o", "d.tgz", "--mail"],
                  ["-o", "e.tgz", "--mail", "-y", "--dry-run"]):  # fmt: skip
        assert cli("contact", "support", *words).status == 0
    assert mail.mails == []


def test_asked_to_it_is_mailed_to_the_sites_address(paths: SitePaths, mail: MailServer) -> None:
    settings(paths, support_mail="help@example.org", mail_server=mail.place)
    done = cli("contact", "support", "--mail", "-y", "-o", "b.tgz", "--from", "ada@example.org", "--problem", "slow")
    assert (done.status, done.err) == (0, "") and "Mailed to help@example.org" in done.out
    letter = email.message_from_bytes(mail.mails[0], policy=policy.default)
    assert (letter["To"], letter["From"]) == ("help@example.org", "ada@example.org")
    (attached,) = letter.iter_attachments()
    assert attached.get_content() == Path("b.tgz").read_bytes()


def test_a_mail_that_nobody_takes_is_said_and_the_bundle_kept(paths: SitePaths, mail: MailServer) -> None:
    settings(paths, support_mail="help@example.org", mail_server=mail.place)
    mail.answer = b"550 no such user"
    done = cli("contact", "support", "--mail", "-y", "-o", "b.tgz")
    assert done.status == 1 and done.err.startswith("ERROR: the mail server") and "550" in done.err
    assert Path("b.tgz").exists()
    settings(paths, mail_server="127.0.0.1:1")
    assert "did not take the mail" in cli("contact", "support", "--mail", "-y", "-o", "c.tgz").err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--mail"], "no address for support mail"),
        (["-o", "none/b.tgz"], "there is no folder none"),
        (["-o", "there.tgz"], "is there already"),
        (["--from", "a@b\nBcc: c@d"], "mail address"),
        (["--name", "a\nb"], "one line"),
    ],
)
def test_what_cannot_be_changes_nothing(paths: SitePaths, words: list[str], said: str) -> None:
    Path("there.tgz").write_text("kept")
    before = sorted(Path().rglob("*"))
    done = cli("contact", "support", *words)
    assert done.status in (1, 2) and said in done.err
    after = [path for path in sorted(Path().rglob("*")) if not path.name.endswith(("-wal", "-shm"))]
    assert after == [path for path in before if not path.name.endswith(("-wal", "-shm"))]
    assert Path("there.tgz").read_text() == "kept"


def test_register_writes_the_identity_where_the_site_says_and_nowhere_else(paths: SitePaths, tmp_path: Path) -> None:
    done = cli("contact", "register")
    assert done.status == 1 and "register_file" in done.err
    settings(paths, register_file=str(tmp_path / "site.json"))
    assert cli("contact", "register", "--dry-run").status == 0 and not (tmp_path / "site.json").exists()
    assert cli("contact", "register").status == 0
    written = json.loads((tmp_path / "site.json").read_text())
    assert set(written) == {"site", "domain", "capsulekit", "ca_sha256", "ca"}
    assert "PRIVATE" not in written["ca"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://ck:hunter2@db/ck", "postgresql://ck:(hidden)@db/ck"),
        ("postgresql://ck@db/ck?passfile=/etc/pw", "postgresql://ck@db/ck?passfile=/etc/pw"),
        ("ipmi.password=hunter2 quiet", "ipmi.password=(hidden) quiet"),
        ('token = "hunter2"', "token = (hidden)"),
        ("Passphrase: hunter2", "Passphrase: (hidden)"),
        ("root:$6$a$b:1", "root:(hidden):1"),
        ("https://host:8010/x", "https://host:8010/x"),
        ("the passwdfile module", "the passwdfile module"),
        ("console=ttyS0,115200", "console=ttyS0,115200"),
    ],
)  # fmt: skip
def test_redact_hides_secrets_and_nothing_else(text: str, shown: str) -> None:
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("key", "secret"),
    [("password", True), ("db_passwd", True), ("api_token", True), ("passfile", False), ("http_port", False)],
)
def test_a_setting_is_a_secret_by_its_name(key: str, secret: bool) -> None:
    assert is_secret(key) is secret
