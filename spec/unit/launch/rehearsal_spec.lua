local rehearsal = require 'dutch-master.launch.rehearsal'

describe('a rehearsal', function()
    local asked

    local function check(plan, failed)
        asked = nil
        return rehearsal.check({
            rehearse = function(fields)
                asked = fields
                return failed == nil or nil, failed
            end,
            uid = function()
                return 1000
            end,
            getuser = function(uid)
                return uid == 1000 and { name = 'deploy' } or nil
            end,
        }, plan)
    end

    it('is not made where the plan wants nothing', function()
        assert.is_true(check { limits = {}, umask = 18, die_with_master = true })
        assert.is_nil(asked)
    end)

    it('tries all at once', function()
        assert.is_true(check { uid = 33, gid = 33, groups = { 33 }, nice = -5, cpus = { 0 },
            limits = { { name = 'core' } } })
        assert.same({ 33, 33, -5, 'true' }, { asked.uid, asked.gid, asked.nice, asked.file })
    end)

    it('names what this user may not set by its option', function()
        local function refused(plan, step, path)
            local text = step .. ': ' .. (path and path .. ': ' or '') .. 'operation not permitted'
            local ok, message = check(plan, { step = step, path = path, code = 'EPERM', message = text })
            assert.is_nil(ok)
            return message
        end
        assert.equal('user: deploy may not set it for the workers: operation not permitted',
            refused({ user = 'www-data', uid = 33, gid = 33, groups = {} }, 'groups'))
        assert.equal('user: deploy may not set it for the workers: operation not permitted',
            refused({ user = 'www-data', uid = 33, gid = 33 }, 'gid'))
        assert.equal('group: deploy may not set it for the workers: operation not permitted',
            refused({ group = 'adm', gid = 4 }, 'gid'))
        assert.equal('limits.nofile: deploy may not set it for the workers: operation not permitted',
            refused({ limits = { { name = 'nofile' } } }, 'limits', 'nofile'))
        assert.matches('^cpus: ', refused({ cpus = { 900 } }, 'affinity'))
        assert.matches('^nice: ', refused({ nice = -20 }, 'nice'))
    end)
end)
