"""Every command that reads or writes the registry says the same and does the same in SQLite and in PostgreSQL."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_sysfs as fake
import pytest
from capsulekit_cli import cli
from command_tree import leaves
from databases import PgServer
from edited_capsule import edited
from small_capsule import AUTHOR, CONTENT, small_capsule

from capsulekit.sitepaths import SitePaths
from provisioner.catalog import site_catalog
from provisioner.catalog.pmod import write_pmod
from provisioner.devices import Device
from provisioner.flattoml import update_flat
from provisioner.registry.registry import open_registry
from provisioner.server.desk import Desk
from provisioner.siteconf import load_site
from provisioner.vnfs.store import VnfsStore

NOW = 1_800_000_000.0
TINY = "tiny-1.0.amd64"
TREE = b"capsulekit-tree 1\nnode\nupper\netc/x f 0644 0 0 1 -\nend\n" * 40
NIC = Device(fake.E1000, "e1000", "e1000", boot=True)
MODULE = 'name = "motd"\nversion = "1"\nsummary = "Says it."\nstates = ["init"]\nroles = ["init/all"]\n'
# What these do has nothing to do with the registry, or goes on until it is ended: tests/integration/test_two_masters.py
# and test_server*.py run `serve` and its protocol on both.
OTHERS = re.compile(
    "(build|completion|diff|inspect|keygen|lock|new|pack|prove|rebuild|verify|why|module-pack|simulate|reload|serve"
    "|serve-reload|import-insert-ethers|(trust|stage1)-.*|configure-(?!hosts|database).*)"
)
# A command a line; {site} is the folder of everything. Lines with a ! are what the nodes and their master do between.
SCRIPT = """
init --interface ck0 --address 10.0.0.1/16 --range 10.0.200.1-10.0.200.250 --domain site.test
! attributes
trust add {site}/author.pub
-y vnfs import {site}/tiny.vnfs
-y vnfs import {site}/tiny.vnfs
vnfs clone tiny copy
vnfs list
vnfs list --json
vnfs verify tiny
vnfs export tiny {site}/out.vnfs
mount nowhere
umount copy
close copy
shell nowhere -- true
vnfs mount nowhere
vnfs umount tiny
vnfs close nowhere
-y vnfs configure tiny
vnfs history tiny
vnfs rollback tiny
! edited
! edited
vnfs history tiny
vnfs history copy -v
vnfs rollback tiny --dry-run
vnfs rollback tiny -m why
vnfs rollback tiny --to 3 --json
vnfs history tiny --json
vnfs export tiny {site}/old.vnfs --generation 2
vnfs delete tiny --generation 2 --dry-run
-y vnfs delete tiny --generation 1
-y vnfs delete tiny --generation 2
vnfs rollback tiny --to 2
-y vnfs delete tiny --keep 1
vnfs verify tiny copy --json
vnfs kernel tiny --from nobody
vnfs rebuild nobody
node add 52:54:00:00:00:01
node add 52-54-00-00-00-02 --dry-run
node add 52:54:00:00:00:02 Alpha.west
node add 52:54:00:00:00:01 twice
node add 52:54:00:00:00:03 alpha
import csv {site}/nodes.csv
import csv {site}/nodes.csv
import csv {site}/nodes.csv --dry-run
import hosts {site}/hosts
import ethers {site}/ethers
import isc-dhcpd {site}/dhcpd.conf
import dnsmasq-leases {site}/leases
import warewulf {site}/nodes.conf
import perceus {site}/perceus
node list
-i node list
node list n*!n0000
node list nobody n0000
node set vnfs tiny n*
node set address 10.0.0.1 n0000
node set address 10.0.3.9 n0000
node set address 10.0.3.9 Alpha
node set hostname ALPHA n0000
node set hostname beta Alpha
node set group g2 n0000 beta
node set kargs quiet n0000
node set enabled no beta
node set rack 7 n0000
node set bmc 10.9.0.1 beta
node set rack "" n0000 --dry-run
node set colour red n0000
module import {site}/motd.pmod
module list
module activate motd init/node/n0000
module activate hostname
module activate hostname init/nowhere/x
module summary
module states
module show --for n0000
module show motd
module deactivate hostname
module delete motd -y
! reports
node status
node status --json
node show n0000
node show --json
node summary
group summary
group list
group nodelist g2
group set kargs splash g2
group set groupname g3 g2
group show
group status
node drift
! drift
node drift
-y vnfs livesync copy
node console-log n0000 beta
node console-log --all --json n0000
node accept beta
-y node replace n0000 lent1
-y node replace n0000 lent1
-y node delete rain1
-n node delete beta
group delete g3 -n
group delete g1 -y
configure hosts --dry-run
serve status
info about
info config statedir
info system
contact support -o {site}/bundle.tar.gz
contact register
registry export
registry export --format json
registry backup {site}/backup
-y node delete *
-y registry restore {site}/backup
registry export
-y vnfs delete copy
-y vnfs delete tiny
-y vnfs delete tiny --force
node list --json
""".strip().splitlines()
# The slips among them, which both must refuse in the same words.
REFUSED = [
    "mount nowhere",
    "umount copy",
    "close copy",
    "shell nowhere -- true",
    "vnfs mount nowhere",
    "vnfs umount tiny",
    "vnfs close nowhere",
    "-y vnfs configure tiny",
    "vnfs rollback tiny",
    "-y vnfs delete tiny --generation 1",
    "vnfs rollback tiny --to 2",
    "vnfs kernel tiny --from nobody",
    "vnfs rebuild nobody",
    "node add 52:54:00:00:00:01 twice",
    "node add 52:54:00:00:00:03 alpha",
    "node list nobody n0000",
    "node set address 10.0.0.1 n0000",
    "node set address 10.0.3.9 Alpha",
    "node set hostname ALPHA n0000",
    "node set colour red n0000",
    "module activate hostname init/nowhere/x",
    "-y vnfs livesync copy",
    "-y node replace n0000 lent1",
    "-n node delete beta",
    "group delete g3 -n",
    "serve status",
    "-y vnfs delete tiny",
]
FILES = {
    "nodes.csv": "mac,name,group,address\n52:54:00:00:01:01,csv1,g1,10.0.3.1\n52:54:00:00:01:02,csv2,g1,10.0.3.2\n",
    "hosts": "10.0.3.5 n0000.site.test n0000\n10.0.3.250 printer\n",
    "ethers": "52:54:00:00:02:01 eth1\n52:54:00:00:02:02 10.0.3.20\n",
    "dhcpd.conf": "group { host isc1 { hardware ethernet 52:54:00:00:03:01; fixed-address 10.0.3.31; } }\n",
    "leases": "1800000600 52:54:00:00:04:01 10.0.200.7 lent1 *\n",
    "nodes.conf": "nodes:\n  rain1:\n    network devices: {default: {hwaddr: 52:54:00:00:05:01, ipaddr: 10.0.3.51}}\n",
    "perceus/defaults.conf": "Node Name = n####\nGroup Name = cluster\n",
    "author.pub": AUTHOR.public.file_text,
}


@contextmanager
def made_site(folder: Path, place: str) -> Iterator[SitePaths]:
    """A site not yet initialised, with all that its commands will read."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    small_capsule(folder / "tiny.vnfs", CONTENT)
    write_pmod(folder / "motd.pmod", {"module.toml": MODULE.encode(), "init/10-say.sh": b"#!/bin/sh\necho\n"}, AUTHOR)
    (folder / "etc").mkdir()
    (folder / "etc/site.toml").write_text(f'registry = "{place}"\n')
    yield SitePaths(folder / "etc", folder / "var")


