--- Numbers and tables for people. Pure.

local printable = require('dutch-master.log.text').printable

local M = {}

--- 820 -> "0.8s", 3723000 -> "1h02m"
function M.duration(ms)
    local seconds = ms / 1000
    if seconds < 10 then
        return ('%.1fs'):format(seconds)
    elseif seconds < 60 then
        return ('%ds'):format(seconds)
    elseif seconds < 3600 then
        return ('%dm%02ds'):format(seconds / 60, seconds % 60)
    elseif seconds < 86400 then
        return ('%dh%02dm'):format(seconds / 3600, seconds % 3600 / 60)
    end
    return ('%dd%02dh'):format(seconds / 86400, seconds % 86400 / 3600)
end

--- 5120 -> "5.0M"
function M.kilobytes(kb)
    if kb < 1024 then
        return ('%dK'):format(kb)
    elseif kb < 1024 * 1024 then
        return ('%.1fM'):format(kb / 1024)
    end
    return ('%.2fG'):format(kb / 1024 / 1024)
end

--- plural(1, 'worker') -> "1 worker"
function M.plural(count, word)
    return ('%d %s%s'):format(count, word, count == 1 and '' or 's')
end

--- Control bytes of others' text, made visible: a worker's stderr must not move the cursor of whoever reads it.
function M.visible(text)
    return printable(tostring(text), true)
end

