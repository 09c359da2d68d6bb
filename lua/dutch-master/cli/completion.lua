--- dutch-master completion: words for the Tab key, made of the verbs' descriptions.

local arguments = require 'dutch-master.cli.arguments'
local shell = require 'dutch-master.shell'

local M = {
    name = 'completion',
    takes_script = false,
    summary = 'print the completion script for bash, zsh or fish; or luals: types for editors',
    description = 'Prints a completion script for a shell. luals: what a script may say, as annotations for the Lua\n'
        .. 'language server (workspace.library in .luarc.json); installed in share/dutch-master/luals.',
    argument = {
        name = 'bash|zsh|fish|luals', pattern = '^%a+$', required = true, expects = 'bash, zsh or fish, or luals',
    },
    examples = {
        'dutch-master completion bash > /etc/bash_completion.d/dutch-master',
        'dutch-master completion zsh > "${fpath[1]}/_dutch-master"',
        'dutch-master completion fish > ~/.config/fish/completions/dutch-master.fish',
    },
    codes = '0, 2 a shell that is not known',
}

-- -> their descriptions, and their names with blanks between
local function verbs()
    local cli = require 'dutch-master.cli'
    local list = {}
    for i, name in ipairs(cli.verbs) do
        list[i] = cli.verb(name)
    end
    return list, table.concat(cli.verbs, ' ')
end

local function option_words(verb)
    local words = {}
    for _, option in ipairs(arguments.options(verb)) do
        words[#words + 1] = '--' .. option.long
    end
    return table.concat(words, ' ')
end

local shells = {}

function shells.bash()
    local all, names = verbs()
    local cases = {}
    for i, verb in ipairs(all) do
        cases[i] = ("        %s) words='%s' ;;"):format(verb.name,
            verb.name == 'completion' and 'bash zsh fish luals --help' or option_words(verb))
    end
    return ([[
# bash completion for dutch-master
_dutch_master() {
    local current=${COMP_WORDS[COMP_CWORD]} words=
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        words='@VERBS@ --help --version'
    else
        case ${COMP_WORDS[1]} in
@CASES@
        *) return ;;
        esac
    fi
    local IFS=$'\n'
    case $current in
    -*) ;;
    *)
        [ "${COMP_WORDS[1]}" = completion ] && [ "$COMP_CWORD" -gt 1 ] ||
            COMPREPLY=($(compgen -f -X '!*.lua' -- "$current") $(compgen -d -S / -- "$current"))
        ;;
    esac
    COMPREPLY+=($(compgen -W "${words// /$'\n'}" -- "$current"))
    case ${COMPREPLY[0]} in
    */) [ "${#COMPREPLY[@]}" -eq 1 ] && compopt -o nospace 2>/dev/null ;;
    esac
    return 0
}
complete -F _dutch_master dutch-master
]]):gsub('@(%u+)@', { VERBS = names, CASES = table.concat(cases, '\n') })
end

local function zsh_text(text)
    return (text:gsub("[%[%]:]", '\\%0'))
end

function shells.zsh()
    local names, cases = {}, {}
    for i, verb in ipairs(verbs()) do
        names[i] = '        ' .. shell.quote(verb.name .. ':' .. verb.summary)
        local specs = {}
        for _, option in ipairs(arguments.options(verb)) do
            specs[#specs + 1] = shell.quote(('--%s[%s]%s'):format(option.long, zsh_text(option.doc),
                option.value and (':' .. option.value .. ':') or ''))
        end
        if verb.name == 'completion' then
            specs[#specs + 1] = shell.quote('1:shell:(bash zsh fish luals)')
        else
            specs[#specs + 1] = shell.quote '*:script:_files -g "*.lua(-.)"'
        end
        cases[i] = ('    %s) _arguments %s ;;'):format(verb.name, table.concat(specs, ' '))
    end
    return ([[
#compdef dutch-master

_dutch_master() {
    local -a verbs
    verbs=(
@VERBS@
    )
    if (( CURRENT == 2 )); then
        _describe -t verbs verb verbs
        _files -g '*.lua(-.)'
        return
    fi
    local verb=$words[2]
    shift words
    (( CURRENT-- ))
    case $verb in
@CASES@
    esac
}

if [ "$funcstack[1]" = _dutch-master ]; then
    _dutch_master "$@"
else
    compdef _dutch_master dutch-master
fi
]]):gsub('@(%u+)@', { VERBS = table.concat(names, '\n'), CASES = table.concat(cases, '\n') })
end

function shells.fish()
    local all, names = verbs()
    local lines = {
        '# fish completion for dutch-master',
        'set -l verbs ' .. names,
        "complete -c dutch-master -n \"not __fish_seen_subcommand_from $verbs\" -l help -d 'the verbs'",
        "complete -c dutch-master -n \"not __fish_seen_subcommand_from $verbs\" -l version -d 'the version'",
        -- Where verbs are offered, fish would offer no files.
        "complete -c dutch-master -k -n \"not __fish_seen_subcommand_from $verbs\" "
            .. "-a '(__fish_complete_suffix .lua)'",
    }
    for _, verb in ipairs(all) do
        local none = 'complete -c dutch-master -f -n "not __fish_seen_subcommand_from $verbs" -a %s -d %s'
        lines[#lines + 1] = none:format(verb.name, shell.quote(verb.summary))
        for _, option in ipairs(arguments.options(verb)) do
            local after = "complete -c dutch-master -n '__fish_seen_subcommand_from %s' -l %s%s%s -d %s"
            lines[#lines + 1] = after:format(verb.name, option.long, option.short and ' -s ' .. option.short or '',
                option.value and ' -x' or '', shell.quote(option.doc))
        end
    end
    lines[#lines + 1] = "complete -c dutch-master -f -n '__fish_seen_subcommand_from completion' "
        .. "-a 'bash zsh fish luals'"
    return table.concat(lines, '\n') .. '\n'
end

--- Not for a shell: what a script may say, for the language server of an editor.
function shells.luals()
    return require('dutch-master.cli.annotations').render()
end

function M.run(ctx)
    local script = shells[ctx.argument]
    if not script then
        return ctx.usage(('expected bash, zsh, fish or luals, found "%s"'):format(ctx.argument))
    end
    ctx.out((script()))
    return 0
end

return M
