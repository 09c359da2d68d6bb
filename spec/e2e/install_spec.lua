-- What is installed, and that it needs nothing of the source tree.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local http = require 'spec.support.http'
local master = require 'spec.support.master'

local function files_below(dir)
    local list = {}
    for path in io.popen(("cd '%s' && find . -type f -o -type l | sort"):format(dir)):lines() do
        list[#list + 1] = path
    end
    return list
end

describe('what cmake installs', function()
    after_each(master.cleanup)

    it('is a binary that serves by itself, its manual, units, completions and the preload for Node', function()
        local dir = master.temp_dir()
        local build = uv.fs_realpath(master.binary():match '^(.*)/')
        assert.equal(0, os.execute(("cmake --install '%s' --prefix '%s' >'%s.out' 2>&1"):format(build, dir, dir)))
        os.remove(dir .. '.out')
        assert.same({
            './bin/dutch-master', './lib/systemd/system/dutch-master@.service',
            './lib/systemd/system/dutch-master@.socket', './share/bash-completion/completions/dutch-master',
            './share/dutch-master/drain.cjs', './share/dutch-master/luals/dutch-master.lua',
            './share/dutch-master/metrics.cjs',
            './share/fish/vendor_completions.d/dutch-master.fish', './share/man/man1/dutch-master.1',
            './share/man/man5/dutch-master.lua.5', './share/man/man7/dutch-master-from.7',
            './share/zsh/site-functions/_dutch-master',
        }, files_below(dir))
        local unit = io.open(dir .. '/lib/systemd/system/dutch-master@.service'):read '*a'
        assert.matches('\nExecStart=' .. dir:gsub('%p', '%%%0') .. '/bin/dutch%-master /srv/%%i/current/master%.lua\n', unit)
        assert.falsy(unit:find '@DM')
        for _, name in ipairs { 'bash-completion/completions/dutch-master', 'zsh/site-functions/_dutch-master' } do
            assert.matches('restart', io.open(dir .. '/share/' .. name):read '*a')
        end

        local port = http.free_port()
        local m = master.start {
            binary = dir .. '/bin/dutch-master',
            script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
                workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http },
            env = { DUTCH_MASTER_LUA = false, LUA_PATH = false, LUA_CPATH = false, PATH = '/nowhere' },
        }
        m:await 'Cluster ready'
        assert.equal(200, (http.get { port = port }))
        m:signal 'SIGUSR2'
        m:await 'Restart complete'
        m:finish { code = 0 }
    end)
end)
