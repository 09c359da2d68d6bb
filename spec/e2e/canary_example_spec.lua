-- examples/canary as it is in the tree: a release that is slow, or answers with errors, is turned back by what its own
-- workers count; a good one is let through. Nobody else is asked.

local cli = require 'spec.support.cli'
local http = require 'spec.support.http'
local load = require 'spec.support.load'
local master = require 'spec.support.master'

local function read(name)
    local file = assert(io.open('examples/canary/' .. name))
    local text = file:read '*a'
    file:close()
    return text
end

local function release(name, slow, broken)
    return (read 'release.lua'):gsub("'one'", "'" .. name .. "'"):gsub('slow = false', 'slow = ' .. tostring(slow))
        :gsub('broken = false', 'broken = ' .. tostring(broken))
end

describe('examples/canary', function()
    after_each(master.cleanup)

    it('turns back a slow release and one with errors, and lets a good one through', function()
        local port = http.free_port()
        local m = master.start {
            script = read 'master.lua', files = { ['app.lua'] = read 'app.lua', ['release.lua'] = read 'release.lua' },
            env = { SOAK = '3', PORT = tostring(port) },
        }
        m:await 'Cluster ready'
        local clients = load.start { port = port, clients = 6 }
        clients:await(50)
        m:rewrite('release.lua', (release('slow', true, false)))
        local c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('the canary was rejected: 95 %% of its answers come within %d+ ms, before %d+ ms', c.err)
        m:rewrite('release.lua', (release('broken', false, true)))
        c = cli.run(m, { 'restart', '--wait' })
        assert.equal(10, c.code, c.out .. c.err)
        assert.matches('the canary was rejected: [%d.]+ %% of its answers are errors, before 0.0 %%', c.err)
        m:rewrite('release.lua', (release('two', false, false)))
        c = cli.run(m, { 'restart', '--wait' })
        assert.equal(0, c.code, c.out .. c.err)
        clients:stop()
        local _, body = http.get { port = port }
        assert.equal('release two\n', body)
        m:finish()
    end)
end)
