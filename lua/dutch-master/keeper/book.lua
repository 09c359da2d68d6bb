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

-- What stands for itself in a snapshot: a list of texts, and of such lists. In a list with a text at 0 that comes
-- between any two of its items.
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

local function constant(self, value, make)
    local text = constants[value]
    if not text or self.anew then
        text = encode(self, make and make(value) or value)
        constants[value] = not self.anew and text or constants[value]
    end
    return text
end

local function new_list()
    return { [0] = ',' }
end

local function listed(list)
    return setmetatable({ '[', list, ']' }, TEXTS)
end

--- A list of values that nobody changes once they are kept, from the one with this index on.
-- @param make function(value) -> what is kept of it
function Book:constants(values, first, make)
    local list = new_list()
    for i = first, #values do
        list[#list + 1] = constant(self, values[i], make)
    end
    return listed(list)
end

--- Notes a table of plain values, which nobody changes, once, however many have its like. @return its number
function Book:share(value)
    local entry, making = self.shared:enter(constant(self, value)), self.making
    making.shared = making.shared or {}
    making.shared[#making.shared + 1] = entry
    return entry.number
end

-- What is kept of one object: its text, and the descriptors and shared values that this names. The writer notes in
-- `round` which snapshot it was in last.
local function new_part()
    return { text = '', fds = {}, shared = nil, round = nil }
end

local function make_part(self, object, keep)
    local part, around = new_part(), self.making
    self.making = part
    part.text = encode(self, (keep or object.keep)(object, self))
    self.making = around
    if not self.anew and not self.failure then
        object.part = part
    end
    return part
end

-- Whether the numbers in a text still mean what they did: it may not have been in the last snapshots.
local function is_known(self, part)
    for _, entry in ipairs(part.shared or {}) do
        if self.shared.entries[entry.number] ~= entry then
            return false
        end
    end
    return true
end

--- A list of what these objects keep, as it was written before if they have not changed.
-- @param keep function(object, book) -> a table of plain values; nil: their own
function Book:each(objects, keep)
    local list, parts, anew, round = new_list(), self.parts, self.anew, self.round
    local n, count = 0, #parts
    for _, object in pairs(objects) do
        local part = object.part
        if not part or anew or part.shared and not is_known(self, part) then
            part = make_part(self, object, keep)
        end
        if part.round ~= round then
            self.fresh[#self.fresh + 1] = part
        end
        n, count = n + 1, count + 1
        list[n], parts[count] = part.text, part
    end
    return listed(list)
end

--- The same of one, without the list.
function Book:part(object, keep)
    return setmetatable(self:each({ object }, keep)[2], TEXTS)
end

--- A list of objects and lists.
function Book.list(_, items)
    items[0] = ','
    return listed(items)
end

--- A table some of whose values are lists, objects or a part; the others are plain.
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

function Shared:texts()
    local items = {}
    for number = 1, self.last do
        local entry = self.entries[number]
        items[number] = entry and entry.text or 'null'
    end
    return Book.list(nil, items)
end

--- All of it as one text: what the platform makes of it.
function M.text(texts)
    local all = {}
    for i, item in ipairs(texts) do
        all[i] = type(item) == 'string' and item or M.text(item)
    end
    return table.concat(all, texts[0])
end

--- The values that many have, of all snapshots of one master.
function M.shared()
    return setmetatable({ by_text = {}, entries = {}, last = 0 }, Shared)
end

--- @param round the number of the last snapshot
-- @param anew no object keeps its text, or is asked for what it has kept
function M.new(shared, round, anew)
    local root = new_part()
    return setmetatable({ making = root, shared = shared, anew = anew, round = round,
        parts = { root }, -- all of them
        fresh = { root }, -- and those that the last snapshot has not
    }, Book)
end

--- @param state as of `object`
-- @return all of it as a list of texts and lists; or nil, message
function Book:close(state)
    local texts = self:object(state)
    if self.failure then
        return nil, self.failure
    end
    return texts
end

return M
