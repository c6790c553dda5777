"""What nodes get by NFS: the hybrid layers of their capsules, and the public files of all capsules."""
