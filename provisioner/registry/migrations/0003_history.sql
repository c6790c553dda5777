-- Host names are unique without regard to case, as DNS is, by an index both SQLite and PostgreSQL have; a node may
-- have a fixed address.
CREATE TABLE nodes_again (
  nodeid TEXT PRIMARY KEY,
  hostname TEXT NOT NULL,
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
  created REAL NOT NULL,
  address TEXT NOT NULL DEFAULT ''
);
INSERT INTO nodes_again SELECT nodeid, hostname, cluster, groupname, vnfs, enabled, debug, "desc", kargs, boot,
  accepted, machine_id, status, status_time, ipaddr, lastcontact, error, created, '' FROM nodes;
DROP TABLE nodes;
ALTER TABLE nodes_again RENAME TO nodes;
CREATE UNIQUE INDEX nodes_by_name ON nodes (lower(hostname));
CREATE UNIQUE INDEX nodes_by_address ON nodes (address) WHERE address <> '';

-- Which of a node's tickets is the oldest is told by a number of our own.
CREATE TABLE tickets_again (
  id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE,
  nodeid TEXT NOT NULL,
  addr TEXT NOT NULL,
  expires REAL NOT NULL,
  used INTEGER NOT NULL
);
INSERT INTO tickets_again (digest, nodeid, addr, expires, used)
  SELECT digest, nodeid, addr, expires, used FROM tickets ORDER BY expires;
DROP TABLE tickets;
ALTER TABLE tickets_again RENAME TO tickets;
CREATE INDEX tickets_of_node ON tickets (nodeid);
CREATE INDEX tickets_by_end ON tickets (expires);

-- A group is what nodes say they are in; here is only what was set for the group itself.
CREATE TABLE "groups" (
  name TEXT PRIMARY KEY,
  kargs TEXT NOT NULL DEFAULT '',
  "desc" TEXT NOT NULL DEFAULT ''
);

-- The site's own attributes, whose names are in site.toml.
CREATE TABLE node_attributes (
  nodeid TEXT NOT NULL,
  "key" TEXT NOT NULL,
  value TEXT NOT NULL,
  PRIMARY KEY (nodeid, "key")
);

-- Who changed what, when, with which command; lines of deleted nodes stay until they are too old.
CREATE TABLE changes (
  id INTEGER PRIMARY KEY,
  time REAL NOT NULL,
  who TEXT NOT NULL,
  command TEXT NOT NULL,
  nodeid TEXT NOT NULL,
  hostname TEXT NOT NULL,
  "key" TEXT NOT NULL,
  old TEXT NOT NULL,
  new TEXT NOT NULL
);
CREATE INDEX changes_of_node ON changes (nodeid, id);

-- What DHCP gave; an address is one machine's, which need not be a node.
CREATE TABLE leases (
  address TEXT PRIMARY KEY,
  nodeid TEXT NOT NULL,
  hostname TEXT NOT NULL,
  expires REAL NOT NULL,
  seen REAL NOT NULL
);
CREATE INDEX leases_of_node ON leases (nodeid);
