local compare = require 'dutch-master.script.plan_diff'

describe('compare.plans', function()
    it('says of each option when it takes effect', function()
        local from = { num_workers = 2, balance = 'steered', backlog = 511, stall_timeout_ms = 1000, umask = 18, hooks = {} }
        local to = { num_workers = 3, balance = 'sticky', backlog = 100, stall_timeout_ms = 2000, umask = 63, hooks = {} }
        local applies = {}
        for _, change in ipairs(compare.plans(from, to)) do
            applies[change.key] = change.applies
        end
        assert.same({ numWorkers = 'now', umask = 'next fork',
            -- What Sockets is made with.
            balance = 'start', backlog = 'start', stallTimeout = 'start' }, applies)
    end)

    it('says nothing of what is the same', function()
        assert.same({}, compare.plans({ environment = { A = '1' }, hooks = {} }, { environment = { A = '1' }, hooks = {} }))
    end)
end)
