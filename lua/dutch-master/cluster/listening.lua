--- listening.lua: where workers listen, compared: what a worker that is to replace others must listen on. Pure.
--
-- An address is what conversation.lua says of a socket: {name, type, stream, address, port, path, text}.

local M = {}

-- Ports from here on are given out at random. With one worker to look at, such a port may be this worker's alone.
local FIRST_RANDOM_PORT = 32768

local WILDCARD = { [''] = true, ['::'] = true, ['0.0.0.0'] = true }

local function is_wildcard(info)
    return WILDCARD[info.address or ''] == true
end

-- Whether who listens on `info` answers those who come to `wanted`.
local function covers(info, wanted)
    if info.name == wanted.name then
        return true
    end
    return info.stream == wanted.stream and info.port ~= nil and info.port == wanted.port and info.port ~= 0
        and not info.path and not wanted.path and (is_wildcard(info) or info.address == wanted.address)
end

local function is_covered(list, wanted)
    for _, info in ipairs(list) do
        if covers(info, wanted) then
            return true
        end
    end
    return false
end

--- Whether the address is one worker's own by its looks: a path with its process id in it (tsx), a random UDP port.
function M.is_private(info, pid)
    if info.path then
        return info.path:find(('%%f[%%d]%d%%f[%%D]'):format(pid)) ~= nil
    end
    return not info.stream and info.name ~= nil and info.name:find ':0#' ~= nil
end

--- The addresses of `wanted` where nobody listens who listens on those of `list`.
function M.missing(wanted, list)
    local missing = {}
    for _, info in ipairs(wanted) do
        if not is_covered(list, info) then
            missing[#missing + 1] = info
        end
    end
    return missing
end

-- What one worker alone shows: its first address, and every other that does not look random.
local function of_one(list)
    local common = {}
    for i, info in ipairs(list) do
        if i == 1 or info.path or info.port < FIRST_RANDOM_PORT then
            common[#common + 1] = info
        end
    end
    return common
end

--- The addresses that are in all of these lists, one for each worker.
function M.common(lists)
    if #lists <= 1 then
        return of_one(lists[1] or {})
    end
    local common = {}
    for _, info in ipairs(lists[1]) do
        local everywhere = true
        for i = 2, #lists do
            everywhere = everywhere and is_covered(lists[i], info)
        end
        common[#common + 1] = everywhere and info or nil
    end
    return common
end

--- In words: ':80, unix:/run/app.sock'.
function M.text(list)
    local words = {}
    for i, info in ipairs(list) do
        words[i] = info.text or info.name
    end
    return table.concat(words, ', ')
end

return M