--- The same for a text of several lines.
function M.block(text)
    local lines = {}
    for line in (tostring(text) .. '\n'):gmatch '([^\n]*)\n' do
        lines[#lines + 1] = M.visible(line)
    end
    return table.concat(lines, '\n')
end

--- The last lines of what a worker wrote, at most `count`. @return list; empty where it wrote nothing
function M.last_lines(text, count)
    local lines = {}
    for line in (text or ''):gmatch '[^\n]+' do
        lines[#lines + 1] = M.visible(line)
        if #lines > count then
            table.remove(lines, 1)
        end
    end
    return lines
end

--- What a verb says on stderr: whatever it quotes, of terminal sequences only our colours and the line of progress.
function M.said(text)
    local parts, from = {}, 1
    for first, own, after in text:gmatch '()(\r?\27%[[%d;]*[mK])()' do
        parts[#parts + 1] = M.block(text:sub(from, first - 1))
        parts[#parts + 1] = own
        from = after
    end
    parts[#parts + 1] = M.block(text:sub(from))
    return table.concat(parts)
end

--- Columns a text takes on a terminal: bytes of UTF-8 that continue a character and colours take none.
function M.width(text)
    local plain = text:gsub('\27%[[%d;]*m', '')
    local _, continued = plain:gsub('[\128-\191]', '')
    return #plain - continued
end

--- Sets a paragraph in lines of `width` columns, all but the first behind `indent` blanks; `used` columns of the first
-- are taken already. A longer word stays whole.
function M.fold(text, width, indent, used)
    local lines, line = {}, nil
    used = used or 0
    for word in text:gmatch '%S+' do
        local more = M.width(word)
        if not line then
            line = word
        elseif used + 1 + more > width then
            lines[#lines + 1] = line
            line, used = (' '):rep(indent) .. word, indent
        else
            line, used = line .. ' ' .. word, used + 1
        end
        used = used + more
    end
    lines[#lines + 1] = line
    return table.concat(lines, '\n')
end

--- The end of a path says more than its beginning.
function M.shorten_left(text, width, utf8)
    if #text <= width then
        return text
    end
    local mark = utf8 and '…' or '...'
    local room = width - (utf8 and 1 or 3)
    return room < 1 and '' or mark .. text:sub(-room)
end

--- Cuts a line that may hold colours to `width` columns.
function M.cut(line, width)
    local out, used, i, painted = {}, 0, 1, false
    while i <= #line do
        local color = line:match('^\27%[[%d;]*m', i)
        if color then
            out[#out + 1] = color
            i, painted = i + #color, true
        else
            local char = line:match('^[%z\1-\127\194-\244][\128-\191]*', i) or line:sub(i, i)
            if used == width then
                out[#out + 1] = painted and '\27[0m' or nil
                break
            end
            out[#out + 1] = char
            used = used + 1
            i = i + #char
        end
    end
    return table.concat(out)
end

--- Columns that a flexible column keeps.
local FLEXIBLE_LEAST = 8

-- What a line of these columns takes at least; `least` is what a flexible one has to keep.
local function least_width(columns, rows)
    local total = 2 * (#columns - 1)
    for _, column in ipairs(columns) do
        local widest = M.width(column.title)
        for _, row in ipairs(rows) do
            widest = math.max(widest, M.width(row[column.index]))
        end
        total = total + (column.flexible and math.min(column.least or FLEXIBLE_LEAST, widest) or widest)
    end
    return total
end

-- First the narrow titles, then without the columns that matter least, until a line fits.
local function fitting(columns, rows, width)
    local kept = {}
    for i, column in ipairs(columns) do
        kept[i] = setmetatable({ index = i }, { __index = column })
    end
    if not width or least_width(kept, rows) <= width then
        return kept
    end
    for _, column in ipairs(kept) do
        column.title = column.narrow or column.title
    end
    while least_width(kept, rows) > width do
        local least
        for i, column in ipairs(kept) do
            if column.drop and (not least or column.drop < kept[least].drop) then
                least = i
            end
        end
        if not least then
            break
        end
        table.remove(kept, least)
    end
    return kept
end

--- Rows as lines with aligned columns. `columns` = { {title, right, flexible, least, narrow, drop}, ... }. Where a line
-- is wider than `width`, `narrow` takes the title's place, then columns go, those with the lowest `drop` first, and a
-- flexible column is cut from the left.
function M.table(all_columns, all_rows, width, utf8)
    local columns, rows = fitting(all_columns, all_rows, width), {}
    for i, row in ipairs(all_rows) do
        rows[i] = {}
        for j, column in ipairs(columns) do
            rows[i][j] = row[column.index]
        end
    end
    local widths = {}
    for i, column in ipairs(columns) do
        widths[i] = M.width(column.title)
        for _, row in ipairs(rows) do
            widths[i] = math.max(widths[i], M.width(row[i]))
        end
    end
    local total = 2 * (#columns - 1)
    for _, w in ipairs(widths) do
        total = total + w
    end
    for i, column in ipairs(columns) do
        if column.flexible and width and total > width then
            widths[i] = math.max(math.min(FLEXIBLE_LEAST, widths[i]), widths[i] - (total - width))
        end
    end
    local function line(row, is_title)
        local cells = {}
        for i, column in ipairs(columns) do
            local text = row[i]
            if column.flexible then
                text = is_title and text:sub(1, widths[i]) or M.shorten_left(text, widths[i], utf8)
            end
            local padding = (' '):rep(widths[i] - M.width(text))
            cells[i] = column.right and padding .. text or text .. padding
        end
        return (table.concat(cells, '  '):gsub('%s+$', ''))
    end
    local titles = {}
    for i, column in ipairs(columns) do
        titles[i] = column.title
    end
    local lines = { line(titles, true) }
    for _, row in ipairs(rows) do
        lines[#lines + 1] = line(row)
    end
    return lines
end

--- The same in the width of the terminal, its titles dim.
function M.sheet(ctx, columns, rows)
    local lines = M.table(columns, rows, ctx.columns(), ctx.utf8)
    lines[1] = ctx.paint('dim', lines[1])
    return lines
end

--- Lines as a text that fits the terminal.
function M.page(ctx, lines)
    local columns = ctx.columns()
    for i, line in ipairs(columns and lines or {}) do
        lines[i] = M.cut(line, columns)
    end
    return table.concat(lines, '\n') .. '\n'
end

return M
