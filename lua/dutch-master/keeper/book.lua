--- book.lua: a snapshot while it is made (estate.lua): the text of each object, the descriptors that it names, and the
-- values that many objects have.
--
-- A snapshot is written after each turn in which something changed, and most of it is as it was: so an object that has
-- many like it is a part, which keeps its own text. The object owns that, in its field `part`. Who changes anything
-- that its `keep` says sets the field to nil in the same moment, and nobody else does. (Each event that a machine with
-- `keeps` handles does so: machine.lua.)

local cjson = require 'cjson.safe'

local json = cjson.new()
json.decode_max_depth(64)
json.encode_max_depth(64)
json.encode_sparse_array(true)
json.encode_invalid_numbers(true)
json.decode_invalid_numbers(true)

local M = { json = json }

local Book = {}
Book.__index = Book

-- What stands for itself in a snapshot: a list of texts, and of such lists. One that an object keeps has `fds` and
-- `shared` as well: what its text names.
local TEXTS = {}

local function encode(self, value)
    local text, message = json.encode(value)
    self.failure = self.failure or message
    return text or 'null'
end

--- Notes a descriptor of ours under a name that nothing else ever has. @return the name, nil if there is none
-- @param pid whose pidfd it is, or nil
function Book:fd(name, fd, pid)
    if fd then
        local fds = self.making.fds
        fds[#fds + 1] = { name = name, fd = fd, pid = pid }
        return name
    end
end

-- The texts of what never changes.
local constants = setmetatable({}, { __mode = 'k' })

--- A value that nobody changes once it is kept.
-- @param make function(value) -> what is kept of it; nil: all of it
function Book:constant(value, make)
    local part = constants[value]
    if not part or self.anew then
        part = setmetatable({ encode(self, make and make(value) or value) }, TEXTS)
        constants[value] = not self.anew and part or constants[value]
    end
    return part
end

--- Notes a table of plain values, which nobody changes, once, however many have its like. @return its number
function Book:share(value)
    local entry = self.shared:enter(self:constant(value)[1])
    local shared = self.making.shared
    shared[#shared + 1] = entry
    return entry.number
end

local function new_part()
    return setmetatable({ fds = {}, shared = {} }, TEXTS)
end

--- What an object keeps, as it was written before if it has not changed.
-- @param keep function(object, book) -> a table of plain values; nil: its own
function Book:part(object, keep)
    local part = not self.anew and object.part
    if not part or not self.shared:knows(part) then
        part = new_part()
        local around = self.making
        self.making = part
        part[1] = encode(self, (keep or object.keep)(object, self))
        self.making = around
        if not self.anew and not self.failure then
            object.part = part
        end
    end
    self.parts[#self.parts + 1] = part
    return part
end

--- A list of parts, constants and objects.
function Book.list(_, items)
    local texts = setmetatable({ '[' }, TEXTS)
    for i, item in ipairs(items) do
        texts[2 * i] = item
        texts[2 * i + 1] = ','
    end
    texts[math.max(2 * #items + 1, 2)] = ']'
    return texts
end

--- A table some of whose values are parts, constants, lists or objects; the others are plain.
function Book:object(fields)
    local plain, texts = {}, setmetatable({ '' }, TEXTS)
    for name, value in pairs(fields) do
        if getmetatable(value) == TEXTS then
            texts[#texts + 1] = (',"%s":'):format(name)
            texts[#texts + 1] = value
        else
            plain[name] = value
        end
    end
    texts[1] = encode(self, plain):sub(1, -2)
    if texts[2] and not next(plain) then
        texts[2] = texts[2]:sub(2)
    end
    texts[#texts + 1] = '}'
    return texts
end

-- The values that many have, each with its text; `users` counts the parts that name it. Its number is another's when
-- nobody does.
local Shared = {}
Shared.__index = Shared

function Shared:enter(text)
    local entry = self.by_text[text]
    if not entry then
        local number = 1
        while self.entries[number] do
            number = number + 1
        end
        entry = { text = text, number = number, users = 0 }
        self.by_text[text], self.entries[number] = entry, entry
        self.last = math.max(self.last, number)
    end
    return entry
end

function Shared:sweep()
    for text, entry in pairs(self.by_text) do
        if entry.users == 0 then
            self.by_text[text], self.entries[entry.number] = nil, nil
        end
    end
end

--- Whether its numbers still mean what they did when it was made: it may not have been in the last snapshots.
function Shared:knows(part)
    for _, entry in ipairs(part.shared) do
        if self.entries[entry.number] ~= entry then
            return false
        end
    end
    return true
end

function Shared:texts()
    local items = {}
    for number = 1, self.last do
        local entry = self.entries[number]
        items[number] = entry and entry.text or 'null'
    end
    return Book.list(nil, items)
end

local function flatten(texts, into)
    for i = 1, #texts do
        local text = texts[i]
        if type(text) == 'string' then
            into[#into + 1] = text
        else
            flatten(text, into)
        end
    end
    return into
end

--- The values that many have, of all snapshots of one master.
function M.shared()
    return setmetatable({ by_text = {}, entries = {}, last = 0 }, Shared)
end

--- @param anew no object keeps its text, or is asked for what it has kept
function M.new(shared, anew)
    local root = new_part()
    return setmetatable({ parts = { root }, making = root, shared = shared, anew = anew }, Book)
end

--- @param state as of `object`
-- @return all of it as a list of texts, and its parts; or nil, message
function Book:close(state)
    local texts = flatten(self:object(state), {})
    if self.failure then
        return nil, self.failure
    end
    return texts, self.parts
end

return M
