"""Passwords as /etc/shadow holds them: SHA-512-crypt, which every C library of the last fifteen years reads.

Ulrich Drepper, "Unix crypt using SHA-256 and SHA-512", version 0.4 (2008), with its 5000 rounds. Python's own module
``crypt`` is gone since 3.13.
"""

from __future__ import annotations

import hashlib
import re
import secrets

_LETTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_HASHED = re.compile(r"\$(?:5|6|y|gy|2[aby])\$[!-9;-~]{10,200}")
ROUNDS = 5000


def is_hashed(text: str) -> bool:
    """Whether the text is a password's hash already (crypt(5)), as ``openssl passwd -6`` prints one."""
    return _HASHED.fullmatch(text) is not None


def hashed(password: str, salt: str | None = None) -> str:
    """``$6$SALT$HASH`` of a password; a hash stays as it is. ``salt``: at most 16 letters of crypt's alphabet."""
    if is_hashed(password):
        return password
    salt = salt if salt is not None else "".join(secrets.choice(_LETTERS) for _ in range(16))
    return f"$6${salt}${_encoded(_digest(password.encode(), salt.encode()))}"


def _digest(key: bytes, salt: bytes) -> bytes:
    """Steps 1 to 21 of the specification."""
    other = _sum(key + salt + key)
    text = key + salt + _filled(other, len(key))
    bits = len(key)
    while bits:
        text += other if bits & 1 else key
        bits >>= 1
    done = _sum(text)
    p = _filled(_sum(key * len(key)), len(key))
    s = _filled(_sum(salt * (16 + done[0])), len(salt))
    for number in range(ROUNDS):
        text = p if number & 1 else done
        text += s if number % 3 else b""
        text += p if number % 7 else b""
        done = _sum(text + (done if number & 1 else p))
    return done


def _sum(data: bytes) -> bytes:
    return hashlib.sha512(data).digest()


def _filled(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _encoded(digest: bytes) -> str:
    """Step 22: three bytes in four letters, in an order of its own."""
    out = []
    first, second, third = 0, 21, 42
    for _ in range(21):
        out.append(_letters(digest[first] << 16 | digest[second] << 8 | digest[third], 4))
        first, second, third = second + 1, third + 1, first + 1
    return "".join(out) + _letters(digest[63], 2)


def _letters(value: int, count: int) -> str:
    return "".join(_LETTERS[value >> (6 * place) & 63] for place in range(count))
