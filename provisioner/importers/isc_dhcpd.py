"""ISC dhcpd's configuration or lease file: host declarations, however nested (dhcpd.conf(5), dhcpd.leases(5)).

Read as a language, not line by line: ``host n1 { hardware ethernet …; fixed-address …; }`` may stand on one line, in
groups within subnets within shared networks, with comments and quoted text anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from capsulekit.errors import CapsulekitError
from provisioner.importers._found import Found, Gathering, is_address, text_of
from provisioner.registry.names import parse_group, parse_name

ABOUT = "dhcpd.conf of ISC DHCP: hosts with their fixed addresses, named groups."
# A quoted text may not hold a line end: an unclosed quote is then found where it is.
_TOKEN = re.compile(
    r"(?P<skip>[ \t\r\f\v]+|\#[^\n]*)|(?P<line>\n)"
    r'|"(?P<text>(?:\\.|[^"\\\n])*)"|(?P<word>[{};,=]|[^\s{};,="#]+)|(?P<bad>.)'
)


@dataclass(frozen=True)
class _Token:
    text: str
    line: int
    quoted: bool = False


@dataclass
class _Scope:
    """A block that is open: what stands before its brace, and for a host what stands inside."""

    head: list[_Token]
    group: str
    statements: dict[str, list[str]] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.head[0].text if self.head and not self.head[0].quoted else ""


def read(source: Path) -> Found:
    """Every host with an Ethernet card. Raises CapsulekitError naming hosts that cannot be and broken nesting."""
    got = Gathering(source)
    scopes: list[_Scope] = []
    hosts: dict[str, list[_Scope]] = {}
    pending: list[_Token] = []
    for token in _tokens(got, source):
        if token.quoted or token.text not in "{};":
            pending.append(token)
        elif token.text == "{":
            scopes.append(_Scope(pending, _group_of(pending, scopes[-1].group if scopes else "")))
            pending = []
        elif token.text == ";":
            _statement(got, source, scopes, pending)
            pending = []
        else:
            if pending:
                got.wrong(f"{source}:{pending[0].line}", f"{pending[0].text!r} is not ended by a semicolon")
                pending = []
            if not scopes:
                got.wrong(f"{source}:{token.line}", "a closing brace without an opening one")
            else:
                _close(got, source, scopes.pop(), hosts)
    for scope in scopes:
        line = scope.head[0].line if scope.head else 1
        got.wrong(f"{source}:{line}", f"{scope.kind or 'a block'!r} is never closed")
    if pending:
        got.wrong(f"{source}:{pending[0].line}", f"{pending[0].text!r} is not ended by a semicolon")
    for named in hosts.values():
        for scope in named:
            _take(got, source, scope)
    return got.done()


def _tokens(got: Gathering, source: Path) -> Iterator[_Token]:
    line = 1
    for match in _TOKEN.finditer(text_of(source)):
        if match["line"]:
            line += 1
        elif match["text"] is not None:
            yield _Token(re.sub(r"\\(.)", r"\1", match["text"]), line, quoted=True)
        elif match["word"]:
            yield _Token(match["word"], line)
        elif match["bad"]:
            got.wrong(f"{source}:{line}", "a quote that is not closed on its line")
            got.done()


def _group_of(head: list[_Token], outer: str) -> str:
    """The nearest named ``group``: most are not named, and such names are the only ones that mean nodes."""
    if len(head) == 2 and head[0].text == "group":
        try:
            return parse_group(head[1].text)
        except CapsulekitError:
            return outer
    return outer


def _statement(got: Gathering, source: Path, scopes: list[_Scope], tokens: list[_Token]) -> None:
    words = [token.text for token in tokens]
    if not words:
        return
    if words[0] == "include" and len(words) == 2:
        got.note(f"{source}:{tokens[0].line}: {words[1]} is included there and was not read: import it too")
    elif scopes and scopes[-1].kind == "host":
        # "option host-name x" is known by two words, everything else by one.
        key, rest = (" ".join(words[:2]), words[2:]) if words[0] == "option" else (words[0], words[1:])
        scopes[-1].statements.setdefault(key, rest)


def _close(got: Gathering, source: Path, scope: _Scope, hosts: dict[str, list[_Scope]]) -> None:
    """Remember the host that ends here. A lease file is a log: what it says of a host later is what holds."""
    if scope.kind != "host":
        return
    if len(scope.head) != 2:
        got.wrong(f"{source}:{scope.head[0].line}", "a host declaration has one name: host NAME { … }")
        return
    label = scope.head[1].text
    if "deleted" in scope.statements or "dynamic" in scope.statements:
        hosts.pop(label, None)
    if "deleted" not in scope.statements:
        hosts.setdefault(label, []).append(scope)


def _take(got: Gathering, source: Path, scope: _Scope) -> None:
    where, said = f"{source}:{scope.head[0].line}", scope.statements
    label = scope.head[1].text
    kind, *card = said.get("hardware", [""])
    if kind != "ethernet" or len(card) != 1:
        what = f"hardware {kind}" if kind else "no hardware address"
        got.note(f"{where}: host {label} is left out: it has {what}")
        return
    addresses = [word for word in said.get("fixed-address", []) if word != ","]
    usable = [word for word in addresses if is_address(word)]
    for word in addresses:
        if word not in usable:
            got.note(f"{where}: host {label}: fixed-address {word} is a name; import the hosts file too")
    if len(usable) > 1:
        got.note(f"{where}: host {label} has {len(usable)} fixed addresses: the first one is taken")
    name = _name(label, "".join(said.get("option host-name", [])))
    got.machine(where, card[0], name, address="".join(usable[:1]), groupname=scope.group)


def _name(label: str, option: str) -> str:
    """The declaration's own name, or what the machine is told to be called when that can be no node's name."""
    try:
        parse_name(label)
    except CapsulekitError:
        return option or label
    return label
