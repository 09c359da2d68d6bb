local claims = require 'dutch-master.control.claim'
local fake_control = require 'spec.support.fake_control'

local SCRIPT = fake_control.SCRIPT

describe('the claim of a script', function()
    local platform, open

    before_each(function()
        local world = fake_control.new()
        platform, open = world.platform, world.open
    end)

    describe('place', function()
        it('follows from the script, and differs between scripts of one name', function()
            local a = claims.path_for('/a/master.lua', nil, platform)
            local b = claims.path_for('/b/master.lua', nil, platform)
            assert.truthy(a:find '^/run/dm/master%-%x+%.sock$')
            assert.not_equal(a, b)
            assert.equal(a, claims.path_for('/a/master.lua', {}, platform))
            assert.equal('/x/y', claims.path_for('/a/master.lua', { control_socket = '/x/y' }, platform))
            assert.truthy(claims.path_for('/a/ü b;c.lua', nil, platform):find '^/run/dm/[%w_]+%-%x+%.sock$')
        end)

        it('is refused when it is too long for a socket, not cut', function()
            local path, message, code = claims.path_for(SCRIPT, { control_socket = '/' .. ('x'):rep(107) }, platform)
            assert.is_nil(path)
            assert.truthy(message:find('108 bytes of at most 107', 1, true))
            assert.equal('ENAMETOOLONG', code)
            assert.truthy(claims.path_for('/' .. ('x'):rep(300) .. '.lua', nil, platform))
            assert.is_nil(claims.take { platform = platform, script = SCRIPT,
                plan = { control_socket = '/' .. ('x'):rep(107) } })
            assert.same({}, platform.taken)
        end)
    end)

    describe('claim', function()
        it('lets one master have a script', function()
            local claim = open()
            local second, message, code = claims.take { platform = platform, script = SCRIPT }
            assert.is_nil(second)
            assert.equal('EAGAIN', code)
            assert.equal('a master of /srv/app/master.lua is running already: held by process 77', message)
            claim:release()
            assert.truthy(claims.take { platform = platform, script = SCRIPT })
        end)

        it('holds for a script, whatever socket its masters choose', function()
            open { control_socket = '/run/app.sock' }
            assert.is_nil(claims.take { platform = platform, script = SCRIPT, plan = { control_socket = '/other' } })
        end)

        it('needs no runtime directory when the script chose a socket', function()
            platform.dir = nil
            assert.is_nil(claims.take { platform = platform, script = SCRIPT })
            open { control_socket = '/run/app.sock' }
            assert.truthy(platform.taken['/run/app.sock.lock'])
            assert.truthy(platform.servers['/run/app.sock'])
        end)
    end)

    it('is not refused for a file that had the inode of its script before, nor where births are not kept', function()
        open()
        platform.taken = {} -- as for a script at another path
        local function claim()
            return claims.take { platform = platform, script = SCRIPT, plan = {} }
        end
        assert.is_nil(claim())
        platform.born = '6.000000001'
        local other = assert(claim())
        other:release()
    end)
end)
