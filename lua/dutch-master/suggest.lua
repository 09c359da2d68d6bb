--- suggest.lua: the nearest of some words to one that was mistyped: a verb, or an option of either kind. Pure.

local M = {}

-- Longer words are no typing mistakes, and the distance costs the product of both lengths.
local LONGEST = 64

--- Edits (insert, delete, replace, swap of neighbours) that make one word of the other.
local function distance(a, b)
    local before, last = nil, {}
    for j = 0, #b do
        last[j] = j
    end
    for i = 1, #a do
        local row = { [0] = i }
        for j = 1, #b do
            local same = a:byte(i) == b:byte(j) and 0 or 1
            row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + same)
            if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
                row[j] = math.min(row[j], before[j - 2] + 1)
            end
        end
        before, last = last, row
    end
    return last[#b]
end

-- num_workers, num-workers and numWorkers are one word.
local function plain(word)
    return (word:lower():gsub('[_-]', ''))
end

--- nil when nothing is near enough to be meant.
function M.nearest(word, candidates)
    if type(word) ~= 'string' or #word > LONGEST then
        return nil
    end
    local best, best_distance
    for _, candidate in ipairs(candidates) do
        local edits = distance(plain(word), plain(candidate))
        if edits <= math.max(1, math.floor(#candidate / 3)) and (not best or edits < best_distance) then
            best, best_distance = candidate, edits
        end
    end
    return best
end

return M
