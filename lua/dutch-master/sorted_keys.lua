--- sorted_keys.lua: the keys of a table, which are strings, in order; none of nil.

return function(map)
    local keys = {}
    for key in pairs(map or {}) do
        keys[#keys + 1] = key
    end
    table.sort(keys)
    return keys
end