def between(what: str, paths: SitePaths) -> None:
    """What nodes report and the master keeps."""
    if what == "attributes":
        update_flat(paths.config / "site.toml", {"attributes": "rack bmc"})
        update_flat(paths.config / "site.toml", {"register_file": str(paths.state / "identity")})
        return
    if what == "edited":
        edited(paths, TINY, {"opt": b"x"})
        return
    registry = open_registry(paths)
    registry.history_days = 10**6
    mac = "52:54:00:00:00:01"
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    if what == "drift":
        # What a node sends stays what it was, also where the registry was moved in between.
        assert registry.tree("52:54:00:00:00:02") == TREE and registry.tree_marks()["52:54:00:00:00:02"].seen == NOW
        registry.set_nodes("kargs", "single", [mac])
    else:
        registry.record_lease(mac, "10.0.200.9", "n0000", NOW + 60)
        registry.add_ticket("t", mac, "10.0.200.9", NOW + 60)
        assert registry.redeem_ticket("t", mac, "10.0.200.9", NOW) is True
        assert registry.redeem_ticket("t", mac, "10.0.200.9", NOW) == "used"
        registry.add_session("s", mac, "10.0.200.9", NOW + 60)
        assert registry.session("s", NOW) == mac
        registry.record_devices(mac, (NIC,))
        registry.record_state(mac, "init", "")
        desk.hand_out(mac)
        registry.record_step(mac, "fetch", "ok", 1.5, "all there", 512)
        registry.record_state(mac, "handoff", "10.0.200.9", seconds=20.5)
        registry.record_state(mac, "ready", "10.0.200.9")
        registry.record_step("52:54:00:00:00:02", "mount", "failed", detail="no such layer")
        assert registry.record_tree("52:54:00:00:00:02", TREE)
        assert registry.drop_lease(mac, "10.0.200.9")
    registry.close()


