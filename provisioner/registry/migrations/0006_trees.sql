-- What differs on each node from its capsule, as its agent said last: the digest of the list, when it came (epoch
-- seconds) and when the node last said that it still holds. Every report reads and writes this row: it stays small.
CREATE TABLE trees (
  nodeid TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  time REAL NOT NULL,
  seen REAL NOT NULL
);

-- The list itself: zlib's bytes in base64, since both databases keep text alike.
CREATE TABLE tree_lists (
  nodeid TEXT PRIMARY KEY,
  list TEXT NOT NULL
);
