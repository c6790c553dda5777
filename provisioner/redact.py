"""What may be shown or sent: settings and texts without the secrets that may stand in them."""

from __future__ import annotations

import re

HIDDEN = "(hidden)"
_SECRET_KEY = re.compile(r"pass(word|wd|phrase)?|secret|token|private|credential|community", re.IGNORECASE)
# user:secret@ of a URL; key=value and key: value where the key says so; a PEM block.
_IN_URL = re.compile(r"(?P<head>[A-Za-z][A-Za-z0-9+.-]*://[^\s/:@]*):[^\s/@]*@")
_PAIR = re.compile(
    r"(?P<head>\b[\w.-]*(?:passw(?:or)?d|passphrase|passwd|secret|token|credential)[\w.-]*[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"\n]*\"|'[^'\n]*'|[^\s,;&]+)",
    re.IGNORECASE,
)
_HASH = re.compile(r"\$(?:1|2[aby]?|5|6|7|y|gy|argon2\w*)\$[^\s:\"']+")
_PEM = re.compile(r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def is_secret(key: str) -> bool:
    """Whether a setting of this name holds a secret; one that names a file of secrets (passfile=…) does not."""
    return bool(_SECRET_KEY.search(key)) and not re.search(r"file|path|dir\b", key, re.IGNORECASE)


def redact(text: str) -> str:
    """The text without passwords in URLs, values of keys that say password or the like, hashes and private keys."""
    text = _PEM.sub(HIDDEN, text)
    text = _IN_URL.sub(rf"\g<head>:{HIDDEN}@", text)
    text = _HASH.sub(HIDDEN, text)
    return _PAIR.sub(lambda pair: pair["head"] + HIDDEN, text)
