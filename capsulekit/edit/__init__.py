"""Editing: a capsule's layers mounted for writing, and what was written packed as one more layer."""
