"""Shell completion with the everywhere options taken out first; importing this makes it known to click.

bash splits a line at ``:`` and ``=`` too (COMP_WORDBREAKS), so a MAC would come as many words. Our script hands over
the line up to the cursor instead, and the answers lack what bash keeps of the last word anyway.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

from capsulekit.cli.main import FLAGS, VALUED, hoist

SHELLS = ("bash", "zsh", "fish")
_BASH = """\
%(complete_func)s() {
    local IFS=$'\\n' type value
    COMPREPLY=()
    while IFS=, read -r type value; do
        case $type in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_LINE="${COMP_LINE:0:COMP_POINT}" COMP_BREAKS="$COMP_WORDBREAKS" \\
        %(complete_var)s=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

if TYPE_CHECKING:
    _Base = ShellComplete
else:
    _Base = object


class _Hoisting(_Base):
    """Takes the everywhere options out of the words before click reads them, and offers them where one begins."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """What may stand at the cursor."""
        try:
            hoisted = hoist(args)
        except click.UsageError:
            # Behind --config-dir or --state-dir.
            return [CompletionItem(incomplete, type="dir")]
        self.ctx_args["obj"] = hoisted.options
        found = super().get_completions(hoisted.rest, incomplete)
        if incomplete.startswith("-"):
            known = {item.value for item in found}
            names = [name for name in (*FLAGS, *VALUED) if name.startswith("--") and name not in known]
            found += [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found


class _Bash(_Hoisting, BashComplete):
    source_template = _BASH
    _kept = ""

    def source(self) -> str:
        """The script; whether this machine's bash is new enough is not asked: it may be for another."""
        return self.source_template % self.source_vars()

    def get_completion_args(self) -> tuple[list[str], str]:
        """The words before the cursor's, and what there is of that one."""
        line = os.environ["COMP_LINE"]
        # With an "x" at its end the line has a last word even behind a blank.
        words = split_arg_string(line + "x")
        incomplete = words.pop()[:-1] if words else ""
        breaks = os.environ.get("COMP_BREAKS", ":=@")
        ends = [incomplete.rfind(char) + (char != "@") for char in ":=@" if char in breaks and char in incomplete]
        # An @ is where bash begins a word, ":" and "=" are where it ends one.
        self._kept = incomplete[: max(ends, default=0)]
        return words[1:], incomplete

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """One answer as the script reads it."""
        return f"{item.type},{str(item.value).removeprefix(self._kept)}"


class _Zsh(_Hoisting, ZshComplete):
    pass


class _Fish(_Hoisting, FishComplete):
    pass


CLASSES: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
for _shell, _class in CLASSES.items():
    add_completion_class(_class, _shell)
