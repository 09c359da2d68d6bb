-- The borders between the layers, as the top of every file promises them.
-- Longer than 400 lines: one list of rules, which share how files are read.

local read = require('spec.support.files').text

--- Files below the directories, whose name ends in one of the endings.
local function files(directories, endings)
    local found = {}
    local list = assert(io.popen('find ' .. directories .. [[ -type f -not -path '*/.cache/*']]))
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

--- Where C may know Lua: the bindings, the programs of Lua workers and of scripts.
local function binding(path)
    return path:find '^src/lua/' or path:find '^src/worker/' or path:find '^src/script/'
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Folders and objects

-- From the lowest floor to the highest. A folder requires from its own floor and those below it.
local LUA_FLOORS = { 'keeper', 'log', 'script', 'channel', 'listen', 'cluster', 'launch', 'control', 'cli', 'web' }
local C_FLOORS = { 'base', 'keeper', 'service', 'process', 'net', 'lua', 'script', 'worker' }

-- Objects, by the names they go by where they are somebody else's: those of their files, and others. Their fields are
-- their own.
local OBJECTS = {}
for name in ('restarting loading child platform current incoming former book control log'):gmatch '%w+' do
    OBJECTS[name] = true
end
for _, path in ipairs(files('lua/dutch-master', { '.lua' })) do
    for line in io.lines(path) do
        if line:find '%.__index = ' then
            OBJECTS[path:match '([^/]+)%.lua$'] = true
        end
    end
end
-- What goes by such a name and is a record of the file's own, or is only filled in there: file, space, name.
local RECORDS = {
    ['listen/sockets worker'] = true, -- its book of who listens where
    ['cli/top worker'] = true, -- values from a status
    ['control/server control'] = true, -- the module's own object
    ['script/plan hooks'] = true, -- of the plan: which there are
    ['script/api master'] = true, -- the master's store, which the script's functions are about
}

