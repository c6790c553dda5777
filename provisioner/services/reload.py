"""Having a service of this machine read its files again: only ever when that was asked for."""

from __future__ import annotations

from capsulekit.run import run


def reload_service(unit: str) -> None:
    """Have systemd reload a unit that runs; one that does not is left as it is. Raises CapsulekitError."""
    run(["systemctl", "try-reload-or-restart", unit], purpose=f"have {unit} read its files again", timeout=90)
