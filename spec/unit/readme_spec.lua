--- The README says what the code does.

local options = require 'dutch-master.script.options'
local presets = require 'dutch-master.launch.presets'
local read = require('spec.support.files').text

describe('README', function()
    local text = read 'README.md'

    it('lists every option with its default, in the words of the code, and no other', function()
        local rows = {}
        for name, default, doc in text:gmatch('\n| `(%w+)` | ([^\n]-) | ([^\n]-) |%f[\n]') do
            rows[name] = { default = default, doc = doc }
        end
        for _, option in ipairs(options.list) do
            local row = rows[option.name]
            assert.is_table(row, option.name .. ' is missing')
            assert.equal(option.default_text, row.default, option.name)
            assert.equal(option.doc .. (option.unit and (' (%s)'):format(option.unit) or ''), row.doc, option.name)
            rows[option.name] = nil
        end
        assert.same({}, rows)
    end)

    it('has every preset with its own fields, and no other', function()
        local section = text:match '\n| preset |[^\n]*\n|[^\n]*\n(.-)\n\n'
        local found, wanted = {}, {}
        for names, fields in section:gmatch '| ([^|]*) | ([^|]*) |' do
            fields = fields:gsub('%b()', '')
            for name in names:gmatch '`dutch%.(%l+)`' do
                found[name] = {}
                for field in fields:gmatch '`(%w+)`' do
                    found[name][field] = true
                end
            end
        end
        for name, preset in pairs(presets) do
            local _, message = pcall(preset, { nosuchfield = true })
            wanted[name] = {}
            for field in message:match '%(there are: (.-) args command%)$':gmatch '%w+' do
                wanted[name][field] = true
            end
        end
        assert.same(wanted, found)
    end)

    it('has no place left to fill in', function()
        assert.is_nil(text:find('\n[A-Z]+\n'))
    end)

    it('links to headings that it has', function()
        local anchors, links = {}, 0
        for heading in text:gmatch '\n##+ ([^\n]+)' do
            anchors[heading:lower():gsub('[^%w _-]', ''):gsub(' ', '-')] = true
        end
        for anchor in text:gmatch '%]%(#([^)]+)%)' do
            assert.is_true(anchors[anchor], anchor)
            links = links + 1
        end
        assert.is_true(links > 10)
    end)

    it('names files that exist', function()
        for path in text:gmatch('`([%w_/%-]+/[%w_/%-]*%.?%w*)`') do
            if path:match '^src/' or path:match '^lua/' or path:match '^spec/' or path:match '^examples/' then
                assert.is_truthy(os.rename(path, path), path)
            end
        end
    end)
end)
