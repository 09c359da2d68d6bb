local logs_file = require 'dutch-master.cli.logs_file'

local function file_of(text)
    local path = os.tmpname()
    local file = assert(io.open(path, 'wb'))
    file:write(text)
    file:close()
    finally(function() os.remove(path) end)
    return path
end

local function texts(path, size, wish)
    local list = {}
    assert(logs_file.read(path, size, wish, function(line)
        list[#list + 1] = line.text
    end))
    return list
end

describe('the file of the workers\' output', function()
    it('is read from where the wish begins, across blocks', function()
        local all = {}
        for i = 1, 5000 do
            all[i] = ('2026-11-22T14:%02d:%02d.000Z worker %d %s text %d'):format(i / 100, i % 60, i % 3,
                i % 2 == 0 and 'E' or 'O', i)
        end
        local text = table.concat(all, '\n') .. '\n'
        local path = file_of(text .. 'half a li')
        assert.equal(5000, #texts(path, nil, {}))
        assert.same({ 'text 4999', 'text 5000' }, texts(path, nil, { last = 2 }))
        local of_one = texts(path, nil, { worker = 1, last = 1000 })
        assert.same({ 1000, 'text 4999' }, { #of_one, of_one[1000] })
        assert.equal(1, #texts(path, nil, { since = '2026-11-22T14:50:00' }))
        assert.same({}, texts(path, nil, { since = '2027-11-22T14:50:00' }))
        -- What came after the size was asked for is left out.
        assert.same({ 'text 4999' }, texts(path, #text - 5, { last = 1 }))
        assert.same({}, texts(path, 0, { last = 1 }))
    end)

    it('may have lines of any form and length', function()
        local long = ('x'):rep(3e5)
        local path = file_of('\n\na\n' .. long .. '\nb\n')
        assert.same({ '', '', 'a', long, 'b' }, texts(path, nil, {}))
        assert.same({ long, 'b' }, texts(path, nil, { last = 2 }))
        assert.same({}, texts(path, nil, { worker = 1 }))
        assert.same({}, texts(file_of '', nil, { last = 5 }))
        assert.is_nil((logs_file.read('/nonexistent/x', nil, {}, print)))
    end)
end)
