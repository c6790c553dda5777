"""What a capsule says of itself beside its bytes: bill of materials, provenance, and who owns each path."""
