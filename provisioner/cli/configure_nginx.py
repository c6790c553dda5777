"""``capsulekit configure nginx``: nginx as a cache before the master."""

from __future__ import annotations

from provisioner.cli._web import web_command

cli = web_command("nginx", "nginx")
