-- What nodes are made of. Machines bought together report the same list, so a list is kept once, under the sha256 of
-- its text, whatever the number of nodes that have it; and what a line names is kept once for all lists.
CREATE TABLE device_kinds (
  id INTEGER PRIMARY KEY,
  modalias TEXT NOT NULL,
  driver TEXT NOT NULL,
  module TEXT NOT NULL,
  UNIQUE (modalias, driver, module)
);

CREATE TABLE hardware (
  id INTEGER PRIMARY KEY,
  digest TEXT NOT NULL UNIQUE
);

CREATE TABLE devices (
  hardware INTEGER NOT NULL,
  kind INTEGER NOT NULL,
  boot INTEGER NOT NULL,
  number INTEGER NOT NULL,
  PRIMARY KEY (hardware, kind, boot)
);
CREATE INDEX devices_of_kind ON devices (kind);

CREATE TABLE node_hardware (
  nodeid TEXT PRIMARY KEY,
  hardware INTEGER NOT NULL,
  reported REAL NOT NULL
);
CREATE INDEX nodes_of_hardware ON node_hardware (hardware);
