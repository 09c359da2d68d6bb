-- What a master has left cannot be used by the next one. It is set aside, the workers serve on, and are replaced one
-- after the other.

local cjson = require 'cjson'
local uv = require 'luv'
local apps = require 'spec.support.apps'
local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local kept = require 'spec.support.kept'
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local versions = require 'spec.support.node_versions'

local SET_ASIDE = 'The state of the former master cannot be used, it was set aside'

-- Ways in which a state is no use.
local function garbage()
    return ('\1\255{"'):rep(1000)
end

local function cut(text)
    return text:sub(1, math.floor(#text / 2))
end

local function of_the_future(text)
    local state = cjson.decode(text)
    state.version = 1000
    return cjson.encode(state)
end

local function poisonous(text) -- a number where a list is, deep inside
    return (text:gsub('"users":%b[]', '"users":7', 1))
end

-- All workers of before are replaced, without a request lost, and the cluster is as good as new.
local function survive(m, port, spoil, whole)
    local before, mark = m:workers(), m:mark()
    local loads = { load.start { port = port, clients = 3, mode = 'keepalive', rate = 200, expect = '.' },
        load.start { port = port, clients = 3, mode = 'close', rate = 200, expect = '.' } }
    loads[1]:await(20)
    local text = spoil(kept.snapshot(m))
    kept.leave(m, text, whole)
    local record = m:await(SET_ASIDE, { after = mark })
    assert.equal(whole == false and '' or text, assert(io.open(record.file, 'rb')):read '*a')
    assert.equal(tonumber('600', 8), uv.fs_stat(record.file).mode % 512)
    os.remove(record.file)
    m:await('Restart complete', { after = mark })
    for _, pid in ipairs(before) do
        m:await({ msg = 'Worker exited', workerPid = pid }, { after = mark })
    end
    loads[1]:await(loads[1].counts.total + 20)
    for _, running in ipairs(loads) do
        local counts = running:stop()
        assert.equal(0, counts.failed, counts.text .. m:dump())
    end
    assert.equal(#before, #m:workers())
    local out = cli.run(m, { 'status', m.script }).out
    assert.truthy(out:find(('%d of %d workers serving'):format(#before, #before), 1, true), out)
end

local function go_on(m)
    local mark = m:mark()
    kept.kill(m)
    m:signal 'SIGUSR2'
    m:await('Restart complete', { after = mark })
    m:finish { code = 0 }
end

describe('a state that is no use to a master', function()
    after_each(master.cleanup)

    it('is set aside, and Lua workers serve on until others do', function()
        local port = http.free_port()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.lua', restartSoak = 0,
            numWorkers = 2, workerEnvironment = { LISTEN = '127.0.0.1:%d' } }]]):format(port),
            files = { ['app.lua'] = apps.http } }
        m:await 'Cluster ready'
        local with_pauses = kept.without_pauses(m)
        for i, spoil in ipairs { garbage, cut, of_the_future, poisonous } do
            survive(m, port, spoil, i > 1)
        end
        with_pauses()
        go_on(m)
    end)

    versions.it('is set aside, and Node workers serve on until others do', function(_, binary)
        local port = http.free_port()
        local m = kept.start { script = ([[require('dutch-master').start { worker = 'app.js', restartSoak = 0,
            interpreter = { %q }, numWorkers = 2, workerEnvironment = { PORT = '%d' } }]]):format(binary, port),
            files = { ['app.js'] = [[
                require('http').createServer((request, response) => {
                    setTimeout(() => response.end(`${process.pid}`), Math.random() * 20)
                }).listen(Number(process.env.PORT))]] } }
        m:await 'Cluster ready'
        survive(m, port, of_the_future)
        go_on(m)
    end)
end)
