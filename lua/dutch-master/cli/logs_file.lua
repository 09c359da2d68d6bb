--- logs_file.lua: what the workers wrote, from the file of `workerOutput`: older than what the master remembers, and
-- there when no master runs. Reads backwards to where the wish begins, then forwards from there: never more than a
-- block is held, however long the file. Lines of a stamped file (see log/output.lua) have a time and a worker.

local M = {}

local BLOCK = 64 * 1024
--- A line longer than this is taken in pieces.
local LINE_MAX = 1024 * 1024
local STAMPED = '^(%d%d%d%d%-%d%d%-%d%dT%d%d:%d%d:%d%d%.%d%d%dZ) worker (%d+) ([EO]) (.*)$'

--- A stamped line -> { time = text in ISO 8601, worker, stream, text }; { text } of one that is not.
function M.parse(line)
    local time, worker, mark, text = line:match(STAMPED)
    if not time then
        return { text = line }
    end
    return { time = time, worker = tonumber(worker), stream = mark == 'E' and 'stderr' or 'stdout', text = text }
end

local function fits(line, wish)
    return (not wish.worker or line.worker == wish.worker) and (not wish.since or line.time and line.time >= wish.since)
end

-- Calls fn(line, its offset), the last line first, until that returns true.
local function backwards(file, size, fn)
    local position, rest = size, ''
    while position > 0 do
        local length = math.min(BLOCK, position)
        position = position - length
        file:seek('set', position)
        local text = (file:read(length) or '') .. rest
        local begins = 1
        if position > 0 then
            local newline = text:find('\n', 1, true)
            if not newline and #text < LINE_MAX then
                begins = nil
            elseif newline then
                begins = newline + 1
            end
        end
        if begins then
            local offsets, at = {}, begins
            for after in text:gmatch '\n()' do
                if after > begins then
                    offsets[#offsets + 1] = at
                    at = after
                end
            end
            for i = #offsets, 1, -1 do
                if fn(text:match('^[^\n]*', offsets[i]), position + offsets[i] - 1) then
                    return
                end
            end
        end
        rest = begins and text:sub(1, begins - 1) or text
    end
end

--- Calls fn(line) for the lines of the first `size` bytes that fit.
-- wish = { last, worker, since = as `time` of a line }
-- A last line without its end is left out.
-- @return true, or nil, message
function M.read(path, size, wish, fn)
    local file, message = io.open(path, 'rb')
    if not file then
        return nil, message
    end
    size = math.min(size or math.huge, file:seek 'end')
    local first, found = size, 0
    backwards(file, size, function(text, offset)
        local line = M.parse(text)
        if wish.since and line.time and line.time < wish.since then
            return true
        elseif fits(line, wish) then
            first, found = offset, found + 1
        end
        return wish.last and found >= wish.last
    end)
    file:seek('set', first)
    local position = first
    while position < size do
        local text = file:read '*L'
        if not text then
            break
        end
        position = position + #text
        local line = M.parse((text:gsub('\n$', '')))
        if position <= size and text:sub(-1) == '\n' and fits(line, wish) then
            fn(line)
        end
    end
    file:close()
    return true
end

return M
