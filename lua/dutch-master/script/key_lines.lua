-- key_lines.lua: the line on which an option stands in the user's script, for error messages.
--
-- Reads the text of `start { ... }` as far as it is a plain table, keeping track of nested tables and skipping
-- strings, comments and function bodies. A key that is not found (options built by a program, not written down)
-- has no line; the caller then names the line of the call. Runs only when there is an error to report.

local M = {}

local OPENS = { ['function'] = true, ['do'] = true, ['if'] = true, ['repeat'] = true }
local CLOSES = { ['end'] = true, ['until'] = true }

-- The next token from `at`: kind ('name', 'string', 'other', nil at the end), text, start, position after it.
local function token(source, at)
    while true do
        at = source:find('%S', at)
        if not at then
            return nil
        end
        local level = source:match('^%-%-%[(=*)%[', at)
        if level then
            local _, finish = source:find(']' .. level .. ']', at, true)
            at = (finish or #source) + 1
        elseif source:find('^%-%-', at) then
            at = (source:find('\n', at, true) or #source) + 1
        else
            break
        end
    end
    local word = source:match('^[%a_][%w_]*', at)
    if word then
        return 'name', word, at, at + #word
    end
    local quote = source:match('^["\']', at)
    if quote then
        local i = at + 1
        while i <= #source do
            local char = source:sub(i, i)
            if char == '\\' then
                i = i + 1
            elseif char == quote or char == '\n' then
                break
            end
            i = i + 1
        end
        return 'string', source:sub(at + 1, i - 1), at, i + 1
    end
    local level = source:match('^%[(=*)%[', at)
    if level then
        local _, finish = source:find(']' .. level .. ']', at, true)
        finish = finish or #source
        return 'string', '', at, finish + 1
    end
    local number = source:match('^%d[%w.]*', at)
    if number then
        return 'other', number, at, at + #number
    end
    if source:find('^==', at) then
        return 'other', '==', at, at + 2
    end
    return 'other', source:sub(at, at), at, at + 1
end

local function line_start(source, line)
    local at = 1
    for _ = 2, line do
        local newline = source:find('\n', at, true)
        if not newline then
            return #source + 1
        end
        at = newline + 1
    end
    return at
end

-- What an entry that begins at `at` names itself: key and the position after its '=', or nil for a positional one.
local function entry_key(source, at)
    local kind, text, _, after = token(source, at)
    if kind == 'name' then
        local _, equals, _, value = token(source, after)
        if equals == '=' then
            return text, value
        end
    elseif text == '[' then
        local key_kind, key, _, key_after = token(source, after)
        local _, bracket, _, bracket_after = token(source, key_after or #source + 1)
        if bracket == ']' then
            local _, equals, _, value = token(source, bracket_after)
            if equals == '=' then
                return key_kind == 'string' and key or tonumber(key), value
            end
        end
    end
end

local function join(path, key)
    if type(key) == 'string' and key:match('^[%a_][%w_]*$') then
        return path == '' and key or path .. '.' .. key
    elseif type(key) == 'string' then
        return path .. '["' .. key .. '"]'
    end
    return path .. '[' .. tostring(key) .. ']'
end

--- All keys of the table written after line `line`: { ['backoff.first'] = 14, ... }.
function M.scan(source, line)
    local lines = {}
    -- The call itself: the first brace from that line on.
    local at = line_start(source, line)
    local text, _
    repeat
        local kind
        kind, text, _, at = token(source, at)
        if not kind then
            return lines
        end
    until text == '{' and kind == 'other'

    local counted_to, current_line = line_start(source, line), line
    local function line_at(position)
        for _ in source:sub(counted_to, position - 1):gmatch('\n') do
            current_line = current_line + 1
        end
        counted_to = position
        return current_line
    end

    -- Each open bracket: is it a table of ours (path known), how many blocks are open in it, which entry is read.
    local stack = { { path = '', blocks = 0, index = 0, fresh = true } }
    while #stack > 0 do
        local top = stack[#stack]
        if top.path and top.fresh then
            top.fresh = false
            local key, value_at = entry_key(source, at)
            local kind, first, key_start = token(source, at)
            if kind and not (kind == 'other' and first == '}') then
                if not key then
                    top.index = top.index + 1
                    key = top.index
                end
                top.entry = join(top.path, key)
                lines[top.entry] = lines[top.entry] or line_at(key_start)
                at = value_at or at
                top.value = true
            end
        end
        local kind, word, _, after = token(source, at)
        if not kind then
            break
        end
        at = after
        if kind == 'name' then
            if OPENS[word] then
                top.blocks = top.blocks + 1
            elseif CLOSES[word] then
                top.blocks = top.blocks - 1
            end
        elseif kind == 'other' and (word == '{' or word == '(' or word == '[') then
            -- A table written as the value of an entry, not one inside an expression of it.
            local ours = word == '{' and top.path and top.value and top.blocks == 0
            stack[#stack + 1] = { path = ours and top.entry or nil, blocks = 0, index = 0, fresh = true }
        elseif kind == 'other' and (word == '}' or word == ')' or word == ']') then
            stack[#stack] = nil
        elseif kind == 'other' and (word == ',' or word == ';') and top.path and top.blocks == 0 then
            top.fresh = true
        end
        top.value = false
    end
    return lines
end

return M
