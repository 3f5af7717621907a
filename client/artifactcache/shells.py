"""Completion scripts for bash, zsh and fish, of what `completion` has read off a parser.

Law of this file: pure; and what the daemon answers is never code. Names of held artifacts were chosen by other people
of the host, so the scripts offer only those of plain characters, and let no shell expand a list of them. Nor is what
has been typed so far run: of the daemon's folder only `~/`, or a variable's name before the first slash, is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from artifactcache.completion import Command, Option, Word

# The artifacts that are held, one a line: what `ls` shows this user, but for names with characters that a shell reads.
# `where` is the option by which the line so far says which daemon is asked, or nothing.
_WHERE = "--socket-dir"
_LISTED = (
    r""" ls --json --timeout 2 2>/dev/null"""
    r""" | sed -n 's/^ *"version": "\([][A-Za-z0-9:/@._+%=,~-]*\)",*$/\1/p'"""
)
_HELD = 'artifactcache ${where:+"' + _WHERE + '=$where"}' + _LISTED


def _below(command: Command, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    """A command and all below it, each with the names that lead to it."""
    yield names, command
    for each in command.commands:
        yield from _below(each, (*names, each.name))


def _name(command: Command) -> str:
    return "_" + re.sub(r"\W", "_", command.name)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _offers_held(program: Command) -> bool:
    return any(word.kind == "held" for _, command in _below(program) for word in command.words)


# -- bash -------------------------------------------------------------------------------------------------------------

_BASH_WHERE = f"""        case $command:${{words[i]}} in
            :{_WHERE}) where=${{words[i + 1]}} ;;
            :{_WHERE}=*) where=${{words[i]#*=}} ;;
        esac
"""

_BASH_HELD = r"""_%(program)s_held() {
    if [[ $where == "~/"* ]]; then where=$HOME/${where#*/}; fi
    if [[ $where =~ ^\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?(/.*)?$ ]]; then
        where=${!BASH_REMATCH[1]}${BASH_REMATCH[2]}
    fi
    %(held)s
}

"""

_BASH = r"""# bash completion of {program}
{held}_{program}_offer() {{
    # The words read that begin like the last of the line, without the part that readline takes for words of its own.
    local word mark head cut=
    for mark in : = @; do
        if [[ $COMP_WORDBREAKS == *$mark* && $cur == *$mark* ]]; then
            head=${{cur%"${{cur##*"$mark"}}"}}
            if ((${{#head}} > ${{#cut}})); then cut=$head; fi
        fi
    done
    while IFS= read -r word; do
        if [[ $word == "$cur"* ]]; then COMPREPLY+=("${{word#"$cut"}}"); fi
    done
}}

{program_function}() {{
    local line=${{COMP_LINE:0:COMP_POINT}} words cur previous command= place=0 i skip= is_value= where=
    read -ra words <<< "$line"
    if [[ $line == *[[:space:]] ]]; then words+=(""); fi
    cur=${{words[${{#words[@]}}-1]}} previous=${{words[${{#words[@]}}-2]}} COMPREPLY=()
    if [[ $cur == --*=* ]]; then previous=${{cur%%=*}} cur=${{cur#*=}} is_value=1; fi
    for ((i = 1; i < ${{#words[@]}} - 1; i++)); do
        if [[ $skip ]]; then skip=; continue; fi
{where}        case $command:${{words[i]}} in
            {valued}) skip=1 ;;
            *:-*) ;;
            :*) command=${{words[i]}} ;;
{nested}            *) place=$((place + 1)) ;;
        esac
    done
    case $command:$previous in
{values}
    esac
    if [[ $skip || $is_value ]]; then return; fi  # a value that only its user can know
    if [[ $cur == -* ]]; then
        case $command in
{options}
        esac
        return
    fi
    case $command:$place in
{places}
    esac
}}
complete -o nosort -F {program_function} {program}
"""


def bash(program: Command) -> str:
    """For `eval "$(… --completion bash)"`, or a file of that program's name in bash-completion's folder."""
    everything = [("\\ ".join(names), each) for names, each in _below(program)]  # a key is a pattern of `case`
    valued = [
        f"{key}:{name}"
        for key, each in everything
        for option in each.options
        for name in option.names
        if option.value is not None
    ]
    nested = [(key, below.name) for key, each in everything if key for below in each.commands]
    values, options, places = [], [], []
    for key, each in everything:
        for option in each.options:
            if option.value is not None and (offer := _bash_offer(program, option.value)):
                patterns = "|".join(f"{key}:{name}" for name in option.names)
                values.append(f"        {patterns}) {offer}; return ;;")
        names = " ".join(name for option in each.options for name in option.names)
        options.append(f"            {key or _quoted('')}) {_bash_words(program, names)} ;;")
        for number, word in enumerate(each.words):
            place = f"{key}:*" if word.is_many else f"{key}:{number}"
            places += [f"        {place}) {offer} ;;" for offer in [_bash_offer(program, word)] if offer]
        if each.commands:
            below = " ".join(one.name for one in each.commands)
            places.append(f"        {key}:*) {_bash_words(program, below)} ;;")
    return _BASH.format(
        program=program.name,
        held=_BASH_HELD % {"program": program.name, "held": _HELD} if _offers_held(program) else "",
        where=_BASH_WHERE if _offers_held(program) else "",
        program_function=_name(program),
        valued="|".join(valued),
        nested="".join(f'            {key}:{name}) command+=" {name}" ;;\n' for key, name in nested),
        values="\n".join(values),
        options="\n".join(options),
        places="\n".join(places),
    )


def _bash_words(program: Command, words: str) -> str:
    return f"_{program.name}_offer < <(printf '%s\\n' {words})"


def _bash_offer(program: Command, word: Word) -> str:
    if word.choices:
        return _bash_words(program, " ".join(word.choices))
    if word.kind == "held":
        return f"_{program.name}_offer < <(_{program.name}_held)"
    if word.kind in ("file", "folder"):
        kind = "d" if word.kind == "folder" else "f"
        return f'compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -{kind} -- "$cur")'
    return ""


# -- zsh --------------------------------------------------------------------------------------------------------------

_ZSH = r"""#compdef {program}
# zsh completion of {program}
{functions}
if [[ $funcstack[1] == {program_function} ]]; then
    {program_function} "$@"
else
    compdef {program_function} {program}
fi
"""


_ZSH_HELD = r"""_%(program)s_held() {
    local match mbegin mend MATCH MBEGIN MEND
    if [[ $where == "~/"* ]]; then where=$HOME/${where#*/}; fi
    if [[ $where =~ '^\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?(/.*)?$' ]]; then where=${(P)match[1]}$match[2]; fi
    local -a held=(${(f)"$(%(held)s)"})
    compadd -a held
}
"""


def zsh(program: Command) -> str:
    """For `source <(… --completion zsh)`, or a file `_program` in a folder of `fpath`."""
    functions = [_ZSH_HELD % {"program": program.name, "held": _HELD}] if _offers_held(program) else []
    for names, each in _below(program):
        name = _zsh_name(program, *names)
        if each.commands:
            functions.append(_zsh_group(program, names, each))
        else:
            functions.append(_zsh_function(program, name, each))
    return _ZSH.format(program=program.name, program_function=_name(program), functions="\n".join(functions))


def _zsh_name(program: Command, *names: str) -> str:
    return "__".join((_name(program), *(re.sub(r"\W", "_", name) for name in names)))


def _zsh_group(program: Command, names: tuple[str, ...], group: Command) -> str:
    """The function of what has commands below it."""
    named = "\n".join(f"                {_quoted(f'{_zsh_plain(each.name)}:{each.help}')}" for each in group.commands)
    cases = "\n".join(
        f"                {each.name}) {_zsh_name(program, *names, each.name)} ;;" for each in group.commands
    )
    specs = " \\\n        ".join(_quoted(spec) for option in group.options for spec in _zsh_option(program, option))
    # Each command reads options of its own into opt_args, so the program's is put aside.
    is_first = not names and _offers_held(program)
    where = f"\n    local where=${{(Q)opt_args[{_WHERE}]}}" if is_first else ""
    return f"""{_zsh_name(program, *names)}() {{
    local context state line curcontext=$curcontext
    typeset -A opt_args
    _arguments -C -s \\
        {specs} \\
        '1: :->command' '*:: :->rest'{where}
    case $state in
        command)
            local -a commands=(
{named}
            )
            _describe -t commands command commands ;;
        rest)
            case $line[1] in
{cases}
            esac ;;
    esac
}}
"""


def _zsh_function(program: Command, name: str, command: Command) -> str:
    specs = [_quoted(spec) for option in command.options for spec in _zsh_option(program, option)]
    specs += [
        _quoted(f"{'*' if word.is_many else number}:{_zsh_plain(word.name)}:{_zsh_offer(program, word)}")
        for number, word in enumerate(command.words, 1)
    ]
    joined = " \\\n        ".join(specs)
    return f"{name}() {{\n    _arguments -s \\\n        {joined}\n}}\n"


def _zsh_option(program: Command, option: Option) -> Iterator[str]:
    many = "*" if option.is_many else ""
    value = ""
    if option.value is not None:
        value = f":{_zsh_plain(option.value.name)}:{_zsh_offer(program, option.value)}"
    for name in option.names:
        yield f"{many}{name}[{_zsh_plain(option.help)}]{value}"


def _zsh_plain(text: str) -> str:
    return re.sub(r"([\\:\[\]])", r"\\\1", text)


def _zsh_offer(program: Command, word: Word) -> str:
    if word.choices:
        return f"({' '.join(word.choices)})"
    return {"held": f"_{program.name}_held", "file": "_files", "folder": "_files -/"}.get(word.kind, " ")


# -- fish -------------------------------------------------------------------------------------------------------------

_FISH_HELD = r"""function __%(program)s_held
    set -l where
    set -l words (commandline -opc)
    for i in (seq 2 (count $words))
        switch $words[$i]
            case %(where)s
                set where $words[(math $i + 1)]
            case '%(where)s=*'
                set where (string replace -r '^[^=]*=' '' -- $words[$i])
            case '-*'
            case '*'
                if test $words[(math $i - 1)] != %(where)s
                    break  # the command
                end
        end
    end
    set where (string replace -r '^~/' $HOME/ -- $where)
    if string match -rq '^\$(?<name>[A-Za-z_]\w*)(?<rest>/.*)?$' -- $where
        set where "$$name$rest"
    end
    artifactcache %(where)s=$where%(listed)s
end
"""

_FISH = r"""# fish completion of {program}
{held}complete -c {program} -f
{lines}
"""


def fish(program: Command) -> str:
    """For `… --completion fish | source`, or a file `program.fish` in fish's folder of completions."""
    function = _name(program)[1:]
    lines = []
    for path, each in _below(program):
        conditions = [f"__fish_seen_subcommand_from {name}" for name in path]
        if each.commands:
            below = " ".join(one.name for one in each.commands)
            conditions.append(f"not __fish_seen_subcommand_from {below}")
        here = f"complete -c {program.name} -n '{'; and '.join(conditions)}'"
        lines += [f"{here} -a {one.name} -d {_fish_quoted(one.help)}" for one in each.commands]
        lines += [f"{here} {_fish_option(function, option)}" for option in each.options]
        lines += [f"{here}{offer}" for word in each.words if (offer := _fish_offer(function, word))]
    held = _FISH_HELD % {"program": function, "where": _WHERE, "listed": _LISTED} if _offers_held(program) else ""
    return _FISH.format(program=program.name, held=held, lines="\n".join(dict.fromkeys(lines)))


def _fish_option(function: str, option: Option) -> str:
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    value = "" if option.value is None else f" -r{_fish_offer(function, option.value) or ' -f'}"
    return f"{names}{value} -d {_fish_quoted(option.help)}"


def _fish_offer(function: str, word: Word) -> str:
    if word.choices:
        return f" -f -a {_fish_quoted(' '.join(word.choices))}"
    return {
        "held": f" -f -a '(__{function}_held)'",
        "file": " -F",
        "folder": " -f -a '(__fish_complete_directories)'",
    }.get(word.kind, "")


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


SCRIPTS: dict[str, Callable[[Command], str]] = {"bash": bash, "zsh": zsh, "fish": fish}
