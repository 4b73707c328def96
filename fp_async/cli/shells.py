"""How bash, zsh and fish ask for completions, where click's own scripts do not do.

bash takes `=` and `:` for the ends of words, so that it replaces only what stands behind them. bash
and zsh append a space to `count=`, whose value is still to come. In click's script for fish a name
ends at its first comma, and so does what is said of it.
"""

from __future__ import annotations

import os

from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ZshComplete,
    add_completion_class,
    split_arg_string,
)

_BASH = r"""
%(complete_func)s() {
    local answers answer
    readarray -t answers < <(_FP_LINE="$COMP_LINE" _FP_POINT="$COMP_POINT" \
        _FP_BREAKS="$COMP_WORDBREAKS" %(complete_var)s=bash_complete "$1")
    COMPREPLY=()
    for answer in "${answers[@]}"; do
        case "$answer" in
            dir,*) compopt -o dirnames ;;
            file,*) compopt -o default ;;
            plain,*) COMPREPLY+=("${answer#plain,}") ;;
        esac
    done
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""

_ZSH = r"""
#compdef %(prog_name)s
%(complete_func)s() {
    local -a plain told open answer
    (( ! $+commands[%(prog_name)s] )) && return 1
    answer=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT-1)) \
        %(complete_var)s=zsh_complete %(prog_name)s)}")
    for type key help in ${answer}; do
        if [[ "$type" == dir ]]; then _path_files -/
        elif [[ "$type" == file ]]; then _path_files -f
        elif [[ "$key" == *= ]]; then open+=("$key")
        elif [[ "$help" == _ ]]; then plain+=("$key")
        else told+=("${key//:/\\:}:$help")
        fi
    done
    [[ -n "$told" ]] && _describe -V unsorted told -U
    [[ -n "$plain" ]] && compadd -U -V unsorted -a plain
    [[ -n "$open" ]] && compadd -U -S '' -V unsorted -a open
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""


_FISH = r"""
function %(complete_func)s
    set -l answers (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) \
        COMP_CWORD=(commandline -t) %(prog_name)s)
    for answer in $answers
        set -l parts (string split -m 1 "," -- $answer)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class Bash(BashComplete):
    """Completions as bash wants them: what replaces the text behind the last break of a word.

    A script of click's that somebody has kept in a file is answered as click does.
    """

    source_template = _BASH

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the words of the line before the one at the cursor, and that one."""
        if "_FP_LINE" not in os.environ:
            return super().get_completion_args()
        line = os.environ["_FP_LINE"].encode()[: int(os.environ["_FP_POINT"])].decode()
        words = split_arg_string(line)[1:]
        if not words or line[-1].isspace():
            return words, ""
        return words[:-1], words[-1]

    def complete(self) -> str:
        """Return the answer, as the script above reads it."""
        args, incomplete = self.get_completion_args()
        breaks = (incomplete.rfind(c) for c in "=:" if c in os.environ.get("_FP_BREAKS", ""))
        kept = incomplete[: max(breaks, default=-1) + 1]
        found = self.get_completions(args, incomplete)
        return "\n".join(f"{item.type},{item.value.removeprefix(kept)}" for item in found)


class Zsh(ZshComplete):
    """Completions with their explanations."""

    source_template = _ZSH

    def format_completion(self, item: CompletionItem) -> str:
        """Return three lines for each: type, text, and what it is."""
        return f"{item.type}\n{item.value}\n{item.help or '_'}"


class Fish(FishComplete):
    """Completions with their explanations behind a tab."""

    source_template = _FISH

    def format_completion(self, item: CompletionItem) -> str:
        """Return a line: type, comma, text, and what it is."""
        about = " ".join((item.help or "").split())
        return f"{item.type},{item.value}" + (f"\t{about}" if about else "")


def register() -> None:
    """Have click answer these shells so."""
    add_completion_class(Bash, "bash")
    add_completion_class(Zsh, "zsh")
    add_completion_class(Fish, "fish")