-- The objects whose fields a line writes: of "a.log, self.worker.x = 1" they are "a" and "worker", if these are some.
local function assigned(line)
    local found = {}
    local left = line:match '^%s*([%a_][%w_.%[%]]*[%w_., %[%]]*)%s*=[^=]'
    for path in (left or ''):gmatch '[^%s,]+' do
        local owner = path:gsub('%b[]', ''):match '([%w_]+)%.[%w_]+$'
        if owner and OBJECTS[owner] then
            found[#found + 1] = owner
        end
    end
    return found
end

-- What has no spec of its own by design, and why.
local NO_SPEC = {
    -- Verbs: cli_spec runs each over a fake master, the e2e specs over a real one.
    ['cli/'] = 'verbs', ['web/'] = 'e2e/web_spec',
    ['cluster/asking'] = 'health_spec', ['cluster/knock'] = 'acceptance_spec, health_spec',
    ['script/api'] = 'session_spec', ['script/option_types'] = 'options_spec, plan_spec',
    ['script/key_lines'] = 'plan_spec',
    -- Bindings are called by the specs of what they bind.
    ['lua/'] = 'bindings', ['process/deathwatch'] = 'spawn_spec',
    ['worker/wire_binding'] = 'node_wire_spec',
    ['service/sdnotify'] = 'notify_spec', ['service/target'] = 'sink_spec',
    ['service/server'] = 'stream_spec', ['base/fdpass'] = 'channel_spec',
    ['base/errors'] = 'every core spec', ['base/proc'] = 'process/sysinfo_spec',
    ['base/rights'] = 'net/rights_spec', ['process/helper'] = 'net/rights_spec',
    ['net/repair'] = 'lane_spec',
    ['net/diag'] = 'dial_spec',
    ['keeper/keeper'] = 'e2e/keeper_spec', ['keeper/handoff'] = 'e2e/upgrade_spec',
    ['keeper/kept'] = 'e2e/keeper_spec', ['keeper/held'] = 'e2e/keeper_spec', ['keeper/outbox'] = 'e2e/keeper_process_spec',
    ['keeper/children'] = 'e2e/keeper_process_spec', ['keeper/master'] = 'e2e/keeper_process_spec',
    ['keeper/memory'] = 'e2e/keeper_spec', ['keeper/tell'] = 'e2e/keeper_process_spec',
    ['keeper/upgrade'] = 'e2e/upgrade_spec',
    ['base/identity'] = 'e2e/keeper_spec', ['base/outlive'] = 'e2e/keeper_rescue_spec',
    ['net/holder'] = 'listener_spec', ['net/unix_path'] = 'listener_spec', ['net/group_order'] = 'steering_spec',
}

local function exists(path)
    local file = io.open(path)
    return file ~= nil and file:close()
end

-- Of each file DIR/X/Y.EXT the name X/Y, when it has no SPECS/X/Y_spec.lua and is not excused.
local function without_spec(dir, extension, specs)
    local found = {}
    for _, path in ipairs(files(dir, { extension })) do
        local name = path:sub(#dir + 2, -#extension - 1)
        if name:find '/' and not exists(('%s/%s_spec.lua'):format(specs, name))
            and not NO_SPEC[name] and not NO_SPEC[name:match '^[^/]+/'] then
            found[#found + 1] = name
        end
    end
    return found
end

-- "a/b requires c": an arrow that runs up.
local function upward(paths, dir, pattern, floors)
    local floor = {}
    for i, name in ipairs(floors) do
        floor[name] = i
    end
    local found = {}
    for _, path in ipairs(paths) do
        local name = path:sub(#dir + 2)
        local from = floor[name:match '^([^/]+)/' or '']
        for line in from and io.lines(path) or function() end do
            local to = floor[line:match(pattern) or '']
            if to and to > from and name ~= 'cli/web.lua' then -- the verb, which starts the pages
                found[#found + 1] = ('%s: %s'):format(name, line)
            end
        end
    end
    return found
end

describe('folders:', function()
    local lua, c = files('lua/dutch-master', { '.lua' }), files('src', { '.c', '.h' })

    it('arrows run one way', function()
        assert.same({}, upward(lua, 'lua/dutch-master', "require%W+dutch%-master%.([%w_]+)%.", LUA_FLOORS))
        assert.same({}, upward(c, 'src', '#include "([%w_]+)/', C_FLOORS))
    end)

    it('no binding needs one that needs it', function()
        local needs = {}
        for _, path in ipairs(files('src/lua', { '.c', '.h' })) do
            local name = path:match '([^/]+)%.[ch]$'
            needs[name] = needs[name] or {}
            for line in io.lines(path) do
                local other = line:match '#include "lua/([^"]+)%.h"'
                if other and other ~= name and other ~= 'open' then -- open.h is the list of all
                    needs[name][other] = true
                end
            end
        end
        local found, done = {}, {}
        local function follow(name, way)
            if way[name] then
                found[#found + 1] = name
            elseif not done[name] then
                way[name] = true
                for other in pairs(needs[name] or {}) do
                    follow(other, way)
                end
                way[name], done[name] = nil, true
            end
        end
        for name in pairs(needs) do
            follow(name, {})
        end
        assert.same({}, found)
        assert.is_true(needs.listener.lane)
    end)

    it('nobody writes the fields of another object', function()
        local found, written = {}, {}
        for _, path in ipairs(lua) do
            local name, number = path:match '^lua/dutch%-master/(.*)%.lua$', 0
            for line in io.lines(path) do
                number = number + 1
                for _, owner in ipairs(assigned(line)) do
                    written[name .. ' ' .. owner] = true
                    if not RECORDS[name .. ' ' .. owner] and owner ~= name:match '[^/]+$' then
                        found[#found + 1] = ('%s:%d: %s'):format(path, number, line)
                    end
                end
            end
        end
        assert.same({}, found)
        for name in pairs(RECORDS) do
            assert.is_true(written[name], name .. ': no exception is needed')
        end
    end)

    it('whoever takes a self has made it', function()
        local found = {}
        for _, path in ipairs(lua) do
            local takes, makes, foreign = false, false, {}
            for line in io.lines(path) do
                foreign[line:match '^local ([%w_]+) = require[ (]' or 0] = true
                if foreign[line:match '^function ([%w_]+)[.:]' or 1] then
                    found[#found + 1] = path .. ': ' .. line
                end
                takes = takes or line:find 'function[%w_%.: ]*%(self[,)]' ~= nil
                    or line:find '^function [%w_]+:' ~= nil and not line:find '^function Worker:send%(message%) end'
                makes = makes or line:find '%.__index = ' ~= nil
                -- A method of one module taken for another's.
                if line:find '^[A-Z]%w+%.[%w_]+[%w_., ]*= [%w_]+%.[%w_]' then
                    found[#found + 1] = path .. ': ' .. line
                end
            end
            if takes and not makes then
                found[#found + 1] = path
            end
        end
        assert.same({}, found)
    end)

    it('each file has a spec at the same place', function()
        assert.same({}, without_spec('lua/dutch-master', '.lua', 'spec/unit'))
        assert.same({}, without_spec('src', '.c', 'spec/core'))
        for name in pairs(NO_SPEC) do -- an excuse is for a file that is there, and has none
            local unit, core = 'spec/unit/' .. name .. '_spec.lua', 'spec/core/' .. name .. '_spec.lua'
            assert.is_true(name:sub(-1) == '/' or (exists('lua/dutch-master/' .. name .. '.lua') and not exists(unit))
                or (exists('src/' .. name .. '.c') and not exists(core)), name)
        end
    end)
end)

describe('layers:', function()
    local c = files('src', { '.c', '.h' })
    local lua = files('lua', { '.lua' })
    local specs = files('spec', { '.lua' })

    it('the mechanism does not know Lua', function()
        for _, header in ipairs { 'lua%.h', 'lualib%.h', 'luajit%.h', 'lauxlib%.h' } do
            assert.are.same({}, matches(c, '#include [<"]' .. header, binding))
        end
    end)

    it('the mechanism does not know policy', function()
        -- In any name of the code, however it is put together: start_restart(), old_generation, struct slot, SLOTS.
        local policy = { slot = true, restart = true, generation = true, canary = true, verdict = true,
            replacement = true, rollback = true, soak = true }
        local found = {}
        for _, path in ipairs(c) do
            local text = binding(path) and '' or read(path):gsub('\\.', ''):gsub('"[^"\n]*"', ''):gsub('/%*.-%*/', '')
            for name in text:gmatch '[%a_][%w_]*' do
                for word in name:lower():gmatch '[^_]+' do
                    if policy[word] or policy[word:match '^(.-)s$'] or policy[word:match '^(.-)e?d$']
                        or policy[word:match '^(.-)ing$'] then
                        found[#found + 1] = path .. ': ' .. name
                    end
                end
            end
        end
        assert.are.same({}, found)
    end)

    it('processes are started and signalled by our own code alone', function()
        assert.are.same({}, matches(c, 'uv_spawn%('))
        assert.are.same({}, matches(c, 'uv_kill%('))
        assert.are.same({}, matches(c, 'uv_signal_'))
        assert.are.same({}, matches(c, 'waitpid%([^2]'))
    end)

    it('a failure is pushed to Lua by support.c alone', function()
        local function is_support(path)
            return path == 'src/lua/support.c'
        end
        assert.are.same({}, matches(c, 'lua_pushstring%(L, dm_error_name', function(path)
            return is_support(path) or path == 'src/lua/child.c' -- a status, which says it in a field
        end))
        assert.are.same({}, matches(c, 'lua_pushliteral%(L, "E[A-Z]+"%)', is_support))
    end)

    it('policy reaches the core by the platform alone', function()
        assert.are.same({}, matches(lua, 'require%s*%(?%s*[\'"]dutch%-master%.core', function(path)
            return path == 'lua/dutch-master/platform.lua' or path == 'lua/dutch-master/linux.lua'
                or path == 'lua/dutch-master/cli.lua'
        end))
    end)

    it('no function of C is for nobody', function()
        local users, declared, found = {}, {}, {} -- name -> files without their ending, the header's and another
        for _, path in ipairs(files('src spec/support spec/fuzz', { '.c', '.h' })) do
            local text, file = read(path), path:sub(1, -3)
            for name in text:gmatch '%f[%w_](dm_[%w_]+)%f[^%w_]' do
                users[name] = users[name] or { of = file }
                users[name].other = users[name].other or users[name].of ~= file
            end
            for name in (path:find '^src/.*%.h$' and text or ''):gmatch '%f[%w_](dm_[%w_]+)%(' do
                declared[name] = path
            end
        end
        for name, path in pairs(declared) do
            found[#found + 1] = not users[name].other and path .. ': ' .. name or nil
        end
        assert.same({}, found)
    end)

    it('no function of Lua is for nobody', function()
        local words, found = {}, {}
        for _, path in ipairs(lua) do
            local text = read(path):gsub('%-%-[^\n]*', ''):gsub('%f[^\n%z]function [^\n]*', '')
            for name in text:gmatch '[.:\'"%s]([%a_][%w_]*)' do
                words[name] = true
            end
        end
        for _, path in ipairs(files('lua/dutch-master', { '.lua' })) do
            for name in read(path):gmatch '\nfunction [%w_]+[.:]([%w_]+)%(' do
                if not words[name] and not path:find 'control/verbs' then -- which clients name
                    found[#found + 1] = path .. ': ' .. name
                end
            end
        end
        assert.same({}, found)
    end)

    -- What says something: not comments, not the ends of blocks.
    local function telling(path)
        local list = {}
        for line in io.lines(path) do
            local text = line:match '^%s*(.-)%s*$'
            if text:find '%w' and text ~= 'end' and text ~= 'else' and not text:find '^[-/]?[-*/] ?'
                and not text:find '^#include' and not text:find '^local [%w_, ]+ = require' then
                list[#list + 1] = text
            end
        end
        return list
    end

    it('no two files, specs among them, have the same eight lines in a row', function()
        local SAME = 8
        local place, found = {}, {}
        for _, path in ipairs(files('src lua spec', { '.c', '.lua', '.cjs' })) do
            local list = telling(path)
            for i = 1, #list - SAME + 1 do
                local key = table.concat(list, '\n', i, i + SAME - 1)
                place[key] = place[key] or path
                found[#found + 1] = place[key] ~= path and ('%s and %s: %s'):format(place[key], path, list[i]) or nil
            end
        end
        assert.same({}, found)
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

    it('nobody runs the loop of the master but main()', function()
        assert.are.same({}, matches(files('lua/dutch-master', { '.lua' }), 'uv%.run'))
        assert.are.same({}, matches(files('src', { '.c' }), 'uv_run%(', function(path)
            return path == 'src/main.c' or path == 'src/core.c' or path:find '^src/worker/' or path:find '^src/script/'
        end))
    end)

    it('exactly one function of C enters Lua', function()
        assert.are.same({}, matches(files('src', { '.c' }), 'lua_pcall%(', function(path)
            return path == 'src/lua/call.c' or path == 'src/script/guard.c' or path == 'src/worker/worker_main.c'
        end))
    end)

    it('a file over 400 lines says in its head why it is one thing', function()
        local found = {}
        for _, path in ipairs(files('src lua spec', { '.c', '.h', '.lua', '.cjs' })) do
            local text = read(path)
            local _, count = text:gsub('\n', '')
            if count > 400 and not path:find '^spec/%.cache'
                and not text:sub(1, 4000):gsub('[%s*]+', ' '):find('Longer than 400 lines:', 1, true) then
                found[#found + 1] = ('%s: %d'):format(path, count)
            end
        end
        assert.are.same({}, found)
    end)

    it('the embedded Lua of two builds of one tree is the same, byte for byte', function()
        local texts = {}
        for i = 1, 2 do
            local output = os.tmpname()
            assert(os.execute(('luajit src/embed.lua lua %s $(find lua -name "*.lua" | sort %s)'):format(output,
                i == 2 and '-r' or '')) == 0)
            texts[i] = read(output)
            os.remove(output)
        end
        assert.is_true(#texts[1] > 100000)
        assert.is_true(texts[1] == texts[2])
    end)
end)
