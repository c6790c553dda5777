"""The rules of the house, checked on every file: linters, dependency direction, one door per program, no mirror."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from small_site import make_site

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
PACKAGES = {
    "initramfs_builder": ROOT / "initramfs-builder/initramfs_builder",
    "capsulekit": ROOT / "capsulekit",
    "provisioner": ROOT / "provisioner",
}
IGNORED = {".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "out", "dist"}


@cache
def files() -> tuple[Path, ...]:
    """Every file of the project: what git tracks or would track, or what lies here when this is no clone."""
    argv = ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-co", "--exclude-standard", "-z"]
    if shutil.which("git") and (ROOT / ".git").exists():
        listed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
        return tuple(sorted(ROOT / name for name in listed if name and (ROOT / name).is_file()))
    return tuple(sorted(p for p in ROOT.rglob("*") if p.is_file() and not IGNORED & set(p.relative_to(ROOT).parts)))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def sources() -> list[tuple[str, Path]]:
    return [(name, path) for name, folder in PACKAGES.items() for path in sorted(folder.rglob("*.py"))]


def shell_files() -> list[Path]:
    """By name, by first line, or by shellcheck's own directive."""
    kinds = re.compile(r"#!.*/(env )?(ba|da)?sh\b|# shellcheck shell=sh\b")
    return [p for p in files() if p.suffix == ".sh" or kinds.match(text_of(p)[:80])]


def ok(*argv: str | Path) -> None:
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


# --- linters


def test_ruff_finds_nothing() -> None:
    ok(BIN / "ruff", "check", ".")


def test_everything_is_formatted() -> None:
    ok(BIN / "ruff", "format", "--check", ".")


def test_every_type_holds() -> None:
    ok(BIN / "mypy")


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="needs shellcheck")
def test_shellcheck_finds_nothing_in_any_shell_file() -> None:
    found = shell_files()
    names = {str(p.relative_to(ROOT)) for p in found}
    assert {
        "setup.sh",
        ".ci/run",
        "capsulekit/rootfs/customize.sh",
        "provisioner/modules/hostname/init/20-hostname",
    } <= names
    folders = (ROOT / "initramfs-builder" / stage for stage in ("stage1", "stage2"))
    stages = {p for folder in folders for p in folder.rglob("*") if p.is_file()}
    assert {p for p in stages if p.suffix != ".service"} <= set(found), "a file of a stage is not seen as shell"
    ok("shellcheck", "-x", *found)


@pytest.mark.skipif(not shutil.which("dash"), reason="needs dash")
def test_every_posix_shell_file_parses_as_posix_shell() -> None:
    for path in shell_files():
        if "bash" not in text_of(path).split("\n")[0]:
            ok("dash", "-n", path)


def test_no_file_holds_two_ideas() -> None:
    assert [str(p) for _, p in sources() if len(text_of(p).splitlines()) > 400] == []


