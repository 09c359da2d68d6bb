-- The master becomes another program: the workers serve on, and whoever asked hears the truth.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local State = require 'dutch-master.keeper.estate'
local versions = require 'spec.support.node_versions'

local function copy(from, to)
    assert(uv.fs_copyfile(from, to))
    return to
end

local function image(pid)
    return uv.fs_readlink(('/proc/%d/exe'):format(pid))
end

local function compile(dir, name, defines)
    local path = dir .. '/' .. name
    assert(os.execute(("cc -D_GNU_SOURCE -O1 %s -o '%s' spec/support/next_program.c"):format(defines, path)) == 0)
    return path
end

local function upgrade(m, code, words)
    local said = cli.run(m, { 'upgrade', m.script, unpack(words or {}) })
    assert.equal(code, said.code, said.out .. said.err .. m.stderr .. m:dump())
    return said
end

local function lua_app(port, more)
    return ([[local dutch = require 'dutch-master'
        dutch.start { worker = 'app.lua', restartSoak = 0, numWorkers = 2,
        onUpgrade = function(verdict) dutch.log.info('hook: ' .. verdict.result) end,
        workerEnvironment = { LISTEN = '127.0.0.1:%d' }, %s }]]):format(port, more or '')
end

describe('an upgrade of the program', function()
    after_each(master.cleanup)

    versions.it('to the same version, again and again under load: no request fails', function(_, binary)
        local port = http.free_port()
        local m = kept.start_node(binary, port)
        local before, running = m:workers(), load.start { port = port, clients = 4, mode = 'keepalive', expect = '.' }
        running:await(20)
        local count
        for _ = 1, 3 do
            local former = kept.pid(m)
            local said = upgrade(m, 0)
            assert.truthy(said.out:find 'Upgraded from', said.out)
            assert.is_true(kept.pid(m) ~= former)
            count = count or kept.descriptors(m.pid)
        end
        assert.equal(count, kept.descriptors(m.pid))
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.same(before, m:workers(), m:dump())
        m:finish { code = 0 }
    end, { versions = { '18', '22' } })

    it('takes another program in place of one whose file is gone, with a restart under way', function()
        local dir, port = master.temp_dir(), http.free_port()
        local old, new = copy(master.binary(), dir .. '/old'), copy(master.binary(), dir .. '/new')
        local m = kept.start { binary = old, script = lua_app(port), files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        assert.equal(old, image(m.pid))
        os.remove(old)
        local half = assert(io.open(old, 'w')) -- what is there by now is nothing that could run
        half:write '\127ELF'
        half:close()
        assert(uv.fs_chmod(old, tonumber('755', 8)))
        local running = load.start { port = port, clients = 4, expect = '.' }
        local restart = cli.start(m, { 'restart', '--wait', m.script })
        m:await 'Restart requested'
        local said = upgrade(m, 0, { '--binary', new })
        assert.truthy(said.out:find(new, 1, true), said.out)
        restart:wait()
        assert.equal(0, restart.code, restart.err .. m:dump())
        assert.equal(new, image(m.pid))
        assert.equal(new, image(kept.pid(m)))
        m:await 'hook: done'
        local status = cli.run(m, { 'status', m.script }).out
        assert.truthy(status:find(new, 1, true), status)
        assert.truthy(status:find(cli.run(m, { 'version' }).out:match '[%d.]+', 1, true), status)
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text)
        assert.same({}, m:records { level = 50 }, m:dump())
        kept.kill(m) -- and it is kept as before
        m:finish { code = 0 }
    end)

    it('to one that is of no use leaves the former program, whose file is gone, and says why', function()
        local dir, port = master.temp_dir(), http.free_port()
        local old = copy(master.binary(), dir .. '/old')
        local m = kept.start { binary = old, script = lua_app(port), files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        os.remove(old)
        os.execute(("cp -r lua '%s/lua'"):format(dir))
        local file = dir .. '/lua/dutch-master/cluster/cluster.lua'
        local text = io.open(file):read '*a'
        local broken = io.open(file, 'w')
        broken:write(([[if os.remove '%s/flag' then error 'broken' end %s]]):format(dir, text))
        broken:close()
        io.open(dir .. '/flag', 'w'):close()
        local before, running = m:workers(), load.start { port = port, clients = 4, expect = '.' }
        local count
        for _, case in ipairs {
            { '/bin/true', '/bin/true is no program that this master can become' },
            { dir .. '/nothing', 'is no program that this master can become' },
            { compile(dir, 'other', '-DSTATE=99'), 'cannot read the state of this version' },
            { compile(dir, 'refuses', '-DSTATE=' .. State.VERSION), 'it does not understand what the keeper hands over' },
            { compile(dir, 'breaks', ("-DSTATE=%d -DREAL='\"%s\"' -DTREE='\"%s/lua\"'"):format(State.VERSION, master.binary(),
                dir)),
                'its master died of SIGABRT' },
        } do
            local said = upgrade(m, 10, { '--binary', case[1] })
            assert.truthy(said.err:find(case[2], 1, true), said.err)
            assert.equal(old .. ' (deleted)', image(m.pid))
            assert.equal(old .. ' (deleted)', image(kept.pid(m)))
            count = count or kept.descriptors(m.pid)
            assert.equal(count, kept.descriptors(m.pid), case[2])
        end
        m:await('hook: failed', { count = 2 })
        -- One that crashes as soon as it has taken over.
        local late = cli.start(m, { 'upgrade', m.script })
        m:await 'The new program has taken over'
        uv.kill(kept.pid(m), 'sigsegv')
        late:wait()
        assert.equal(10, late.code, late.out .. late.err)
        assert.truthy(late.err:find('its master died of SIGSEGV', 1, true), late.err)
        assert.equal(old .. ' (deleted)', image(m.pid))
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text)
        kept.same_workers(m, before)
        upgrade(m, 0)
        assert.equal(master.binary(), image(m.pid))
        m:finish { code = 0 }
    end)

    it('needs a keeper, and says so', function()
        local m = master.start { script = lua_app(http.free_port()), files = { ['app.lua'] = apps.http },
            keeper = false }
        m:await 'Cluster ready'
        assert.is_nil(kept.pid(m))
        local said = upgrade(m, 1)
        assert.truthy(said.err:find('started with --no-keeper', 1, true), said.err)
        m:finish { code = 0 }
    end)
end)
