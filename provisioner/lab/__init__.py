"""A lab on one machine: a network namespace, a master in it and QEMU nodes that boot from it."""
