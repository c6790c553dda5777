"""``capsulekit configure http``: the web server that is installed, as a cache before the master."""

from __future__ import annotations

from provisioner.cli._web import web_command

cli = web_command("", "the web server of this machine, nginx or Apache,")
