"""A small NFS 4.1 client (RFC 8881) for a host whose kernel has none: it lists, reads, and tries handles again.

Run as ``python nfs4_client.py SERVER VERB WORD [SOURCE-ADDRESS]`` it prints what it found as JSON: ``list PATH``,
``read PATH``, ``handle PATH``, ``again HANDLE`` (the bytes behind a handle of before), ``remove PATH``.
What the server refuses is {"error": NUMBER, "op": NUMBER}: 2 not there, 13 not allowed, 30 read-only, 70 stale.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import time

PROGRAM, PORT = 100003, 2049
ACCESS, GETFH, LOOKUP, OPEN, PUTFH, PUTROOTFH, READ, READDIR = 3, 10, 15, 18, 22, 24, 25, 26
EXCHANGE_ID, CREATE_SESSION, RECLAIM_COMPLETE, SEQUENCE, REMOVE = 42, 43, 58, 53, 28
GRACE, DELAY = 10013, 10008


class Refused(Exception):
    """An operation's status."""

    def __init__(self, status: int, op: int) -> None:
        super().__init__(status, op)
        self.status, self.op = status, op


def opaque(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data + bytes(-len(data) % 4)


class Reader:
    """XDR, read from the front (RFC 4506)."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        found = self.data[self.at : self.at + size]
        assert len(found) == size, "the answer is cut short"
        self.at += size
        return found

    def number(self) -> int:
        return int(struct.unpack(">I", self.take(4))[0])

    def opaque(self) -> bytes:
        size = self.number()
        found = self.take(size)
        self.take(-size % 4)
        return found

    def bitmap(self) -> None:
        self.take(4 * self.number())


class Client:
    """One session as an ordinary user (uid and gid)."""

    def __init__(self, server: str, source: str = "", uid: int = 0) -> None:
        self.uid, self.xid, self.slot = uid, int.from_bytes(os.urandom(3), "big"), 0
        self.socket = socket.create_connection((server, PORT), 10, (source, 0) if source else None)
        self.socket.settimeout(60)
        owner = os.urandom(8) + opaque(f"test-{os.urandom(6).hex()}".encode())
        answer = self.compound([(EXCHANGE_ID, owner + struct.pack(">III", 0, 0, 0))], session=False)
        client, sequence = answer.take(8), answer.number()
        channel = struct.pack(">IIIIIII", 0, 1 << 20, 1 << 20, 4096, 16, 4, 0)
        wish = client + struct.pack(">II", sequence, 0) + channel + channel + struct.pack(">III", 0x40000000, 1, 0)
        self.session = self.compound([(CREATE_SESSION, wish)], session=False).take(16)
        self.compound([(RECLAIM_COMPLETE, struct.pack(">I", 0))])

    def compound(self, ops: list[tuple[int, bytes]], *, session: bool = True) -> Reader:
        """What stands behind the status of the last operation. Raises Refused. A server in its grace is waited for."""
        deadline = time.monotonic() + 60
        while True:
            try:
                return self._compound(ops, session)
            except Refused as refused:
                if refused.status not in (GRACE, DELAY) or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def _compound(self, ops: list[tuple[int, bytes]], session: bool) -> Reader:
        if session:
            self.slot += 1
            ops = [(SEQUENCE, self.session + struct.pack(">IIII", self.slot, 0, 0, 0)), *ops]
        body = opaque(b"") + struct.pack(">II", 1, len(ops)) + b"".join(struct.pack(">I", op) + a for op, a in ops)
        answer = Reader(self._call(body))
        status = answer.number()
        answer.opaque()
        count = answer.number()
        for number in range(count):
            op, one = answer.number(), answer.number()
            if one:
                raise Refused(one, op)
            if number == count - 1:
                break
            self._skip(op, answer)
        assert status == 0
        return answer

    @staticmethod
    def _skip(op: int, answer: Reader) -> None:
        if op == SEQUENCE:
            answer.take(16 + 5 * 4)
        elif op == GETFH:
            answer.opaque()

    def _call(self, body: bytes) -> bytes:
        self.xid += 1
        cred = struct.pack(">I", 0) + opaque(b"test") + struct.pack(">III", self.uid, self.uid, 0)
        head = struct.pack(">IIIIII", self.xid, 0, 2, PROGRAM, 4, 1)
        call = head + struct.pack(">I", 1) + opaque(cred) + struct.pack(">II", 0, 0) + body
        self.socket.sendall(struct.pack(">I", 0x80000000 | len(call)) + call)
        found, last = b"", False
        while not last:
            mark = struct.unpack(">I", self._exactly(4))[0]
            last = bool(mark & 0x80000000)
            found += self._exactly(mark & 0x7FFFFFFF)
        answer = Reader(found)
        assert answer.number() == self.xid
        assert answer.number() == 1
        if answer.number() != 0:
            raise Refused(13, 0)  # the credential was refused as a whole
        answer.number()
        answer.opaque()
        if answer.number() != 0:
            raise Refused(13, 0)
        return answer.data[answer.at :]

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.socket.recv(size - len(found))
            if not piece:
                raise ConnectionError("the server closed the connection")
            found += piece
        return found

    def to(self, path: str) -> list[tuple[int, bytes]]:
        """The operations that lead to a path."""
        return [(PUTROOTFH, b""), *((LOOKUP, opaque(part.encode())) for part in path.split("/") if part)]

    def handle(self, path: str) -> bytes:
        return self.compound([*self.to(path), (GETFH, b"")]).opaque()

    def listing(self, path: str) -> list[str]:
        names, cookie, verifier = [], 0, bytes(8)
        while True:
            words = struct.pack(">Q", cookie) + verifier + struct.pack(">III", 8192, 32768, 0)
            answer = self.compound([*self.to(path), (READDIR, words)])
            verifier = answer.take(8)
            while answer.number():
                cookie = struct.unpack(">Q", answer.take(8))[0]
                names.append(answer.opaque().decode("utf-8", "surrogateescape"))
                answer.bitmap()
                answer.opaque()
            if answer.number():
                return sorted(names)

    def read(self, first: list[tuple[int, bytes]]) -> bytes:
        found = b""
        while True:
            words = bytes(16) + struct.pack(">QI", len(found), 1 << 16)
            answer = self.compound([*first, (READ, words)])
            last = answer.number()
            piece = answer.opaque()
            found += piece
            if last or not piece:
                return found


def main(server: str, verb: str, word: str, source: str = "") -> object:
    try:
        client = Client(server, source)
        words = (word,)
        if verb == "list":
            return client.listing(words[0])
        if verb == "read":
            return client.read(client.to(words[0])).hex()
        if verb == "handle":
            return client.handle(words[0]).hex()
        if verb == "again":
            return client.read([(PUTFH, opaque(bytes.fromhex(words[0])))]).hex()
        if verb == "remove":
            folder, _, name = words[0].rpartition("/")
            client.compound([*client.to(folder), (REMOVE, opaque(name.encode()))])
            return True
    except Refused as refused:
        return {"error": refused.status, "op": refused.op}
    raise SystemExit(f"unknown: {verb}")


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(*sys.argv[1:])) + "\n")
