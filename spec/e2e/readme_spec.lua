-- What the README gives to be copied, and no other spec runs: its very words.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local files = require 'spec.support.files'
local http = require 'spec.support.http'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local function readme(pattern)
    local file = assert(io.open 'README.md')
    local found = file:read '*a':match(pattern)
    file:close()
    return assert(found, pattern)
end

-- The blocks of Lua in the README and in the manual of the script, each with the line that it begins at.
local function blocks()
    local found, current = {}, nil
    for _, file in ipairs { { 'README.md', '^```lua', '^```' }, { 'src/man/dutch-master.lua.5', '^%.Bd %-literal', '^%.Ed' } } do
        local number = 0
        for line in io.lines(file[1]) do
            number = number + 1
            if not current and line:find(file[2]) then
                current = { place = ('%s:%d'):format(file[1], number), text = '' }
            elseif current and line:find(file[3]) then
                found[#found + 1], current = current, nil
            elseif current then
                current.text = current.text .. line .. '\n'
            end
        end
    end
    return found
end

describe('README', function()
    after_each(master.cleanup)

    it('and the manual: every script that they show is good', function()
        local dir, scripts, workers = master.temp_dir(), 0, 0
        for _, block in ipairs(blocks()) do
            local text = block.text
            if text:find '^restartConcurrency' then
                text = "dutch.start { worker = 'app.js', metrics = true,\n" .. text .. '}\n'
            end
            if text:find("require 'dutch-master.worker'", 1, true) then
                assert(loadstring(text, block.place))
                workers = workers + 1
            else
                files.write(dir .. '/master.lua', (text:find('local dutch', 1, true) and ''
                    or "local dutch = require 'dutch-master'\n") .. text)
                local c = cli.run(nil, { 'check', '--quiet' }, { cwd = dir })
                assert.equal(0, c.code, block.place .. '\n' .. c.err)
                scripts = scripts + 1
            end
        end
        assert.is_true(scripts >= 6 and workers >= 1, scripts .. ' ' .. workers)
    end)

    it('the canary goes first, and then as many at a time as `after` says', function()
        if not pcall(require, 'http.server') then
            return pending 'lua-http is not installed'
        end
        local port = http.free_port()
        local wish, count = readme '```lua\n(restartConcurrency.-\n})\n```':gsub('%-%-[^\n]*', ''):gsub('soak = 30', 'soak = 0.3')
        assert.equal(1, count)
        local m = master.start {
            script = ("require('dutch-master').start { worker = 'app.lua', numWorkers = 4, metrics = true, "
                .. 'restartSoak = 0.1, %s }'):format(wish),
            files = { ['app.lua'] = ([[require('dutch-master.http').serve('127.0.0.1:%d', function(_, response)
                response:send 'fine' end)]]):format(port) },
        }
        m:await 'Cluster ready'
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(0, c.code, c.out .. c.err)
        -- One, then two at a time: forks of the new release, after the old workers that they are for.
        local order = {}
        for _, record in ipairs(m.log) do
            if record.generation == 2 and record.msg == 'Creating new worker' then
                order[#order + 1] = 'fork'
            elseif record.generation == 1 and record.msg == 'Restarting worker' then
                order[#order + 1] = 'for'
            end
        end
        assert.equal('for fork for for fork fork for fork', table.concat(order, ' '))
        m:finish()
    end)

    it('a unix path has the mode and the group that listen gives it', function()
        if uv.getuid() ~= 0 then
            return pending 'only root may give a file to another group'
        end
        local entry = readme '`(listen = { app = { address = [^`]*)`':gsub('\n', ' ')
        local path = master.temp_dir() .. '/app.sock'
        local changed
        entry, changed = entry:gsub('unix:/run/app.sock', 'unix:' .. path)
        assert.equal(1, changed)
        local m = master.start {
            script = ("require('dutch-master').start { worker = { 'sleep', '1000' }, ready = { alive = 0.1 }, %s }")
                :format(entry),
        }
        m:await 'Cluster ready'
        local ls = io.popen(("stat -c '%%F %%a %%G' '%s'"):format(path))
        assert.equal('socket 660 www-data\n', ls:read '*a')
        ls:close()
        m:finish()
    end)

    it('at run time it needs the packages that are named, and no other', function()
        if os.execute 'command -v dpkg-query >/dev/null' ~= 0 then
            return pending 'this is no Debian'
        end
        local named = readme 'At run time%s+it%s+needs%s+(.-), and `lua%-http`'
        local found = {}
        local libraries = io.popen(([[ldd '%s' | grep -o '/[^ ]*\.so[^ ]*' | xargs -n 1 readlink -f |
            sed 's#^/usr/#/#' | while read -r path; do
                dpkg-query -S "$path" "/usr$path" 2>/dev/null | sed 's/:.*//' | head -n 1; done]]):format(master.binary()))
        for package in libraries:lines() do
            -- The C library is everywhere; sanitizers bring their own.
            if not package:find '^libc6' and not package:find '^libgcc' and not package:find '^libstdc'
                and not package:find 'san%d*$' then
                found[#found + 1] = package
                assert.truthy(named:find('`' .. package:gsub('t64$', '') .. '`', 1, true), package .. ': ' .. named)
            end
        end
        libraries:close()
        assert.is_true(#found >= 2, table.concat(found, ' '))
    end)

    it('in the background it outlives the terminal that it was started from', function()
        if os.execute 'command -v script >/dev/null' ~= 0 then
            return pending 'script is not installed'
        end
        local line = readme '`(setsid dutch%-master [^`]*&)`'
        local dir = master.temp_dir()
        files.write(dir .. '/app.lua', apps.idle)
        files.write(dir .. '/master.lua', "require('dutch-master').start { worker = 'app.lua', stopTimeout = 5 }")
        local env = { DUTCH_MASTER_RUNTIME_DIR = dir .. '/run' }
        local function verb(...)
            return cli.run(nil, { ... }, { cwd = dir, env = env })
        end
        -- The shell of that terminal ends with the line, and the terminal with it.
        local command = ("cd '%s' && export DUTCH_MASTER_RUNTIME_DIR='%s' PATH='%s':\"$PATH\"\n%s\n"):format(dir,
            env.DUTCH_MASTER_RUNTIME_DIR, master.binary():match '^(.*)/', line)
        files.write(dir .. '/command', command .. "until grep -q 'Starting cluster' master.log; do kill -0 $! || exit 1; done\n")
        assert.equal(0, os.execute(("timeout 60 script -qec 'sh %s/command' /dev/null >/dev/null </dev/null"):format(dir)))
        wait.wait_until(function()
            return verb('status').out:find 'steady, 2 of 2 workers serving'
        end, { what = 'a master in the background' })
        local stopped = verb('stop', '--wait')
        assert.equal(0, stopped.code, stopped.err)
        assert.equal(3, verb('status').code)
        local log = assert(io.open(dir .. '/master.log'))
        assert.matches('"Cluster shutdown cleanly"', log:read '*a')
        log:close()
    end)
end)
