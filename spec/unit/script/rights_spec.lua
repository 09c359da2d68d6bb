local rights = require 'dutch-master.script.rights'
local schema = require 'dutch-master.script.schema'

local LIMITS = [[
Limit                     Soft Limit           Hard Limit           Units
Max open files            1024                 4096                 files
Max address space         unlimited            unlimited            bytes
]]

local function said(plan, uid)
    local at = schema.place ''
    rights.check(plan, { uid = uid or 1000, limits = LIMITS }, at)
    local list = {}
    for i, err in ipairs(at.errors) do
        list[i] = err.path .. ': ' .. err.text
    end
    return list
end

describe('rights', function()
    it('name the options that only root may set', function()
        local plan = { uid = 33, nice = -5, limits = {
            { name = 'nofile', soft = 100, hard = 65536 }, { name = 'as', soft = 1, hard = 'unlimited' } } }
        assert.same({
            'user: only root can start workers as another user (this is user 1000)',
            'nice: only root can raise a priority: expected 0 or more, found -5',
            'limits.nofile: only root can raise a limit: the hard limit here is 4096, found 65536',
        }, said(plan))
        assert.same({}, said(plan, 0))
    end)

    it('let pass what anybody may', function()
        assert.same({}, said { uid = 1000, nice = 5, limits = { { name = 'nofile', soft = 1, hard = 4096 } } })
    end)
end)
