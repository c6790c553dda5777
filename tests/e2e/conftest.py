"""One master and its site for all emulated machines of the suite."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import built
import pytest
from e2e_bench import PASSWORD, SMALL, Bench

from provisioner.lab.lab import Lab
from provisioner.lab.site import LabSite


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """A master that serves both test capsules; machines are made here and started by the tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    if shutil.which("qemu-system-x86_64") is None:
        pytest.skip("needs qemu-system-x86_64: run ./setup.sh test")
    debian, small, stage1 = built.capsule(built.E2E), built.capsule(built.BUSYBOX), built.stage1()
    # A Unix socket's path ends at 107 bytes, so not below pytest's own long names.
    folder = Path(tmp_path_factory.mktemp("e2e"))
    with Lab(folder / "lab") as lab:
        site = LabSite(folder / "site")
        site.init(lab, stage1, "--default-vnfs", SMALL)
        site.command("trust", "add", f"{built.author_key()}.pub")
        answers = folder / "answers.toml"
        answers.touch(0o600)
        answers.write_text(f'root_password = "{PASSWORD}"\n')
        site.command("vnfs", "import", str(debian), "--answers", str(answers))
        site.command("vnfs", "import", str(small))
        for module in ("hostname", "sshkeys"):
            site.command("module", "activate", module)
        lab.serve(site.paths)
        yield Bench(
            lab, site,
            debian=lab.node("52:54:00:E2:E0:01", memory=1024),
            faulty=lab.node("52:54:00:E2:E0:02", memory=512),
            tight=lab.node("52:54:00:E2:E0:03", memory=448),
        )  # fmt: skip
