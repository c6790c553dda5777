-- What each node was last told to boot, as far as a reboot could change it (provisioner/drift.py writes the text).
CREATE TABLE booted (
  nodeid TEXT PRIMARY KEY,
  time REAL NOT NULL,
  plan TEXT NOT NULL
);
