-- Rolls of unmodified Node apps under load: no request fails, whatever the version, whatever the client.
-- DM_ROLLS=50 for the long run.
local load = require 'spec.support.load'
local master = require 'spec.support.master'
local app = require 'spec.support.node_app'
local versions = require 'spec.support.node_versions'

local ROLLS = tonumber(os.getenv 'DM_ROLLS') or 3

versions.each(function(version, binary)
    describe('a roll on Node ' .. version, function()
        after_each(master.cleanup)

        for _, mode in ipairs { 'close', 'keepalive' } do
            it('fails no request of clients with ' .. mode, function()
                local m, port = app.start { binary = binary, app = app.http }
                local clients = load.start { port = port, mode = mode, clients = 16 }
                clients:await(50)
                for _ = 1, ROLLS do
                    app.roll(m)
                end
                clients:await(clients.counts.total + 50)
                local counts = clients:stop()
                if os.getenv 'DM_VERBOSE' then
                    print(('Node %s, %s, %d rolls: %s'):format(version, mode, ROLLS, counts.text))
                end
                assert.equal(0, counts.failed, counts.text)
                assert.equal(0, counts.stale, counts.text)
                -- Old workers leave by themselves, soon.
                m:await('Worker exited', { count = 2 * ROLLS, timeout = 2500 })
                assert.equal(2 * ROLLS, #m:records { msg = 'Worker exited', code = 0 })
                assert.equal(2, #m:workers())
                assert.equal(0, #m:records 'Hard-killing worker as it did not die gracefully')
                m:finish { code = 0 }
            end)
        end
    end)
end)
