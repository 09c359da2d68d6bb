local annotations = require 'dutch-master.cli.annotations'
local options = require 'dutch-master.script.options'
local read = require('spec.support.files').text

describe('the annotations for editors', function()
    local text = annotations.render()

    it('have every option with its words and its default, and no other', function()
        local found = {}
        local class = text:match '%-%-%-@class dutch.Options\n(.-)\n\n'
        for name, rest in class:gmatch '%-%-%-@field (%w+)%??([^\n]*)' do
            found[name] = rest
        end
        for _, option in ipairs(options.list) do
            local line = found[option.name]
            assert.truthy(line, option.name)
            assert.truthy(line:find(option.doc, 1, true) and line:find('Default: ' .. option.default_text, 1, true), line)
            found[option.name] = nil
        end
        assert.same({}, found)
    end)

    it('say a type only of options that there are', function()
        for name in pairs(annotations.TYPES) do
            assert.truthy(options.by_name[name], name)
        end
        assert.equal('boolean', annotations.type_of(options.by_name.drain))
        assert.equal('number', annotations.type_of(options.by_name.stopTimeout))
        assert.equal('integer', annotations.type_of(options.by_name.backlog))
    end)

    it('have every function and preset of `dutch`', function()
        for name in read 'lua/script/dutch-master.lua':gmatch '\n%s*function dutch%.(%l+)%(' do
            assert.truthy(text:find('function dutch.' .. name .. '(', 1, true), name)
        end
        for name in pairs(require 'dutch-master.launch.presets') do
            assert.truthy(text:find('function dutch.' .. name .. '(', 1, true), name)
        end
    end)

    it('are Lua', function()
        assert(loadstring(text))
    end)
end)
