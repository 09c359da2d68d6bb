-- The completion scripts, by the shells they are for.

local fake = require 'spec.support.fake_cli'
local cli = require 'dutch-master.cli'

local function script(shell)
    local w = fake.new {}
    assert.equal(0, cli.main(fake.argv('completion', shell), w.platform))
    return w.text()
end

local function shell_is_there(shell)
    return os.execute('command -v ' .. shell .. ' >/dev/null 2>&1') == 0
end

-- Runs `commands` in a new directory that holds master.lua, other.txt and releases/, with $script naming the script.
local function run(shell, commands, command)
    local dir = io.popen('mktemp -d'):read '*l'
    local function write(name, text)
        local file = assert(io.open(dir .. '/' .. name, 'w'))
        file:write(text)
        file:close()
    end
    write('completion', script(shell))
    write('master.lua', '')
    write('other.txt', '')
    write('commands', commands)
    os.execute('mkdir ' .. dir .. '/releases')
    local line = 'cd %s && HOME="$PWD" script=./completion %s ./commands 2>&1'
    local pipe = io.popen(line:format(dir, command or shell))
    local said = pipe:read '*a'
    pipe:close()
    os.execute('rm -r ' .. dir)
    return said
end

local function words(text)
    local list = {}
    for word in text:gmatch '%S+' do
        list[#list + 1] = word
    end
    table.sort(list)
    return list
end

describe('completion', function()
    it('by bash', function()
        local function complete(...)
            local line = { 'dutch-master', ... }
            return words(run('bash', ([[
                set -u
                . $script
                COMP_WORDS=(%s) COMP_CWORD=%d
                _dutch_master
                printf '%%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
            ]]):format("'" .. table.concat(line, "' '") .. "'", #line - 1)))
        end
        assert.same({ 'stop' }, complete 'sto')
        assert.same({ 'releases/', 'reload', 'restart' }, complete 're')
        assert.same({ 'master.lua' }, complete 'mas')
        assert.same({ '--timeout' }, complete('restart', '--t'))
        assert.same({ 'master.lua' }, complete('restart', 'm'))
        assert.same({ '--help', 'bash', 'fish', 'luals', 'zsh' }, complete('completion', ''))
        assert.same({}, complete('unknown', 'm'))
        local all = complete ''
        for _, verb in ipairs(cli.verbs) do
            assert.truthy((' ' .. table.concat(all, ' ') .. ' '):find(' ' .. verb .. ' ', 1, true), verb)
        end
    end)

    it('by zsh', function()
        if not shell_is_there 'zsh' then
            return pending 'zsh is not installed'
        end
        -- Completion works in an interactive shell only: a pseudo terminal of zsh's own runs one. What is typed comes
        -- back too, so that what is awaited must not be in it.
        local said = run('zsh', [[
            zmodload zsh/zpty
            zpty shell 'TERM=dumb zsh -f -i'
            zpty -w shell "autoload -Uz compinit && compinit -D -u; . $PWD/completion; bindkey '^I' list-choices"
            zpty -w shell "LISTMAX=0; PS1='rea''dy> '"
            zpty -r shell answer '*ready> *'
            zpty -w -n shell $'dutch-master re\t'
            zpty -r shell answer '*restart  -- *ready> *'
            print -r -- $answer
            zpty -w -n shell $'\Cudutch-master restart --t\t'
            zpty -r shell answer '*--timeout  -- *ready> *'
            print -r -- $answer
            zpty -d shell
        ]], 'timeout 30 zsh -f')
        assert.truthy(said:find('reload   -- read the script', 1, true), said)
        assert.truthy(said:find('--timeout  -- wait', 1, true), said)
        assert.falsy(said:find('error', 1, true), said)
    end)

    it('by fish', function()
        if not shell_is_there 'fish' then
            return pending 'fish is not installed'
        end
        local said = run('fish', [[
            source $script
            echo verbs:; complete -C 'dutch-master re'
            echo script:; complete -C 'dutch-master mas'
            echo after:; complete -C 'dutch-master status mas'
            echo options:; complete -C 'dutch-master restart --ti'
            echo shells:; complete -C 'dutch-master completion '
        ]])
        assert.truthy(said:find 'verbs:.*restart\t.*script:\nmaster%.lua\nafter:\nmaster%.lua\noptions:', said)
        assert.truthy(said:find 'options:.*%-%-timeout\t.*shells:', said)
        assert.truthy(said:find 'shells:.*fish', said)
        assert.falsy(said:find '[Ee]rror', said)
    end)
end)
