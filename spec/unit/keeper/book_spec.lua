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

local function state_of(book, state)
    return cjson.decode(books.text(assert(book:close(state))))
end

describe('a snapshot', function()
    it('is the JSON of all that it is made of', function()
        local book = books.new(books.shared(), 0)
        local function made(values)
            for i, value in ipairs(values) do
                values[i] = new_object(value)
            end
            return book:each(values)
        end
        local never = { at = 1.5, gone = true }
        local state = state_of(book, {
            none = made {}, one = made { 'a' }, three = made { 'a', 'b"\n', 'c' }, plain = { 1, 2 }, text = 'x',
            inner = book:object { deeper = book:object { list = made { 'd' } } }, alone = book:part(new_object 'e'),
            lists = book:list { made { 'f', 'g' }, made {} }, left = book:constants({}, 1),
            ends = book:constants({ {}, never, never }, 2, function(value) return { at = value.at } end),
        })
        local function one(value)
            return { value = value, fd = 'fd/' .. value }
        end
        assert.same({ none = {}, one = { one 'a' }, three = { one 'a', one 'b"\n', one 'c' }, plain = { 1, 2 },
            text = 'x', inner = { deeper = { list = { one 'd' } } }, alone = one 'e',
            lists = { { one 'f', one 'g' }, {} }, left = {}, ends = { { at = 1.5 }, { at = 1.5 } } }, state)
    end)

    it('asks an object again when that says so, and names what it named meanwhile', function()
        local shared, object = books.shared(), new_object 'a'
        local function write(anew)
            local book = books.new(shared, 0, anew)
            return state_of(book, { o = book:part(object) }).o.value, book
        end
        for _ = 1, 3 do
            local value, book = write()
            assert.equal('a', value)
            assert.same({ { name = 'fd/a', fd = 7 } }, book.parts[2].fds)
        end
        assert.equal(1, object.asked)
        object.value, object.part = 'b', nil
        assert.equal('b', (write()))
        object.value = 'c' -- and says nothing
        assert.equal('c', (write(true)))
        assert.equal('b', (write()))
    end)

    it('tells which of its parts the one before has not', function()
        local shared, old, new = books.shared(), new_object 'a', new_object 'b'
        local book = books.new(shared, 4)
        book:each { old, new }
        book.parts[2].round = 4
        book = books.new(shared, 4)
        book:each { old, new }
        assert.same({ book.parts[1], new.part }, book.fresh) -- the first is what belongs to no object
    end)

    it('has each value that many share once, by a number that stays theirs', function()
        local shared, one, other, third = books.shared(), new_object 'a', new_object 'b', new_object 'c'
        one.plan, other.plan, third.plan = { n = 1 }, { n = 2 }, { n = 3 }
        local function write(...)
            local book = books.new(shared, 0)
            return state_of(book, { list = book:each { ... }, shared = shared:texts() })
        end
        local state = write(one, other)
        assert.same({ { n = 1 }, { n = 2 } }, state.shared)
        assert.same({ 1, 2 }, { state.list[1].plan, state.list[2].plan })
        other.part.shared[1].users = 1
        shared:sweep()
        state = write(other)
        assert.same({ cjson.null, { n = 2 } }, state.shared)
        assert.equal(2, state.list[1].plan)
        state = write(third, one) -- its number is another's by now: it is asked again
        assert.same({ { n = 3 }, { n = 2 }, { n = 1 } }, state.shared)
        assert.same({ 1, 3 }, { state.list[1].plan, state.list[2].plan })
    end)

    it('that cannot be written says why, and no object keeps a half of it', function()
        local book, object = books.new(books.shared(), 0), new_object 'a'
        object.keep = function() return { f = print } end
        local texts, message = book:close { o = book:part(object) }
        assert.is_nil(texts)
        assert.truthy(message:find 'function')
        assert.is_nil(object.part)
    end)
end)
