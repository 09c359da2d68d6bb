local presets = require 'dutch-master.launch.presets'

-- What each needs, and one word that must stand in its command.
local LEAST = {
    gunicorn = { { app = 'a:b' }, 'a:b' }, uvicorn = { { app = 'a:b' }, 'a:b' }, hypercorn = { { app = 'a:b' }, 'a:b' },
    puma = { {}, 'config.ru' }, unicorn = { {}, 'config.ru' }, nginx = { { config = '/n.conf' }, '/n.conf' },
    haproxy = { { config = '/h.cfg' }, '/h.cfg' }, uwsgi = { { app = 'a:b' }, 'a:b' },
    phpfpm = { { config = '/f.conf' }, '/f.conf' },
}

local function each_preset()
    local names = {}
    for name in pairs(presets) do
        names[#names + 1] = name
    end
    table.sort(names)
    return ipairs(names)
end

local function words(argv)
    local flat = {}
    for _, word in ipairs(argv) do
        for _, part in ipairs(type(word) == 'table' and word.each or { word }) do
            flat[#flat + 1] = part
        end
    end
    return ' ' .. table.concat(flat, ' ') .. ' '
end

describe('a preset', function()
    it('makes a command with a way to get its sockets and a signal that lets it finish', function()
        for _, name in each_preset() do
            local made = presets[name](LEAST[name][1])
            assert.equal(name, made.preset)
            assert.matches('^SIG%u', made.stopSignal)
            assert.is_string(made.sockets)
            assert.truthy(words(made.argv):find(' ' .. LEAST[name][2] .. ' ', 1, true), name)
        end
    end)

    it('takes another program, alone or with words in front, and arguments', function()
        for _, name in each_preset() do
            local given = { args = { '--more', 'x' }, command = { 'bundle', 'exec', name } }
            for key, value in pairs(LEAST[name][1]) do
                given[key] = value
            end
            local text = words(presets[name](given).argv)
            assert.equal(1, (text:find(' bundle exec ' .. name .. ' ', 1, true)), text)
            assert.truthy(text:find(' --more x ', 1, true), text)
            given.command = '/opt/' .. name
            assert.equal(1, (words(presets[name](given).argv):find(' /opt/' .. name .. ' ', 1, true)))
        end
    end)

    it('says what it misses, what it does not know, and what it cannot use', function()
        for _, name in each_preset() do
            assert.error_matches(function() presets[name] { wrokers = 2 } end,
                'dutch.' .. name .. ': unknown option wrokers (there are: ', 1, true)
            assert.error_matches(function() presets[name] 'app' end, 'expected a table, found a string', 1, true)
            assert.error_matches(function()
                local given = { command = { 1 } }
                for key, value in pairs(LEAST[name][1]) do
                    given[key] = value
                end
                presets[name](given)
            end, 'command: expected a string or a list of strings', 1, true)
        end
        assert.error_matches(function() presets.gunicorn {} end, 'app: expected a string, found nothing', 1, true)
        assert.error_matches(function() presets.nginx { config = {} } end, 'config: expected a string, found a table', 1,
            true)
    end)

    it('repeats what stands for an address, for each of them', function()
        local made = presets.hypercorn { app = 'a:b', workers = 3 }
        assert.same({ 'hypercorn', { each = { '-b', 'fd://{fd}' } }, '--workers', '3', 'a:b' }, made.argv)
        assert.same({ each = '{fd}' }, presets.haproxy({ config = 'x' }).environment['DUTCH_FD_{index}'])
        assert.equal(1, presets.uvicorn({ app = 'a:b' }).at_most)
    end)

    it('is ready by its own word only where that can be believed', function()
        for _, name in each_preset() do
            local expected = (name == 'haproxy' or name == 'uwsgi') and 'notify' or nil
            assert.equal(expected, presets[name](LEAST[name][1]).ready, name)
        end
    end)

    it('of php-fpm keeps its path from being removed, unless it is told not to', function()
        assert.equal('fpm_slash', presets.phpfpm({ config = 'x' }).sockets)
        assert.equal('fpm', presets.phpfpm({ config = 'x', slash = false }).sockets)
    end)
end)
