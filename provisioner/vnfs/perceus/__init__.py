"""Capsules of Perceus 1.x: bzip2 tars that say nothing of themselves, taken apart without running anything in them."""
