"""Bringing running nodes to their capsule's current generation, by content and without a reboot."""
