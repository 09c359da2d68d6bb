local Releases = require 'dutch-master.launch.releases'

local function new()
    local world = { links = {}, warnings = {} }
    world.releases = Releases.new {
        platform = { realpath = function(path)
            local real = world.links[path]
            if real == nil then
                return path
            end
            return real or nil
        end },
    }
    world.log = { warn = function(_, fields, message) table.insert(world.warnings, { fields, message }) end }
    return world, world.releases
end

describe('releases', function()
    it('a fork runs where the script says, and its release has no links', function()
        local world, releases = new()
        world.links['/current'] = '/releases/1'
        assert.same({ '/current', '/releases/1' }, { releases:place(1, '/current') })
        assert.equal('/releases/1', releases:of(1))
        world.links['/current'] = '/releases/2'
        assert.same({ '/current', '/releases/2' }, { releases:place(1, '/current') })
        assert.equal('/releases/1', releases:of(1))
        assert.same({}, { releases:place(2, nil) })
    end)

    it('a pinned generation stays in the release of its first fork, unless that is gone', function()
        local world, releases = new()
        releases:place(1, '/a')
        assert.same({ '/a', '/a' }, { releases:place(1, '/b', true) })
        assert.same({ '/b', '/b' }, { releases:place(1, '/b') })
        releases:pin(1)
        releases:pin(7) -- unknown: nothing to pin
        assert.same({ '/a', '/a' }, { releases:place(1, '/b') })
        world.links['/a'] = false
        assert.same({ '/b', '/b' }, { releases:place(1, '/b', false, world.log) })
        assert.equal('/a', world.warnings[1][1].release)
        assert.is_nil(releases:of(1))
    end)

    it('a way back runs in the release of an earlier generation', function()
        local _, releases = new()
        releases:place(1, '/a')
        releases:place(2, '/b')
        releases:roll_back(3, 1)
        assert.is_true(releases:rolls_back(3, 1))
        assert.is_false(releases:rolls_back(3, 2))
        assert.is_false(releases:rolls_back(9, 1))
        assert.same({ '/a', '/a' }, { releases:place(3, '/b') })
    end)

    it('forgets what nobody will ask for', function()
        local _, releases = new()
        releases:place(1, '/a')
        releases:place(2, '/b')
        releases:forget { [2] = true }
        assert.is_nil(releases:of(1))
        assert.equal('/b', releases:of(2))
    end)
end)
