-- busted's output for spec/run: a point for each test, what failed at the end, and the counts as one
-- JSON line in the file named by DM_COUNTS, so that nobody has to read them from the screen.

local cjson = require 'cjson'

return function(options)
    local busted = require 'busted'
    local handler = require 'busted.outputHandlers.plainTerminal'(options)

    -- Written at the start as well: a run that dies has begun and not ended, in the test of the second line.
    local function write(state, test)
        local path = os.getenv 'DM_COUNTS'
        local file = path and io.open(path, 'w')
        if file then
            file:write(cjson.encode {
                state = state,
                passed = handler.successesCount,
                failed = handler.failuresCount + handler.errorsCount,
                pending = handler.pendingsCount,
            }, '\n', test or '', '\n')
            file:close()
        end
    end

    busted.subscribe({ 'suite', 'start' }, function()
        write 'begun'
        return nil, true
    end)
    busted.subscribe({ 'test', 'start' }, function(element)
        write('begun', handler.getFullName(element))
        return nil, true
    end)
    busted.subscribe({ 'test', 'end' }, function()
        write 'begun'
        return nil, true
    end)
    busted.subscribe({ 'suite', 'end' }, function()
        write 'ended'
        return nil, true
    end)
    busted.subscribe({ 'exit' }, function()
        write 'ended'
        return nil, true
    end)
    return handler
end
