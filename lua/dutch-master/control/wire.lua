--- wire.lua: what goes over the control socket, one JSON line a message, as both ends write it. Pure.
--   -> {"v":1,"id":1,"verb":"status"}
--   <- {"v":1,"id":1,"event":"progress",...}   none, one or many
--   <- {"v":1,"id":1,"ok":true,...}            exactly one: or {"ok":false,"error":{"message":...,"code":...}}

local cjson = require 'cjson.safe'
local clean = require 'dutch-master.log.text'

local M = { VERSION = 1 }

local json = cjson.new()
json.decode_max_depth(16)
json.encode_sparse_array(true)

--- An empty list in JSON; cjson would write an empty table as an object.
local EMPTY_LIST = '\0[]'
M.EMPTY_LIST = EMPTY_LIST

--- @return the message as a line without its end; or nil, why
function M.encode(message)
    local ok, text, reason = pcall(json.encode, message) -- it throws at some values, and returns nil at others
    if not ok or not text then
        return nil, ok and reason or text
    end
    return clean.json((text:gsub('"\\u0000%[%]"', '[]')))
end

--- A list as JSON shall have it.
function M.list(items)
    if not items or #items == 0 then
        return EMPTY_LIST
    end
    return items
end

--- @return what a line says, or nil
function M.decode(line)
    return (json.decode(line))
end

return M
