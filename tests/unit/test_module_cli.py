"""`capsulekit module`, called as its user would: the manual's transcript, import, what would run where."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from capsulekit_cli import Done, cli
from small_capsule import AUTHOR, STRANGER
from small_site import MAC, make_site

from capsulekit.sitepaths import SitePaths
from capsulekit.trust import minisign
from provisioner.catalog.pmod import write_pmod
from provisioner.registry.defaults import load_defaults
from provisioner.registry.registry import open_registry

TOML = 'name = "mine"\nversion = "1.0"\nsummary = "Mine"\nroles = ["init/all"]\nstates = ["init", "ready"]\n'
FILES = {"module.toml": TOML.encode(), "init/10-x": b"#!/bin/sh\n", "ready/10-x": b"#!/bin/sh\n:\n"}
Run = Callable[..., Done]


@pytest.fixture
def paths(tmp_path: Path) -> SitePaths:
    paths = make_site(tmp_path)
    registry = open_registry(paths)
    registry.add_node(MAC, defaults=load_defaults(paths))
    for module in registry.roles():
        registry.deactivate(module)
    registry.close()
    return paths


@pytest.fixture
def run(paths: SitePaths) -> Run:
    return lambda *words: cli("module", *words, "--config-dir", paths.config, "--state-dir", paths.state)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    write_pmod(tmp_path / "mine.pmod", FILES, AUTHOR)
    return tmp_path / "mine.pmod"


def roles(run: Run) -> dict[str, list[str]]:
    shown: dict[str, list[str]] = json.loads(run("summary", "--json").out)
    return {name: active for name, active in shown.items() if active}


def test_the_manuals_transcript(run: Run) -> None:
    for words in (
        ["hostfile", "init/all"], ["hostname", "init/all"], ["passwdfile", "init/group/newgroup"],
        ["groupfile", "init/node/node0000", "init/group/anothergroup"],
    ):  # fmt: skip
        assert run("activate", *words).status == 0
    assert run("summary", "*file", "hostname").out == (
        "groupfile:\n        init/group/anothergroup\n        init/node/node0000\n"
        "hostfile:\n        init/all\n"
        "hostname:\n        init/all\n"
        "passwdfile:\n        init/group/newgroup\n"
    )
    assert run("states").out == (
        "init/all:\n   hostfile\n   hostname\ninit/group/anothergroup:\n   groupfile\n"
        "init/group/newgroup:\n   passwdfile\ninit/node/node0000:\n   groupfile\n"
    )
    assert run("deactivate", "groupfile", "init/group/anothergroup").out == (
        "Module 'groupfile' has been deactivated in init/group/anothergroup\n"
    )
    assert roles(run)["groupfile"] == ["init/node/node0000"]


@pytest.mark.parametrize("name", ["a-b", "a_b", "a.b", "debian-12.amd64_x"])
@pytest.mark.parametrize("scope", ["group", "vnfs", "node"])
def test_role_names_may_hold_dashes_underscores_and_dots(run: Run, scope: str, name: str) -> None:
    assert run("activate", "hostname", f"init/{scope}/{name}").status == 0
    assert roles(run) == {"hostname": [f"init/{scope}/{name}"]}


@pytest.mark.parametrize(
    "role", ["init", "init/", "init/foo/x", "nostate/all", "init/all/x", "init/group/", "init/group/a b", "/all", ""]
)
def test_a_wrong_role_activates_nothing_at_all(run: Run, paths: SitePaths, role: str) -> None:
    done = run("activate", "timezone", "init/all", role)
    assert (done.status, roles(run)) == (1, {})
    assert not (paths.config / "modules/timezone").exists()


def test_a_failed_activation_is_rolled_back_and_says_so(run: Run, paths: SitePaths) -> None:
    (paths.config / "modules/timezone").mkdir(parents=True)
    (paths.config / "modules/timezone/group").write_text("in the way")
    done = run("activate", "timezone")
    assert done.status == 1
    assert "module 'timezone' was not activated, and what was begun is undone: can't make the settings" in done.err
    assert roles(run) == {}
    (paths.config / "modules/timezone/group").unlink()
    (paths.config / "modules/timezone/settings.toml").write_text("colour = 1\n")
    done = run("activate", "timezone")
    assert "is undone: " in done.err and "unknown key 'colour'" in done.err
    assert {p.name for p in (paths.config / "modules/timezone").iterdir()} == {"settings.toml"}
    assert roles(run) == {}


def test_a_dry_run_changes_nothing(run: Run, paths: SitePaths, mine: Path) -> None:
    assert "would be activated" in run("activate", "timezone", "--dry-run").out
    assert "would be imported" in run("import", str(mine), "--dry-run").out
    assert not (paths.config / "modules/timezone").exists() and not (paths.state / "modules").exists()
    run("import", str(mine))
    run("activate", "mine")
    assert "would be deleted" in run("delete", "mine", "--dry-run").out
    assert roles(run) == {"mine": ["init/all"]}


def test_import_activate_show_delete(run: Run, mine: Path) -> None:
    done = run("import", str(mine))
    assert done.out == f"Module 'mine' 1.0 has been imported (signed by {AUTHOR.public.id})\n"
    assert "mine" in run("list").out.split()
    run("activate", "mine")
    shown = dict(line.split("=", 1) for line in run("show", "mine").out.splitlines())
    assert shown["mine:Version"] == "1.0" and shown["mine:Roles"] == "init/all"
    assert shown["mine:Scripts"] == "init/10-x ready/10-x"
    assert run("delete", "mine").status == 1  # nobody answered
    assert roles(run) == {"mine": ["init/all"]}
    done = run("delete", "-y", "mine")
    assert done.out == "Module 'mine' has been deactivated in init/all\nModule 'mine' has been deleted\n"
    assert (roles(run), "mine" in run("list").out) == ({}, False)
    assert run("delete", "-y", "mine").err.startswith("ERROR: there is no module 'mine'")
    assert run("delete", "-y", "hostname").status == 1


def test_who_may_import_what(run: Run, paths: SitePaths, mine: Path, tmp_path: Path) -> None:
    write_pmod(tmp_path / "theirs.pmod", FILES, STRANGER)
    done = run("import", str(tmp_path / "theirs.pmod"))
    assert done.status == 3 and "not trusted here" in done.err
    assert not (paths.state / "modules").exists()
    run("import", str(mine))
    newer = {**FILES, "module.toml": TOML.replace('"1.0"', '"1.1"').encode()}
    write_pmod(mine, newer, AUTHOR)
    assert "1.1 has been imported, replacing 1.0" in run("import", str(mine)).out
    (tmp_path / "stranger.pub").write_text(STRANGER.public.file_text)
    cli("trust", "add", str(tmp_path / "stranger.pub"), "--config-dir", str(paths.config))
    done = run("import", str(tmp_path / "theirs.pmod"))
    assert done.status == 3 and "is installed from another author" in done.err
    shipped = {**FILES, "module.toml": TOML.replace('"mine"', '"hostname"').encode()}
    write_pmod(mine, shipped, AUTHOR)
    assert "is a module of capsulekit itself" in run("import", str(mine)).err
    assert run("import", str(tmp_path / "none")).status == 1


def test_a_revoked_author_ends_a_modules_use_by_name(run: Run, paths: SitePaths, mine: Path) -> None:
    run("import", str(mine))
    run("activate", "mine")
    cli("trust", "revoke", "-y", AUTHOR.public.id, "--config-dir", str(paths.config))
    done = run("list")
    assert "mine" not in done.out.split() and "can't be used" in done.err
    assert run("show", "--for", "n0000").status == 3
    assert run("delete", "-y", "mine").status == 0


def test_pack_signs_a_folder(run: Run, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    minisign.create_key_files(tmp_path / "key", None)
    done = run("pack", str(folder), "--key", str(tmp_path / "key"), "-o", str(tmp_path / "out.pmod"))
    assert done.out == f"Module 'mine' 1.0 is packed into {tmp_path / 'out.pmod'}\n"
    assert run("import", str(tmp_path / "out.pmod")).status == 3
    assert run("pack", str(tmp_path / "none"), "--key", str(tmp_path / "key")).status == 2


@pytest.mark.parametrize("words", [["list"], ["summary"], ["states"], ["show"]])
def test_a_name_that_matches_nothing_is_named(run: Run, words: list[str]) -> None:
    done = run(*words, "nosuch")
    assert done.status == 1 and "'nosuch'" in done.err and len(done.err.splitlines()) <= 2


@pytest.mark.parametrize("verb", ["list", "summary", "states", "show"])
def test_modules_are_named_by_the_one_grammar_and_what_matched_is_printed(run: Run, verb: str) -> None:
    for module in ("hostname", "hostfile", "passwdfile"):
        run("activate", module)
    for words, found in (
        (["host*!hostfile"], {"hostname"}),
        (["hostname,passwdfile"], {"hostname", "passwdfile"}),
        (["hostfil?", "nosuch", "other"], {"hostfile"}),
    ):
        done = run(verb, *words)
        assert {name for name in ("hostname", "hostfile", "passwdfile") if name in done.out} == found
        wanted = (1, "ERROR: no module matches 'nosuch', 'other'\n") if "nosuch" in words else (0, "")
        assert (done.status, done.err) == wanted


# --- what would run


def test_a_secret_setting_in_a_file_is_shown_as_one(run: Run, paths: SitePaths, tmp_path: Path) -> None:
    more = "[settings.key]\ndefault = 'geheim'\nsummary = 'A key'\nsecret = true\n"
    more += "[[writes]]\npath = '/etc/mine'\ntext = 'key={key} on {host}\\n'\n"
    write_pmod(tmp_path / "mine.pmod", {**FILES, "module.toml": (TOML + more).encode()}, AUTHOR)
    run("import", tmp_path / "mine.pmod")
    run("activate", "mine")
    shown = run("show", "--for", "n0000")
    assert (shown.status, shown.err) == (0, "")
    assert "| key=(secret) on n0000\\n\n" in shown.out and "geheim" not in shown.out


def test_for_a_node_exactly_what_its_plan_has(run: Run, paths: SitePaths) -> None:
    for module in ("hostname", "sshkeys", "timezone", "passwdfile"):
        run("activate", module)
    run("activate", "hostname", "init/node/n0000")
    (paths.config / "modules/timezone/group/cluster").write_text('zone = "Europe/Berlin"\n')
    (paths.config / "modules/passwdfile/all").write_text("root:$6$salt$hashhash:0:0::/root:/bin/sh\n")
    shown = run("show", "--for", "n0000")
    assert shown.status == 0, shown.err
    assert shown.out == run("show", "--for", "n0000").out
    assert "module hostname writes /etc/hostname\n  | n0000\n" in shown.out
    assert "module timezone writes /etc/timezone\n  | Europe/Berlin\n" in shown.out
    assert "  | root:(secret):0:0::/root:/bin/sh\n" in shown.out
    assert "PRIVATE KEY" not in shown.out and "hashhash" not in shown.out
    (record,) = json.loads(run("show", "--for", "n0000", "--json").out)
    assert "hashhash" not in json.dumps(record) and "PRIVATE" not in json.dumps(record)
    init = next(state for state in record["states"] if state["state"] == "init")
    assert [(s["order"], s["module"], s["role"]) for s in init["scripts"]] == [
        (10, "vnfs", "init/vnfs/tiny-1.0.amd64"), (20, "hostname", "init/node/n0000"), (30, "sshkeys", "init/all"),
        (50, "timezone", "init/all"),
    ]  # fmt: skip
    done = run("show", "--for", "n0000,nosuch")
    assert (done.status, done.err, done.out) == (1, "ERROR: no node matches 'nosuch'\n", shown.out)


def test_what_is_shown_is_what_is_sent(run: Run, paths: SitePaths) -> None:
    from provisioner.catalog import site_catalog
    from provisioner.server.desk import Desk
    from provisioner.siteconf import load_site
    from provisioner.vnfs.store import VnfsStore

    for module in ("hostname", "sshkeys", "timezone", "hostfile", "ipaddr", "syncnodes", "sysctl"):
        run("activate", module)
    (record,) = json.loads(run("show", "--for", "n0000", "--json").out)
    registry = open_registry(paths)
    desk = Desk(paths, load_site(paths), registry, site_catalog(paths), VnfsStore(paths, registry))
    for state, plan in (("init", desk.plan(MAC)), ("ready", desk.state_plan(MAC, "ready"))):
        sent = [line.split() for line in plan.splitlines() if line.startswith("script ")]
        told = next(one for one in record["states"] if one["state"] == state)
        assert [(s["name"], s["sha256"]) for s in told["scripts"] if s["module"] != "vnfs"] == [
            (words[3], words[5]) for words in sent if words[4] != "vnfs"
        ]
        for line in plan.splitlines():
            if line.startswith("data ") or line.startswith("script "):
                digest = line.split()[5 if line.startswith("script") else 3]
                assert desk.script(MAC, digest) is not None
    registry.close()


def test_a_disabled_node_is_shown_with_why_it_waits(run: Run, paths: SitePaths) -> None:
    run("activate", "hostname")
    registry = open_registry(paths)
    registry.set_nodes("enabled", "no", [MAC])
    registry.close()
    assert run("show", "--for", "n0000").out.startswith("n0000: waits now (disabled)")
