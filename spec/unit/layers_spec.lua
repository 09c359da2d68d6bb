-- The borders between the layers, as the top of every file promises them.

--- Files below the directories, whose name ends in one of the endings.
local function files(directories, endings)
    local found = {}
    local list = assert(io.popen('find ' .. directories .. ' -type f'))
    for path in list:lines() do
        for _, ending in ipairs(endings) do
            if path:sub(-#ending) == ending then
                found[#found + 1] = path
            end
        end
    end
    list:close()
    assert(#found > 0, 'no files in ' .. directories)
    return found
end

--- "path:line: text" of the lines that match, but in files that `allowed` takes.
local function matches(paths, pattern, allowed)
    local found = {}
    for _, path in ipairs(paths) do
        local number = 0
        for line in io.lines(path) do
            number = number + 1
            if line:find(pattern) and not (allowed and allowed(path)) then
                found[#found + 1] = ('%s:%d: %s'):format(path, number, line)
            end
        end
    end
    return found
end

--- Where C may know Lua: the bindings, the Lua worker's program, the sandbox.
local function binding(path)
    return path:find '^src/lua/' or path:find '^src/worker/' or path:find '^src/sandbox/'
end

describe('layers:', function()
    local c = files('src', { '.c', '.h' })
    local lua = files('lua', { '.lua' })
    local specs = files('spec', { '.lua' })

    it('the mechanism does not know Lua', function()
        for _, header in ipairs { 'lua%.h', 'lualib%.h', 'luajit%.h', 'lauxlib%.h' } do
            assert.are.same({}, matches(c, '#include [<"]' .. header, function(path)
                return binding(path)
            end))
        end
    end)

    it('the mechanism does not know policy', function()
        for _, word in ipairs { '[Ss]lot', '[Rr]estart', '[Gg]eneration' } do
            assert.are.same({}, matches(c, '%f[%w]' .. word .. '%f[%W]%s*[%(%*;=]', function(path)
                return binding(path)
            end))
        end
    end)

    it('processes are started and signalled by our own code alone', function()
        assert.are.same({}, matches(c, 'uv_spawn%('))
        assert.are.same({}, matches(c, 'uv_kill%('))
        assert.are.same({}, matches(c, 'uv_signal_'))
        assert.are.same({}, matches(c, 'waitpid%([^2]'))
    end)

    it('policy reaches the core by the platform alone', function()
        assert.are.same({}, matches(lua, 'require%s*%(?%s*[\'"]dutch%-master%.core', function(path)
            return path == 'lua/dutch-master/platform.lua' or path == 'lua/dutch-master/linux.lua'
                or path == 'lua/dutch-master/cli.lua'
        end))
    end)

    it('specs await events', function()
        local found = {}
        for _, line in ipairs(matches(specs, '[^%w_]sleep%s*%(')) do
            -- What a slow worker does, in the text of its program, is no waiting of the spec.
            if not line:find('require("luv").sleep(', 1, true) and not line:find('cqueues.sleep(', 1, true)
                and not line:find('layers_spec', 1, true) then
                found[#found + 1] = line
            end
        end
        assert.are.same({}, found)
    end)

    it('exactly one function of C enters Lua', function()
        assert.are.same({}, matches(files('src', { '.c' }), 'lua_pcall%(', function(path)
            return path == 'src/lua/call.c' or path == 'src/sandbox/sandbox.c' or path == 'src/worker/worker_main.c'
        end))
    end)

    it('the embedded Lua of two builds of one tree is the same, byte for byte', function()
        local texts = {}
        for i = 1, 2 do
            local output = os.tmpname()
            assert(os.execute(('luajit src/embed.lua lua %s $(find lua -name "*.lua" | sort %s)'):format(output,
                i == 2 and '-r' or '')) == 0)
            local file = assert(io.open(output, 'rb'))
            texts[i] = file:read '*a'
            file:close()
            os.remove(output)
        end
        assert.is_true(#texts[1] > 100000)
        assert.is_true(texts[1] == texts[2])
    end)
end)
