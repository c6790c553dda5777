-- What a capsule has been, line by line; the last one of a capsule is what nodes boot. Lines stay when the generation
-- itself was deleted ("gone" says when), and go with the capsule. A capsule that was installed before this table has
-- none until it is changed: what was imported can only be told from the store (provisioner/vnfs/store.py).
CREATE TABLE generations (
  capsule TEXT NOT NULL,
  number INTEGER NOT NULL,
  identity TEXT NOT NULL,
  parent TEXT NOT NULL,
  time REAL NOT NULL,
  who TEXT NOT NULL,
  kind TEXT NOT NULL,
  message TEXT NOT NULL,
  changes TEXT NOT NULL,
  gone REAL,
  PRIMARY KEY (capsule, number)
);

-- Which capsule, and which identity of it, is in the outline beside them: what a node still fetches stays.
ALTER TABLE booted ADD COLUMN vnfs TEXT NOT NULL DEFAULT '';
ALTER TABLE booted ADD COLUMN identity TEXT NOT NULL DEFAULT '';
UPDATE booted SET identity = substr(plan, instr(plan, '"identity":"') + 12, 64),
  vnfs = substr(plan, instr(plan, '"vnfs":"') + 8)
  WHERE instr(plan, '"identity":"') > 0 AND instr(plan, '"vnfs":"') > 0;
UPDATE booted SET vnfs = substr(vnfs, 1, instr(vnfs, '"') - 1) WHERE instr(vnfs, '"') > 0;
CREATE INDEX booted_by_identity ON booted (identity);
