--- Values of a plan as a person reads them: Lua's notation, times in seconds. Pure.

local format = require 'dutch-master.cli.format'
local sorted_keys = require 'dutch-master.sorted_keys'

local M = {}

local words

--- A table in Lua's own notation, its keys in order.
local function table_words(value)
    local parts, keys = {}, sorted_keys(value)
    if #value > 0 and #keys == #value then
        for i, inner in ipairs(value) do
            parts[i] = words(inner)
        end
    else
        for i, key in ipairs(keys) do
            local name = format.visible(key):gsub('_ms$', '')
            parts[i] = ('%s = %s'):format(name, words(value[key], key))
        end
    end
    return parts[1] and '{ ' .. table.concat(parts, ', ') .. ' }' or '{}'
end

--- `key`: by what name the plan has it; one that ends in _ms holds milliseconds.
function words(value, key)
    if type(value) == 'table' then
        if value.text then
            local name = value.name and not value.name:find '^listen%-%d+$' and value.name .. ' = ' or ''
            return format.visible(name .. value.text)
        end
        return table_words(value)
    elseif type(value) == 'number' and type(key) == 'string' and key:find '_ms$' then
        return ('%g s'):format(value / 1000)
    end
    return format.visible(value)
end

M.words = words

--- The names in an environment, in order: all that is ever shown of it.
M.names = sorted_keys

--- The same for a person.
function M.name_list(environment)
    return next(environment) and format.visible(table.concat(M.names(environment), ', ')) or '{}'
end

return M
