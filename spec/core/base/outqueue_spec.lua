-- outqueue.c by itself, through LuaJIT's ffi: the runner exports its functions.
local ffi = require 'ffi'

ffi.cdef [[
struct dm_outqueue { char *bytes; size_t head, end, capacity, max; };
void dm_outqueue_init(struct dm_outqueue *queue, size_t max);
int dm_outqueue_add(struct dm_outqueue *queue, const char *data, size_t size);
void dm_outqueue_take(struct dm_outqueue *queue, size_t size);
void dm_outqueue_cut(struct dm_outqueue *queue, size_t size);
void dm_outqueue_clear(struct dm_outqueue *queue);
]]

local ENOBUFS = -105
local MAX = 100000

describe('outqueue', function()
    local queue

    before_each(function()
        queue = ffi.new 'struct dm_outqueue'
        ffi.C.dm_outqueue_init(queue, MAX)
    end)
    after_each(function()
        ffi.C.dm_outqueue_clear(queue)
    end)

    local function add(data)
        return ffi.C.dm_outqueue_add(queue, data, #data)
    end

    local function waiting()
        return queue.bytes == nil and '' or ffi.string(queue.bytes + queue.head, queue['end'] - queue.head)
    end

    it('gives the bytes in order, and holds no memory when they are out', function()
        assert.are.equal(0, add '')
        assert.is_true(queue.bytes == nil)
        assert.are.equal(0, add 'one\n')
        assert.are.equal(0, add 'two\n')
        ffi.C.dm_outqueue_take(queue, 5)
        assert.are.equal('wo\n', waiting())
        ffi.C.dm_outqueue_take(queue, 3)
        assert.are.equal('', waiting())
        assert.is_true(queue.bytes == nil)
    end)

    it('is bounded: what does not fit is not added at all', function()
        local half = ('x'):rep(MAX / 2)
        assert.are.same({ 0, 0, ENOBUFS }, { add(half), add(half), add 'y' })
        ffi.C.dm_outqueue_take(queue, 1)
        assert.are.same({ 0, ENOBUFS }, { add 'y', add 'z' })
        assert.are.equal(half:sub(2) .. half .. 'y', waiting())
    end)

    it('may lose its end', function()
        add 'whole\nhal'
        ffi.C.dm_outqueue_take(queue, 2)
        ffi.C.dm_outqueue_cut(queue, 4)
        assert.are.equal('ole\n', waiting())
        ffi.C.dm_outqueue_cut(queue, 0)
        assert.is_true(queue.bytes == nil)
    end)

    it('keeps its memory within a few times its bound however it is used', function()
        local expected, next_byte = {}, 0
        for i = 1, 3000 do
            local piece = string.char(next_byte):rep(i % 90 + 1)
            next_byte = (next_byte + 1) % 256
            assert.are.equal(0, add(piece))
            expected[#expected + 1] = piece
            if i % 3 > 0 then
                local text = table.concat(expected)
                assert.are.equal(#text, tonumber(queue['end'] - queue.head))
                ffi.C.dm_outqueue_take(queue, math.min(#text, i % 50 + 20))
                expected = { text:sub(math.min(#text, i % 50 + 20) + 1) }
            end
        end
        assert.are.equal(table.concat(expected), waiting())
        assert.is_true(queue.capacity <= 4 * MAX)
    end)
end)