def test_every_module_and_public_name_says_what_it_is() -> None:
    lacking = []
    for _, path in sources():
        tree = ast.parse(text_of(path))
        nodes = [n for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        nodes += [n for n in tree.body if isinstance(n, ast.FunctionDef)]  # type: ignore[misc]
        named = [(n.name, n) for n in nodes if not n.name.startswith("_")]
        lacking += [f"{path}: {name}" for name, node in named if not ast.get_docstring(node)]
        if path.read_text().strip() and not ast.get_docstring(tree):
            lacking.append(str(path))
    assert lacking == []


# --- dependencies


def imports(path: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text_of(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "" if not node.level else package


def test_dependencies_point_one_way() -> None:
    order = list(PACKAGES)
    wrong = []
    for package, path in sources():
        for name in imports(path, package):
            top = name.partition(".")[0]
            if top in order and order.index(top) > order.index(package):
                wrong.append(f"{path}: {name}")
    assert wrong == [], "provisioner -> capsulekit -> initramfs_builder"


def test_logic_never_imports_click_and_commands_never_each_other() -> None:
    for package, path in sources():
        names = set(imports(path, package))
        if path.parent.name != "cli":
            assert not {n for n in names if n.partition(".")[0] == "click"}, path
            # The lab runs whole command lines, as its user would.
            allowed = {"capsulekit.cli.main"} if path.parent.name == "lab" else set()
            assert not {n for n in names if ".cli" in n} - allowed, f"{path}: logic imports a command"
        elif not path.name.startswith("_"):  # what commands share may call one: a site that is not there offers init
            parts = {n.rpartition(".cli.")[2] for n in names if ".cli." in n}
            assert not {part for part in parts if part != "main" and not part.startswith("_")}, path


def test_no_distribution_is_asked_for_by_name_outside_its_own_file() -> None:
    asked = re.compile(
        r"\b(distro|name|release|suite)\s*(==|!=|in)\s*[(\[{]?[\"'](debian|ubuntu|rocky|fedora|bookworm)"
    )
    for _, path in sources():
        if path.parent.name != "distro":
            assert not asked.search(text_of(path)), path


# --- child processes

# Programs that are wrapped by a class for another file (the lab runs any program in its namespace) are words there.
STARTERS = {"run.py", "squashfs.py", "tree.py", "supervised.py", "lab.py", "qemu.py", "net.py", "console.py", "demo.py",
            "site.py", "enter.py"}  # fmt: skip


def programs() -> dict[str, set[str]]:
    """Program → files that start it: the first word of an argument list, or of ``tool``."""
    found: dict[str, set[str]] = defaultdict(set)
    for package, path in sources():
        if package == "initramfs_builder":
            continue
        tree = ast.parse(text_of(path))
        for node in ast.walk(tree):
            first: ast.expr | None = None
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute) and node.args:
                called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                if called in ("run", "run_apart", "Popen", "failed"):
                    first = node.args[0].elts[0] if isinstance(node.args[0], ast.List) and node.args[0].elts else None
                elif called == "tool":
                    first = node.args[0]
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.List) and node.value.elts:
                target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                first = node.value.elts[0] if isinstance(target, ast.Name) and target.id == "argv" else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found[first.value].add(str(path.relative_to(ROOT)))
    return found


def test_each_external_program_is_called_from_exactly_one_file() -> None:
    found = programs()
    del found["sh"]  # it runs our own scripts, each named in one file
    assert {"mmdebstrap", "mksquashfs", "depmod", "dpkg-deb", "dnsmasq", "apt-config", "setpriv"} <= set(found)
    assert {name: where for name, where in found.items() if len(where) != 1} == {}


def test_processes_are_started_by_the_one_door_or_by_what_keeps_them_running() -> None:
    for package, path in sources():
        text = text_of(path)
        if "subprocess" in set(imports(path, package)) or "create_subprocess" in text:
            assert path.name in STARTERS, f"{path} starts processes: use capsulekit.run"
        assert not re.search(r"shell=True|os\.system|os\.popen|create_subprocess_shell", text), path


def test_every_program_says_which_package_brings_it() -> None:
    from capsulekit.run import PACKAGE_OF

    setup = text_of(ROOT / "setup.sh")
    always = {"apt", "coreutils", "dpkg", "mount", "tar", "util-linux"}
    for program, package in PACKAGE_OF.items():
        assert package in always or re.search(rf"\b{re.escape(package)}\b", setup), (
            f"{program}: {package} is not in setup.sh"
        )


# --- addresses

# Pages that explain a format or a rule. No package is ever fetched from an address that stands in a file here.
PAGES = {
    "https://systemd.io/ELF_DLOPEN_METADATA/",
    "https://sqlite.org/wal.html",
    "https://jedisct1.github.io/minisign/",
    "https://json-schema.org/draft/2020-12/schema",
    "https://in-toto.io/Statement/v1",
    "https://slsa.dev/provenance/v1",
}
HOST = re.compile(r"(?:https?|ftp)://(?:[^\s/@'\"]*@)?((?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,})\b[^\s'\"<>)\]`]*")
MIRROR = re.compile(r"\b[\w.-]+\.(debian|ubuntu|rockylinux|fedoraproject|centos|pythonhosted|pypi)\.(org|net|com)\b")


def test_no_file_names_a_package_mirror_or_an_address_that_is_no_page_of_documentation() -> None:
    wrong = []
    for path in files():
        if path.name == "LICENSE":
            continue
        for number, line in enumerate(text_of(path).splitlines(), 1):
            pages = {m[0].rstrip(".,;:") for m in HOST.finditer(line) if not m[1].endswith((".example", ".invalid"))}
            if pages - PAGES or MIRROR.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert wrong == []


def test_the_requirements_are_pinned_by_hash_and_name_no_index() -> None:
    text = text_of(ROOT / "requirements.lock")
    assert not re.search(r"://|^\s*(-i|-f|--(extra-)?index-url|--find-links|--trusted-host)\b", text, re.MULTILINE)
    pinned = re.findall(r"^[A-Za-z0-9._-]+==\S+ \\\n {4}--hash=sha256:[0-9a-f]{64}", text, re.MULTILINE)
    assert len(pinned) == len(re.findall(r"^[A-Za-z]", text, re.MULTILINE)) > 20


def test_every_requirement_is_pinned() -> None:
    def plain(name: str) -> str:
        return re.sub(r"[-_.]+", "-", name).lower()

    pinned = {plain(n) for n in re.findall(r"^([A-Za-z0-9._-]+)==", text_of(ROOT / "requirements.lock"), re.MULTILINE)}
    wanted = re.findall(r"^([A-Za-z0-9._-]+)$", text_of(ROOT / "requirements.in"), re.MULTILINE)
    wanted += re.findall(r'^  "([A-Za-z0-9._-]+)>=', text_of(ROOT / "pyproject.toml"), re.MULTILINE)
    assert {plain(n) for n in wanted} - pinned == set()


# --- start-up

PROBE = """
import sys
from capsulekit.cli.main import main
status = main(sys.argv[1:])
slow = {"rich", "aiohttp", "jinja2", "tomlkit", "zstandard", "libarchive", "elftools", "pexpect", "cryptography"}
print("STATUS", status, "LOADED", sorted(slow & {name.partition(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize("words", [["node", "list"], ["--help"], ["node", "--help"], ["module", "list"]])
def test_a_command_that_only_lists_loads_nothing_slow(tmp_path: Path, words: list[str]) -> None:
    paths = make_site(tmp_path)
    argv = [sys.executable, "-c", PROBE, *words, "--config-dir", paths.config, "--state-dir", paths.state]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "STATUS 0 LOADED []", done.stdout + done.stderr
