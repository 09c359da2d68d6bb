-- FastCGI as load.lua speaks it: one request on a connection, and a parser of answers like that of http.lua.

local M = {}

local BEGIN, END, PARAMS, STDIN, STDOUT, STDERR = 1, 3, 4, 5, 6, 7
local VERSION, ID, RESPONDER, HEAD = 1, 1, 1, 8

local function record(type, content)
    return string.char(VERSION, type, 0, ID, math.floor(#content / 256), #content % 256, 0, 0) .. content
end

-- Names and values shorter than 128 have a length of one byte, others of four.
local function length(text)
    return #text < 128 and string.char(#text) or string.char(128, 0, math.floor(#text / 256), #text % 256)
end

--- The bytes of a request for the script target.path.
function M.request_text(target)
    local params = {}
    for name, value in pairs {
        SCRIPT_FILENAME = target.path, SCRIPT_NAME = '/' .. target.path:match '[^/]*$', REQUEST_METHOD = 'GET',
        SERVER_PROTOCOL = 'HTTP/1.1', REQUEST_URI = '/', QUERY_STRING = '',
    } do
        params[#params + 1] = length(name) .. length(value) .. name .. value
    end
    return record(BEGIN, string.char(0, RESPONDER, 0, 0, 0, 0, 0, 0)) .. record(PARAMS, table.concat(params))
        .. record(PARAMS, '') .. record(STDIN, '')
end

local Parser = {}
Parser.__index = Parser

--- Collects one answer. feed(data) -> 'done' | 'bad' | nil while more is needed.
function M.parser()
    return setmetatable({ data = '', text = '' }, Parser)
end

function Parser:feed(data)
    self.data = self.data .. data
    while #self.data >= HEAD do
        local version, type, _, _, high, low, padding = self.data:byte(1, HEAD)
        local size = high * 256 + low
        if version ~= VERSION or (type ~= STDOUT and type ~= STDERR and type ~= END) then
            return 'bad'
        elseif #self.data < HEAD + size + padding then
            return nil
        end
        local content = self.data:sub(HEAD + 1, HEAD + size)
        self.data = self.data:sub(HEAD + size + padding + 1)
        if type == STDOUT then
            self.text = self.text .. content
        elseif type == END then
            local head, body = self.text:match '^(.-\r\n)\r\n(.*)$'
            if not head or content:byte(5) ~= 0 then
                return 'bad'
            end
            self.status, self.body = tonumber(head:match 'Status: (%d+)' or 200), body
            return 'done'
        end
    end
end

function Parser:finish()
    return self.data == '' and self.text == '' and 'empty' or 'bad'
end

function Parser.closes()
    return true
end

return M
