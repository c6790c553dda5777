"""The boot-closure check: whether everything that a finished image will ask for on the node is in it."""
