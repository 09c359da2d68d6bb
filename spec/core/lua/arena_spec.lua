-- The memory of an evaluation, against a table of what each block must hold.

local ffi = require 'ffi'
local loop = require 'spec.loop'

ffi.cdef [[
    struct dm_arena *dm_arena_new(void);
    void dm_arena_free(struct dm_arena *arena);
    void *dm_arena_allocate(void *arena, void *block, size_t old_size, size_t size);
    int __asan_address_is_poisoned(const volatile void *address);
]]
local C = ffi.C

-- Blocks of an arena, each filled with its number.
local function new_model(seed)
    local model = { arena = C.dm_arena_new(), blocks = {}, count = 0, refused = 0, shrunk_without = 0 }
    local state = seed
    function model.random(n)
        state = (state * 1103515245 + 12345) % 2147483648
        return math.floor(state / 65536) % n + 1
    end
    return model
end

-- Small ones above all, and both sides of what is a small one.
local function some_size(model)
    local kind = model.random(10)
    return kind < 7 and model.random(160) or kind < 9 and 480 + model.random(80) or model.random(3000)
end

local function check(block, size)
    for i = 0, size - 1 do
        if block.bytes[i] ~= block.fill then
            error(('byte %d of %d is %d, not %d'):format(i, size, block.bytes[i], block.fill))
        end
    end
end

-- Gives a block this size, 0: frees it.
local function resize(model, block, size, without)
    loop.fail_allocation(without and 1 or 0)
    local bytes = C.dm_arena_allocate(model.arena, block.bytes, block.size, size)
    local failed = without and not loop.fail_allocation(0)
    if bytes == nil and size > 0 then
        assert(failed and size > block.size, ('%d to %d bytes failed'):format(block.size, size))
        model.refused = model.refused + 1
        return check(block, block.size)
    end
    model.shrunk_without = model.shrunk_without + (failed and size < block.size and 1 or 0)
    if size > 0 then
        block.bytes = ffi.cast('uint8_t *', bytes)
        assert(tonumber(ffi.cast('uintptr_t', bytes)) % 16 == 0)
        check(block, math.min(block.size, size))
        ffi.fill(bytes, size, block.fill)
    end
    block.size = size
end

local function step(model, without)
    local place = model.random(400)
    local block = model.blocks[place]
    if not block then
        model.count = model.count + 1
        block = { size = 0, fill = model.count % 255 + 1 }
        model.blocks[place] = block
    end
    resize(model, block, model.random(4) == 1 and 0 or some_size(model), without)
    if block.size == 0 then
        model.blocks[place] = nil
    end
end

local function close(model)
    for _, block in pairs(model.blocks) do
        check(block, block.size)
        resize(model, block, 0)
    end
    C.dm_arena_free(model.arena)
end

describe('an arena', function()
    after_each(function()
        loop.fail_allocation(0)
    end)

    it('keeps what is in each block, whatever becomes of the others', function()
        local one, other = new_model(1), new_model(2) -- they share their pieces, one after the other
        for _ = 1, 20000 do
            step(one)
            step(other)
        end
        close(one)
        one = new_model(3)
        for _ = 1, 5000 do
            step(one)
            step(other)
        end
        close(other)
        close(one)
    end)

    it('never fails to make a block smaller, and leaves one as it is that cannot grow', function()
        local model = new_model(4)
        for i = 1, 40000 do
            step(model, i % 3 == 0)
        end
        assert.is_true(model.refused > 100, model.refused)
        assert.is_true(model.shrunk_without > 100, model.shrunk_without)
        close(model)
    end)

    if os.getenv 'DM_SANITIZE' then
        it('lets the sanitizer see who uses what was freed, or what is behind a block', function()
            local arena = C.dm_arena_new()
            local function is_poisoned(bytes, at)
                return C.__asan_address_is_poisoned(ffi.cast('char *', bytes) + at) ~= 0
            end
            local bytes = C.dm_arena_allocate(arena, nil, 0, 40)
            assert.same({ false, true, true }, { is_poisoned(bytes, 39), is_poisoned(bytes, 40), is_poisoned(bytes, 48) })
            bytes = C.dm_arena_allocate(arena, bytes, 40, 33)
            assert.same({ false, true }, { is_poisoned(bytes, 32), is_poisoned(bytes, 33) })
            C.dm_arena_allocate(arena, bytes, 33, 0)
            assert.same({ true, true }, { is_poisoned(bytes, 0), is_poisoned(bytes, 32) })
            assert.is_false(is_poisoned(C.dm_arena_allocate(arena, nil, 0, 48), 47))
            C.dm_arena_free(arena)
            assert.is_false(is_poisoned(bytes, 0))
        end)
    end
end)
