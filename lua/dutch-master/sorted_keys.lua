--- sorted_keys.lua: the keys of a table in order, numbers before strings; none of nil.

local function before(a, b)
    local kind = type(a)
    if kind ~= type(b) then
        return kind < type(b)
    elseif kind == 'number' or kind == 'string' then
        return a < b
    end
    return tostring(a) < tostring(b)
end

return function(map)
    local keys, mixed = {}, false
    for key in pairs(map or {}) do
        keys[#keys + 1] = key
        mixed = mixed or type(key) ~= 'string'
    end
    table.sort(keys, mixed and before or nil)
    return keys
end
