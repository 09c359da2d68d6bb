-- Where a verb looks for the master of a script.

local fake = require 'spec.support.fake_cli'
local cli = require 'dutch-master.cli'
local claims = require 'dutch-master.control.claim'

local SCRIPT = '/srv/app/master.lua'
local NAME = claims.name_for(SCRIPT) .. '.sock'

local function tried(world)
    local w = fake.new(world)
    local paths = {}
    local connect = w.platform.connect
    function w.platform.connect(path)
        paths[#paths + 1] = path:sub(1, -#NAME - 2)
        return connect(path)
    end
    w.code = cli.main(fake.argv 'status', w.platform)
    return paths, w
end

describe('the master of a script', function()
    it('is looked for where this user, root and the owner of the script would have it', function()
        local files = { [SCRIPT] = { type = 'file', uid = 33 } }
        for _, dir in ipairs {
            '/run/user/1000/dutch-master', '/tmp/dutch-master-1000', '/run/user/33/dutch-master',
            '/tmp/dutch-master-33', '/run/dutch-master', '/tmp/dutch-master-77', '/run/dutch-master-user33',
        } do
            files[dir .. '/' .. NAME] = true
        end
        assert.same({
            '/run/user/1000/dutch-master', '/tmp/dutch-master-1000', '/run/dutch-master-user33',
            '/run/user/33/dutch-master', '/tmp/dutch-master-33',
        }, (tried { files = files }))
        files[SCRIPT].uid = 0
        assert.equal('/run/dutch-master', (tried { files = files })[3])
    end)

    it('cannot be seen in a directory of another user, and that is said', function()
        local w = fake.new { files = { [SCRIPT] = { type = 'file', uid = 33 } } }
        local stat = w.platform.stat
        function w.platform.stat(path)
            if path:find('^/tmp/dutch%-master%-33/') then
                return nil, 'permission denied', 'EACCES'
            end
            return stat(path)
        end
        assert.equal(77, cli.main(fake.argv 'status', w.platform))
        assert.matches('cannot see whether it runs: /tmp/dutch%-master%-33 belongs to another user', w.errors())
    end)

    it('is only where --socket says', function()
        local w = fake.new { files = { [SCRIPT] = true, ['/run/user/1000/dutch-master/' .. NAME] = true } }
        local asked
        function w.platform.connect(path)
            asked = path
            return nil, 'no such file', 'ENOENT'
        end
        assert.equal(3, cli.main(fake.argv('status', '--socket', '/x/y'), w.platform))
        assert.equal('/x/y', asked)
    end)
end)
