-- A snapshot while it is made: that it is what one encoding of all would be, and that what has not changed is not
-- written again.

local cjson = require 'cjson'
local books = require 'dutch-master.keeper.book'

-- An object that counts how often it was asked.
local function new_object(value)
    return { value = value, asked = 0, keep = function(self, book)
        self.asked = self.asked + 1
        return { value = self.value, fd = book:fd('fd/' .. self.value, 7), plan = self.plan and book:share(self.plan) }
    end }
end

local function text_of(book, state)
    local texts, parts = assert(book:close(state))
    return cjson.decode(table.concat(texts)), parts
end

describe('a snapshot', function()
    it('is the JSON of all that it is made of', function()
        local book = books.new(books.shared())
        local function made(items)
            for i, item in ipairs(items) do
                items[i] = book:part(new_object(item))
            end
            return book:list(items)
        end
        local never = { at = 1.5, gone = true }
        local state = text_of(book, {
            none = made {}, one = made { 'a' }, three = made { 'a', 'b"\n', 'c' }, plain = { 1, 2 }, text = 'x',
            inner = book:object { deeper = book:object { list = made { 'd' } } }, alone = book:part(new_object 'e'),
            ends = book:list { book:constant(never), book:constant(never, function() return 'short' end) },
        })
        local function one(value)
            return { value = value, fd = 'fd/' .. value }
        end
        assert.same({ none = {}, one = { one 'a' }, three = { one 'a', one 'b"\n', one 'c' }, plain = { 1, 2 },
            text = 'x', inner = { deeper = { list = { one 'd' } } }, alone = one 'e', ends = { never, never } }, state)
    end)

    it('asks an object again when that says so, and names what it named meanwhile', function()
        local shared, object = books.shared(), new_object 'a'
        local book = books.new(shared)
        local first = text_of(book, { o = book:part(object) })
        for _ = 1, 2 do
            book = books.new(shared)
            local again, of_this = text_of(book, { o = book:part(object) })
            assert.same(first, again)
            assert.same({ { name = 'fd/a', fd = 7 } }, of_this[2].fds)
        end
        assert.equal(1, object.asked)
        object.value, object.part = 'b', nil
        book = books.new(shared)
        assert.equal('b', text_of(book, { o = book:part(object) }).o.value)
        local anew = books.new(shared, true)
        object.value = 'c' -- and says nothing
        assert.equal('c', text_of(anew, { o = anew:part(object) }).o.value)
        book = books.new(shared)
        assert.equal('b', text_of(book, { o = book:part(object) }).o.value)
    end)

    it('has each value that many share once, by a number that is theirs as long as one names it', function()
        local shared, one, other = books.shared(), new_object 'a', new_object 'b'
        one.plan, other.plan = { n = 1 }, { n = 2 }
        local function write(...)
            local book = books.new(shared)
            local list = {}
            for i, object in ipairs { ... } do
                list[i] = book:part(object)
            end
            local state, parts = text_of(book, { list = book:list(list), shared = shared:texts() })
            for _, part in ipairs(parts) do
                for _, entry in ipairs(part.shared) do
                    entry.users = entry.users + 1
                end
            end
            return state, function()
                for _, part in ipairs(parts) do
                    for _, entry in ipairs(part.shared) do
                        entry.users = entry.users - 1
                    end
                end
                shared:sweep()
            end
        end
        local state, forget = write(one, other)
        assert.same({ { n = 1 }, { n = 2 } }, state.shared)
        assert.same({ 1, 2 }, { state.list[1].plan, state.list[2].plan })
        local _, forget_other = write(other)
        forget()
        state = write(other)
        assert.same({ cjson.null, { n = 2 } }, state.shared) -- nobody's number changes
        assert.equal(2, state.list[1].plan)
        local third = new_object 'c'
        third.plan = { n = 3 }
        state = write(third, one) -- 1 is another's by now: one is asked again
        assert.same({ { n = 3 }, { n = 2 }, { n = 1 } }, state.shared)
        assert.same({ 1, 3 }, { state.list[1].plan, state.list[2].plan })
        forget_other()
    end)

    it('that cannot be written says why, and no object keeps a half of it', function()
        local book, object = books.new(books.shared()), new_object 'a'
        object.keep = function() return { f = print } end
        local texts, message = book:close { o = book:part(object) }
        assert.is_nil(texts)
        assert.truthy(message:find 'function')
        assert.is_nil(object.part)
    end)
end)
