-- Wrong usage of the real command line: exit code 2, the mistake and the usage on stderr, nothing on stdout, and nothing
-- done. Verbs and options are taken from the help texts, so that a new one is tried as well.

local uv = require 'luv'
local apps = require 'spec.support.apps'
local cjson = require 'cjson'
local cli = require 'spec.support.cli'
local master = require 'spec.support.master'

local function run(m, ...)
    return cli.run(m, { ... }, { cwd = not m and '/' or nil })
end

local function help_of(verb)
    local c = run(nil, verb, '--help')
    assert.same({ 0, '' }, { c.code, c.err }, verb)
    return c.out
end

--- The verbs, in the order of the help text.
local function verbs()
    local list = {}
    for name in run(nil, '--help').out:gmatch '\n  (%l+) +%l' do
        list[#list + 1] = name
    end
    return list
end

--- { {long =, short =, value =}, ... }
local function options_of(verb)
    local list = {}
    for line in help_of(verb):match('\nOptions:\n(.-)\n\n'):gmatch '[^\n]+' do
        local short, long, value = line:match '^  %-?(%a?),? +%-%-([%l-]+) ?(%u*)  '
        assert(long or line:find('^' .. (' '):rep(26) .. '%S'), 'what is this line? ' .. line)
        if long then
            list[#list + 1] = { long = long, short = short ~= '' and short, value = value ~= '' and value }
        end
    end
    return list
end

--- That these words are refused, for the reason given.
local function refused(m, words, reason)
    local line = 'dutch-master ' .. table.concat(words, ' ')
    local c = cli.run(m, words, { cwd = not m and '/' or nil })
    assert.same({ 2, '' }, { c.code, c.out }, line)
    assert.truthy(c.err:find('dutch-master: ', 1, true) == 1, line .. '\n' .. c.err)
    assert.truthy(c.err:find(reason, 1, true), line .. '\n' .. c.err)
    assert.matches('\nusage: dutch%-master [%l|%[]', c.err)
end

describe('wrong usage', function()
    after_each(master.cleanup)

    it('is refused by every verb', function()
        local list = verbs()
        assert.is_true(#list >= 11, table.concat(list, ' '))
        for _, verb in ipairs(list) do
            refused(nil, { verb, '--frobnicate' }, verb .. ': unknown option "--frobnicate"')
            refused(nil, { verb, '-Z' }, verb .. ': unknown option "-Z"')
            refused(nil, { verb, '--help=yes' }, verb .. ': --help takes no value')
            if verb ~= 'web' then -- it takes as many scripts as there are
                refused(nil, { verb, 'a.lua', 'b.lua', 'c.lua' }, verb .. ': ')
            end
            -- Neither a file nor the name of one.
            refused(nil, { verb, 'frobnicate' }, verb .. ': ' .. (verb == 'list' and 'unexpected' or 'expected '))
            refused(nil, { verb, '' }, verb .. ': ')
        end
    end)

    it('is refused by every option of every verb', function()
        local tried = 0
        for _, verb in ipairs(verbs()) do
            for _, option in ipairs(options_of(verb)) do
                if option.value then
                    local message = ('%s: --%s needs a value (%s)'):format(verb, option.long, option.value)
                    refused(nil, { verb, '--' .. option.long }, message)
                    if option.short then
                        refused(nil, { verb, '-' .. option.short }, message)
                    end
                    if option.value ~= 'PATH' and option.value ~= 'FILE' then
                        for _, bad in ipairs { 'x', '', '-1', 'nan', 'inf', '1e300' } do
                            refused(nil, { verb, '--' .. option.long, bad }, ('found "%s"'):format(bad))
                        end
                    end
                else
                    refused(nil, { verb, '--' .. option.long .. '=1' }, 'takes no value')
                end
                tried = tried + 1
            end
        end
        assert.is_true(tried > 40, tried)
    end)

    for _, case in ipairs {
        { {}, 'which script?' },
        { { '' }, 'unknown verb ""' },
        { { 'statsu' }, 'unknown verb "statsu" (did you mean "status"?)' },
        { { 'start' }, 'a master is started with `dutch-master master.lua`' },
        { { '--frobnicate' }, 'unknown option "--frobnicate"' },
        { { '-x' }, 'unknown option "-x"' },
        { { '--' }, 'which script?' },
        { { '/nowhere/master.lua', 'status' }, 'the verb comes first: dutch-master status /nowhere/master.lua' },
        { { 'help', 'frobnicate' }, 'unknown verb' },
        { { 'scale' }, 'a number of workers from 1 to 4096 (4), or a change of it (+1, -1) is missing' },
        { { 'scale', 'x' }, 'expected a number of workers from 1 to 4096 (4), or a change of it (+1, -1), found "x"' },
        { { 'scale', '0' }, 'found "0"' },
        { { 'scale', '+0' }, 'found "+0"' },
        { { 'scale', '-0' }, 'found "-0"' },
        { { 'scale', '4097' }, 'found "4097"' },
        { { 'scale', '2.5' }, 'found "2.5"' },
        { { 'scale', '0x4' }, 'found "0x4"' },
        { { 'scale', '1e1' }, 'found "1e1"' },
        { { 'scale', '99999999999999999999' }, 'found "99999999999999999999"' },
        { { 'scale', '2', '3' }, 'expected a script, found "3"' },
        { { 'scale', '--', '--5' }, 'found "--5"' },
        { { 'why', 'abc' }, 'expected the id of a worker or a script, found "abc"' },
        { { 'why', '0' }, 'expected the id of a worker, found "0"' },
        { { 'why', '-1' }, 'found "-1"' },
        { { 'why', '1', '2' }, 'expected a script, found "2"' },
        { { 'events', '--last', '1.5' }, 'expected an integer of at least 0, found "1.5"' },
        { { 'top', '--interval', '0' }, 'expected a number of seconds of at least 0.1, found "0"' },
        { { 'completion', 'tcsh' }, 'expected bash, zsh, fish or luals, found "tcsh"' },
        { { 'completion', 'bash', 'zsh' }, 'unexpected "zsh"' },
    } do
        it('is refused: dutch-master ' .. table.concat(case[1], ' '), function()
            refused(nil, case[1], case[2])
        end)
    end

    it('leaves a running cluster as it is; so does a number of workers that only the master can refuse', function()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        local pids = m:workers()
        for _, number in ipairs { '0', '-2', '-3', '-4096', '+4095', 'x' } do
            refused(m, { 'scale', number }, 'scale: expected ')
        end
        refused(m, { 'restart', '--wait', '--timeout', 'soon' }, 'found "soon"')
        refused(m, { 'stop', 'now' }, 'expected a script, found "now"')
        assert.same(pids, m:workers())
        assert.equal(0, #m:records 'Scaling cluster')
        assert.equal(2, cjson.decode(run(m, 'status', '--json').out).wanted)
        assert.matches('found 0: 2 now, and %-2', run(m, 'scale', '-2').err)
        m:finish()
    end)
end)

describe('the script that a verb is about', function()
    after_each(master.cleanup)

    it('is said when nothing runs, with what to do', function()
        local dir = master.temp_dir()
        local empty = cli.run(nil, { 'status' }, { cwd = dir })
        assert.equal(3, empty.code)
        assert.equal(('dutch-master: there is no %s/master.lua, and no master%s runs\n'
            .. '  Name the script: dutch-master status /path/to/master.lua\n'):format(dir,
            uv.getuid() == 0 and '' or ' of this user'), empty.err)
        local named = cli.run(nil, { 'status', 'other.lua' }, { cwd = dir })
        assert.equal(('dutch-master: %s/other.lua: not running, and there is no such file\n'):format(dir), named.err)
        local file = assert(io.open(dir .. '/master.lua', 'w'))
        file:close()
        for _, verb in ipairs { 'status', 'restart', 'reload', 'plan', 'stop', 'events', 'why' } do
            local c = cli.run(nil, { verb }, { cwd = dir })
            assert.same({ 3, '' }, { c.code, c.out }, verb)
            assert.equal(('dutch-master: %s/master.lua: not running (start it with `dutch-master master.lua`)\n'):format(
                dir), c.err)
        end
    end)

    it('may be gone from the disk while its master runs', function()
        local m = master.start {
            script = "require('dutch-master').start { worker = 'app.lua' }", files = { ['app.lua'] = apps.idle },
        }
        m:await 'Cluster ready'
        assert(uv.fs_unlink(m.script))
        assert.equal(0, run(m, 'status').code)
        assert.equal(0, run(m, 'stop', '--wait').code)
        m:exit()
        m:finish()
    end)
end)
