-- What the README gives to be copied, and no other spec runs: its very words.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local function readme(pattern)
    local file = assert(io.open 'README.md')
    local found = file:read '*a':match(pattern)
    file:close()
    return (assert(found, pattern):gsub('\n', ' '))
end

describe('README', function()
    after_each(master.cleanup)

    it('a unix path has the mode and the group that listen gives it', function()
        if uv.getuid() ~= 0 then
            return pending 'only root may give a file to another group'
        end
        local entry = readme '`(listen = { app = { address = [^`]*)`'
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
        local named = readme 'At run time it needs\n?(.-), and `lua%-http`'
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
        for name, text in pairs { ['app.lua'] = apps.idle,
            ['master.lua'] = "require('dutch-master').start { worker = 'app.lua', stopTimeout = 5 }" } do
            local file = assert(io.open(dir .. '/' .. name, 'w'))
            file:write(text)
            file:close()
        end
        local env = { DUTCH_MASTER_RUNTIME_DIR = dir .. '/run' }
        local function verb(...)
            return cli.run(nil, { ... }, { cwd = dir, env = env })
        end
        -- The shell of that terminal ends with the line, and the terminal with it.
        local command = ("cd '%s' && export DUTCH_MASTER_RUNTIME_DIR='%s' PATH='%s':\"$PATH\"\n%s\n"):format(dir,
            env.DUTCH_MASTER_RUNTIME_DIR, master.binary():match '^(.*)/', line)
        local file = assert(io.open(dir .. '/command', 'w'))
        file:write(command .. "until grep -q 'Starting cluster' master.log; do kill -0 $! || exit 1; done\n")
        file:close()
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