def plain(text: str, folder: Path, place: str) -> str:
    """A command's words without what differs between any two sites."""
    text = text.replace(place, "PLACE").replace(place.partition("?")[0], "PLACE").replace(str(folder), "SITE")
    text = re.sub(r"\b([0-9a-f]{16,128}|[0-9A-F]{16})\b", "HEX", text)
    text = re.sub(r"\b[0-9]+ changes", "N changes", text)  # a move is one itself
    return re.sub(r"\b[0-9]+(\.[0-9]+)? ?(kB|MB|GB|MiB|GiB|bytes)\b", "SIZE", text)


def transcript(folder: Path, place: str, halfway: str = "") -> list[tuple[str, int, str, str]]:
    """(line, status, output, errors) of the whole script; ``halfway`` the registry is moved there, and back at last."""
    said = []
    with made_site(folder, place) as paths:
        base = ["--config-dir", str(paths.config), "--state-dir", str(paths.state)]
        for number, line in enumerate(SCRIPT):
            if halfway and number in (len(SCRIPT) // 3, 2 * len(SCRIPT) // 3):
                there = halfway if number == len(SCRIPT) // 3 else place
                moved = cli(*base, "-yq", "configure", "database", there, "--replace")
                assert moved.status == 0, moved
            if line.startswith("! "):
                between(line[2:], paths)
                continue
            words = ["" if word == '""' else word.format(site=folder) for word in line.split()]
            done = cli(*base, *words)
            out, err = (plain(plain(text, folder, place), folder, halfway or place) for text in (done.out, done.err))
            said.append((line, done.status, out, err))
        said.append(("the bundle", 0, plain(bundled(folder / "bundle.tar.gz"), folder, place), ""))
    return said


def bundled(path: Path) -> str:
    """The text of a support bundle, but for the facts about the machine, and what moves have added."""
    texts = []
    with tarfile.open(path) as archive:
        for name in archive.getnames():
            file = archive.extractfile(name)
            text = file.read().decode() if file else ""
            if name.endswith("changes.json"):
                text = json.dumps([change for change in json.loads(text) if change["key"] != "restored"], indent=1)
            if not name.endswith(("system.txt", "site.toml")):
                texts.append(f"{name}\n{text}")
    return "".join(texts)


@pytest.fixture(scope="module")
def still() -> Iterator[None]:
    """No time passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: NOW)
        yield


@pytest.fixture(scope="module")
def in_sqlite(still: None, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, int, str, str]]:
    folder = tmp_path_factory.mktemp("sqlite")
    return transcript(folder, str(folder / "var/own.db"))


def test_the_script_has_every_command_that_could_touch_the_registry() -> None:
    lines = [[word for word in line.split() if not word.startswith("-")] for line in SCRIPT]
    lines.append(["configure", "database"])
    missing = [str(one) for one in leaves() if not any(tuple(line[: len(one.words)]) == one.words for line in lines)]
    assert [name for name in missing if not OTHERS.fullmatch(name)] == []


def test_what_the_script_does_succeeds_but_where_it_should_not(in_sqlite: list[tuple[str, int, str, str]]) -> None:
    failed = [(line, status, err) for line, status, _, err in in_sqlite if status]
    assert [line for line, _, _ in failed] == REFUSED, failed


@pytest.mark.parametrize("halfway", ["", "sqlite"])
def test_both_databases_give_the_same_answers(
    halfway: str, in_sqlite: list[tuple[str, int, str, str]], postgres: PgServer, tmp_path: Path
) -> None:
    with postgres.database() as address:
        told = transcript(tmp_path, address, str(tmp_path / "var/own.db") if halfway else "")
    for ours, theirs in zip(told, in_sqlite, strict=True):
        assert ours == theirs
