-- One row per machine, keyed by MAC; the host name is unique without regard to case, as DNS is.
CREATE TABLE nodes (
  nodeid TEXT PRIMARY KEY,
  hostname TEXT NOT NULL COLLATE NOCASE UNIQUE,
  cluster TEXT NOT NULL,
  groupname TEXT NOT NULL,
  vnfs TEXT NOT NULL,
  enabled INTEGER NOT NULL,
  debug INTEGER NOT NULL,
  "desc" TEXT NOT NULL,
  kargs TEXT NOT NULL,
  boot TEXT NOT NULL,
  accepted INTEGER NOT NULL,
  machine_id TEXT NOT NULL,
  status TEXT NOT NULL,
  status_time REAL,
  ipaddr TEXT NOT NULL,
  lastcontact REAL,
  error TEXT NOT NULL,
  created REAL NOT NULL
);

CREATE TABLE events (
  id INTEGER PRIMARY KEY,
  nodeid TEXT NOT NULL,
  time REAL NOT NULL,
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  step TEXT NOT NULL,
  status TEXT NOT NULL,
  seconds REAL,
  detail TEXT NOT NULL,
  mem_used_kb INTEGER
);
CREATE INDEX events_of_node ON events (nodeid, id);

CREATE TABLE capsules (
  name TEXT PRIMARY KEY,
  identity TEXT NOT NULL,
  key_id TEXT NOT NULL,
  public_key TEXT NOT NULL,
  version TEXT NOT NULL,
  arch TEXT NOT NULL,
  imported REAL NOT NULL,
  private INTEGER NOT NULL
);

CREATE TABLE roles (
  module TEXT NOT NULL,
  role TEXT NOT NULL,
  PRIMARY KEY (module, role)
);

-- Only sha256 digests of tickets and session keys are kept: a stolen copy of this file opens nothing.
CREATE TABLE tickets (
  digest TEXT PRIMARY KEY,
  nodeid TEXT NOT NULL,
  addr TEXT NOT NULL,
  expires REAL NOT NULL,
  used INTEGER NOT NULL
);
CREATE INDEX tickets_of_node ON tickets (nodeid);

CREATE TABLE sessions (
  digest TEXT PRIMARY KEY,
  nodeid TEXT NOT NULL UNIQUE,
  addr TEXT NOT NULL,
  expires REAL NOT NULL
);
