-- Files as texts, for specs of any suite.

local M = {}

--- The content of a file, of /proc too; or nil and why not.
function M.read(path)
    local file, message = io.open(path, 'rb')
    if not file then
        return nil, message
    end
    local text, failure = file:read '*a' -- of /proc: the process may end meanwhile
    file:close()
    if not text then
        return nil, failure
    end
    return text
end

--- The content of a file, '' where there is none.
function M.or_empty(path)
    return M.read(path) or ''
end

--- The content of a file that has to be there.
function M.text(path)
    return assert(M.read(path))
end

function M.write(path, text)
    local file = assert(io.open(path, 'w'))
    file:write(text)
    file:close()
end

--- The memory that a process has now, in KiB.
function M.rss_kb(pid)
    return tonumber(M.text(('/proc/%d/status'):format(pid)):match 'VmRSS:%s*(%d+)')
end

return M
