local rights = require 'dutch-master.script.rights'
local schema = require 'dutch-master.script.schema'

describe('rights', function()
    local asked, refusal, uid

    local function judge()
        return rights.new {
            rehearse = function(fields)
                asked[#asked + 1] = fields
                return refusal == nil or nil, refusal
            end,
            uid = function()
                return uid
            end,
            getuser = function(number)
                return number == 1000 and { name = 'deploy' } or nil
            end,
        }
    end

    local function said(may, plan)
        local at = schema.place ''
        may(plan, at)
        local list = {}
        for i, err in ipairs(at.errors) do
            list[i] = err.path .. ': ' .. err.text
        end
        return table.concat(list, '\n')
    end

    before_each(function()
        asked, refusal, uid = {}, nil, 1000
    end)

    it('are not asked for where the plan wants nothing', function()
        assert.equal('', said(judge(), { limits = {}, umask = 18, die_with_master = true }))
        assert.equal(0, #asked)
    end)

    it('are asked for all at once, and once for the same', function()
        local may = judge()
        local function plan()
            return { uid = 33, gid = 33, groups = { 33 }, nice = -5, cpus = { 0 }, limits = { { name = 'core' } } }
        end
        assert.equal('', said(may, plan()))
        assert.equal('', said(may, plan()))
        assert.equal(1, #asked)
        assert.same({ 33, 33, -5, 'true' }, { asked[1].uid, asked[1].gid, asked[1].nice, asked[1].file })
        local other = plan()
        other.limits[1].hard = 5
        said(may, other)
        assert.equal(2, #asked)
    end)

    it('name what this user may not set by its option, every time', function()
        local may = judge()
        local function refused(plan, step, path)
            local text = step .. ': ' .. (path and path .. ': ' or '') .. 'operation not permitted'
            refusal = { step = step, path = path, code = 'EPERM', message = text }
            local words = said(may, plan)
            assert.equal(words, said(may, plan))
            return words
        end
        local NO = ': deploy may not set it for the workers: operation not permitted: only root can '
        local as_other = NO .. 'start workers as another user'
        assert.equal('user' .. as_other, refused({ user = 'www-data', uid = 33, gid = 33, groups = {} }, 'groups'))
        assert.equal('user' .. as_other, refused({ user = 'www-data', uid = 33, gid = 33 }, 'uid'))
        assert.equal('group' .. NO .. 'start workers as another group', refused({ group = 'adm', gid = 4 }, 'gid'))
        assert.equal('limits.nofile' .. NO .. 'raise a hard limit (ulimit -H shows it)',
            refused({ limits = { { name = 'nofile' } } }, 'limits', 'nofile'))
        assert.matches('^cpus: ', refused({ cpus = { 900 } }, 'affinity'))
        assert.matches('^nice: ', refused({ nice = -20 }, 'nice'))
        uid = 0 -- in a container that lacks the capability
        assert.equal('nice: user 0 may not set it for the workers: operation not permitted',
            refused({ nice = -20 }, 'nice'))
    end)
end)
