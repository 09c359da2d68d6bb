-- The messages that specs look for in the log of a master. One that nobody writes is never there: a spec that wants it to
-- be absent, or looks at each record that has it, would say nothing.

local files = require 'spec.support.files'

local function texts(directories)
    local list, found = assert(io.popen('find ' .. directories .. " -name '*.lua'")), {}
    for path in list:lines() do
        found[path] = files.text(path)
    end
    list:close()
    return found
end

describe('a message that a spec looks for', function()
    it('is one that is written', function()
        local written, count, found = {}, 0, {}
        for _, text in pairs(texts 'lua') do
            written[#written + 1] = text
        end
        written = table.concat(written)
        for path, text in pairs(texts 'spec/e2e spec/support') do
            for _, before in ipairs { ':records[ (]', '{ msg =', '%.msg ==' } do
                for message in text:gmatch(before .. " ?'(%u%l+ [^'\n]*)'") do
                    local head = message:match '^(.-): ' -- what follows may be composed
                    count = count + 1
                    if not written:find(head and "'" .. head or "'" .. message .. "'", 1, true) then
                        found[#found + 1] = path .. ': ' .. message
                    end
                end
            end
        end
        assert.same({}, found)
        assert.is_true(count > 200, count)
    end)
end)
