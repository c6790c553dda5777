"""Pretend nodes: the whole protocol of a boot, many times at once, against a running master."""
