-- Where steering is refused, one shared socket serves, and the log says so. As an ordinary user everything is as it is
-- for root.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local connections = require 'spec.support.connections'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local wait = require 'spec.support.wait'

local NOBODY = { 'setpriv', '--reuid=65534', '--regid=65534', '--clear-groups' }
local REFUSED = { 'luajit', uv.cwd() .. '/spec/support/refusing.lua', 'steering' }

-- Rolls and a killed worker under load: what a user must not notice, wherever it runs.
local function survives(m, port)
    local l = load.start { port = port, clients = 8, rate = 400 }
    for roll = 1, 3 do
        m:signal 'SIGUSR2'
        m:await('Restart complete', { count = roll, timeout = 20000 })
    end
    m:await('Worker exited', { count = 9, timeout = 20000 })
    l:await(l.counts.total + 50)
    local counts = l:stop()
    assert.equal(0, counts.failed, counts.text)
end

local function script(port, options)
    return ([[
        local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', numWorkers = 3, restartSoak = 0, logger = dutch.logger { level = 'debug' },
            workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, options or '')
end

describe('where steering is refused', function()
    after_each(master.cleanup)

    for _, balance in ipairs { 'steered', 'sticky' } do
        it('one shared socket serves, and the log says so: ' .. balance, function()
            local port = http.free_port()
            local m = master.start { script = script(port, ("balance = '%s'"):format(balance)),
                files = { ['app.lua'] = apps.http }, wrap = REFUSED }
            local record = m:await 'Steering refused, one socket is shared'
            assert.same({ 40, '127.0.0.1:' .. port }, { record.level, record.address })
            assert.equal('operation not permitted', record.reason)
            assert.equal('shared', m:await('Balancing').balance)
            m:await 'Cluster ready'
            survives(m, port)
            m:finish()
        end)
    end

    it('a worker that is frozen or dead keeps nobody waiting but those inside', function()
        local port = http.free_port()
        local m = master.start { script = script(port), files = { ['app.lua'] = apps.http }, wrap = REFUSED }
        m:await 'Cluster ready'
        local victim = m:records 'Worker listening'[1].workerPid
        assert(connections.freeze(victim))
        local inside = connections.inside(victim, port)
        assert.is_nil(next(inside))
        local l = load.start { port = port, clients = 8, rate = 400, slow_ms = 1000 * wait.scale }
        l:await(300)
        uv.kill(victim, 'sigkill')
        m:await('Worker listening', { count = 4 })
        l:await(l.counts.total + 100)
        local counts = l:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.same({}, l.slow)
        m:finish()
    end)
end)

describe('an ordinary user', function()
    after_each(master.cleanup)

    for _, balance in ipairs { 'steered', 'sticky' } do
        it('has ' .. balance .. ' lanes too', function()
            if uv.getuid() ~= 0 then
                pending 'this run is an ordinary user\'s already'
                return
            end
            if os.execute(table.concat(NOBODY, ' ') .. ' test -x ' .. master.binary()) ~= 0 then
                pending 'the tree cannot be read by an ordinary user'
                return
            end
            local port = http.free_port()
            local runtime = master.temp_dir()
            assert(uv.fs_chmod(runtime, tonumber('700', 8)))
            assert(uv.fs_chown(runtime, 65534, 65534))
            local m = master.start { script = script(port, ("balance = '%s'"):format(balance)),
                files = { ['app.lua'] = apps.http }, wrap = NOBODY, env = { DUTCH_MASTER_RUNTIME_DIR = runtime } }
            assert.equal(balance, m:await('Balancing').balance)
            m:await 'Cluster ready'
            assert.same({}, m:records { level = 40 })
            survives(m, port)
            m:finish()
            assert.is_nil(uv.fs_scandir_next((uv.fs_scandir(runtime))), 'files left in the runtime directory')
        end)
    end
end)
