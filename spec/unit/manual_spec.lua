-- The manual pages against what they describe.

local arguments = require 'dutch-master.cli.arguments'
local cli = require 'dutch-master.cli'
local options = require 'dutch-master.script.options'
local read = require('spec.support.files').text

--- The names of the section OPTIONS in their order, and its text.
local function documented()
    local section = read 'src/man/dutch-master.lua.5':match '\n%.Sh OPTIONS\n(.-)\n%.Sh '
    local order = {}
    for name in section:gmatch '\n%.It Va (%w+)' do
        order[#order + 1] = name
    end
    return order, section
end

describe('the manual', function()
    it('of the script has every option, and no other', function()
        assert.same(options.names, (documented()))
    end)

    it('gives every option its default', function()
        local _, section = documented()
        for _, option in ipairs(options.list) do
            local entry = (section .. '\n.It Va end'):match('\n%.It Va ' .. option.name .. '\n(.-)\n%.It Va ')
            entry = entry:gsub('\n', ' ')
            local expected = 'Default: ' .. option.default_text:gsub('`', '')
            assert.truthy(entry:find(expected, 1, true), option.name .. ': ' .. expected .. ' in ' .. entry)
        end
    end)

    it('of the script has every function and preset, and no other', function()
        local page, found, wanted = read 'src/man/dutch-master.lua.5', {}, {}
        local section = page:match '\n%.Sh FUNCTIONS\n(.-)\n%.Sh '
        for name in section:gmatch 'dutch%.(%l+)' do
            found[name] = true
        end
        for name in read 'lua/script/dutch-master.lua':gmatch '\n%s*f?u?n?c?t?i?o?n? ?dutch%.(%l+)[%( =]' do
            wanted[name] = true
        end
        for name in pairs(require 'dutch-master.launch.presets') do
            wanted[name] = true
        end
        assert.same(wanted, found)
    end)

    it('of the program has every verb with every option of its own, and no other', function()
        local page = read 'src/man/dutch-master.1'
        local found = {}
        for verb, rest in page:gmatch '\n%.It Cm (%l+)([^\n]*)' do
            found[#found + 1] = verb
            local there = {}
            for option in rest:gmatch 'Fl %-([%l-]+)' do
                there[#there + 1] = option
            end
            local wanted = {}
            for _, option in ipairs(cli.verb(verb).options or {}) do
                wanted[#wanted + 1] = option.long
            end
            table.sort(there)
            table.sort(wanted)
            assert.same(wanted, there, verb)
        end
        local verbs = { unpack(cli.verbs) }
        table.sort(verbs)
        table.sort(found)
        assert.same(verbs, found)
        for _, option in ipairs(arguments.options { talks = true }) do
            assert.truthy(page:find('-' .. option.long:gsub('^%-', ''), 1, true), option.long)
        end
    end)

    it('has every exit code of the program', function()
        local section = read 'src/man/dutch-master.1':match '\n%.Sh EXIT STATUS\n(.-)\n%.Sh '
        local codes = {}
        for code in section:gmatch '\n%.It (%d+)' do
            codes[#codes + 1] = tonumber(code)
        end
        assert.same({ 0, 1, 2, 3, 10, 11, 12, 70, 71, 77, 78, 124 }, codes)
    end)

    it('is clean for mandoc', function()
        local pipe = io.popen 'if command -v mandoc >/dev/null; then mandoc -T lint src/man/* 2>&1; else echo none; fi'
        local said = pipe:read '*a'
        pipe:close()
        if said == 'none\n' then
            return pending 'mandoc is not installed'
        end
        for line in said:gmatch '[^\n]+' do
            -- Whether other pages are installed on this machine says nothing about ours.
            local about_others = line:find 'referenced manual not found' or line:find 'mandoc.db'
            assert.truthy(about_others, line)
        end
    end)
end)
