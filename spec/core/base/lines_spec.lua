-- lines.c by itself, through LuaJIT's ffi: the runner exports its functions.
local ffi = require 'ffi'

ffi.cdef [[
struct dm_lines { struct { char *bytes; size_t head, end, capacity, max; } partial; size_t skipped; bool skips_long; };
void dm_lines_init(struct dm_lines *lines, size_t max);
int dm_lines_feed(struct dm_lines *lines, const char *data, size_t size,
                  bool (*on_line)(void *ctx, const char *line, size_t length), void *ctx);
void dm_lines_deinit(struct dm_lines *lines);
]]

local EMSGSIZE = -90

describe('lines', function()
    local lines, got, stop_after, on_line

    before_each(function()
        lines, got, stop_after = ffi.new 'struct dm_lines', {}, math.huge
        ffi.C.dm_lines_init(lines, 100)
        on_line = ffi.cast('bool (*)(void *, const char *, size_t)', function(_, line, length)
            got[#got + 1] = line ~= nil and ffi.string(line, length) or tonumber(length)
            return #got < stop_after
        end)
    end)
    after_each(function()
        ffi.C.dm_lines_deinit(lines)
        on_line:free()
    end)

    local function feed(data)
        return ffi.C.dm_lines_feed(lines, data, #data, on_line, nil)
    end

    it('come whole, in order, empty ones too', function()
        assert.are.equal(0, feed 'one\n\ntwo\n')
        assert.are.same({ 'one', '', 'two' }, got)
    end)

    it('are put together from pieces', function()
        for piece in ('first line\nsecond\n\nrest'):gmatch '.' do
            assert.are.equal(0, feed(piece))
        end
        feed ''
        assert.are.same({ 'first line', 'second', '' }, got)
        feed '\n'
        assert.are.equal('rest', got[4])
    end)

    it('may hold any byte but the newline', function()
        feed '\0\r\255\n'
        assert.are.same({ '\0\r\255' }, got)
    end)

    it('have a bound, in one piece and in several', function()
        local longest = ('x'):rep(100)
        assert.are.equal(0, feed(longest .. '\n'))
        assert.are.equal(0, feed(longest:sub(1, 60)))
        assert.are.equal(0, feed(longest:sub(61) .. '\n'))
        assert.are.same({ longest, longest }, got)
        assert.are.equal(EMSGSIZE, feed(longest .. 'x\n'))
        assert.are.equal(EMSGSIZE, feed(longest .. 'x'))
        assert.are.equal(0, feed(longest))
        assert.are.equal(EMSGSIZE, feed 'x')
        assert.are.equal(2, #got)
    end)

    it('that are too long can be skipped, however they are cut, and are counted', function()
        lines.skips_long = true
        local long = ('x'):rep(101)
        local text = 'a\n' .. long .. '\nb\n' .. long:rep(4):sub(1, 400) .. '\n' .. long:sub(1, 100) .. '\nlast\n'
        for _, step in ipairs { 1, 7, 100, 101, 102, 1000 } do
            got = {}
            for at = 1, #text, step do
                assert.are.equal(0, feed(text:sub(at, at + step - 1)))
                assert.is_true(lines.partial.capacity <= 1024)
            end
            assert.are.same({ 'a', 101, 'b', 400, long:sub(1, 100), 'last' }, got)
        end
    end)

    it('that do not end are an error even so', function()
        lines.skips_long = true
        for _ = 1, 4 do
            assert.are.equal(0, feed(('x'):rep(100)))
        end
        assert.are.equal(EMSGSIZE, feed(('x'):rep(100)))
        assert.are.same({}, got)
    end)

    it('stop when the reader wants no more', function()
        stop_after = 2
        assert.are.equal(0, feed 'a\nb\nc\nd')
        assert.are.same({ 'a', 'b' }, got)
    end)

    it('keep no memory of a long one', function()
        ffi.C.dm_lines_deinit(lines)
        ffi.C.dm_lines_init(lines, 1000000)
        feed(('x'):rep(500000))
        assert.is_true(lines.partial.capacity >= 500000)
        feed(('x'):rep(400000) .. '\n')
        assert.are.equal(900000, #got[1])
        assert.are.equal(0, tonumber(lines.partial.capacity))
        feed 'short'
        assert.is_true(lines.partial.capacity <= 1024)
    end)

    it('are the same however the bytes are cut', function()
        local seed = tonumber(os.getenv 'DUTCH_MASTER_SEED') or os.time()
        math.randomseed(seed)
        for _ = 1, 200 do
            local expected, text = {}, {}
            for i = 1, math.random(0, 30) do
                expected[i] = ('y'):rep(math.random(0, 100))
                text[i] = expected[i] .. '\n'
            end
            text = table.concat(text)
            got = {}
            local at = 1
            while at <= #text do
                local n = math.random(1, 60)
                assert.are.equal(0, feed(text:sub(at, at + n - 1)), 'seed ' .. seed)
                at = at + n
            end
            assert.are.same(expected, got, 'seed ' .. seed)
        end
    end)
end)
