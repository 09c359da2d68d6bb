-- What of each object outlives its master: that no field is forgotten. Each field that an object of these files has is
-- kept by it for another master, or is named here with the reason why it is not.

local read = require('spec.support.files').text

-- Names of parts, and of what an object was made with: another master makes it with its own. `part`: what is kept, as
-- it was written last.
local GIVEN = {}
for name in ([[platform agenda log on sockets launcher tickets output cluster claim upgrade rules script balance inherited
    borrowed rule fallback watchdog_ms worker_id channel query spare_fd backlog also is_kept want part]]):gmatch '[%a_]+' do
    GIVEN[name] = true
end

local AGAIN = 'found out again, or made again, at once'
local MOMENT = 'of a moment: the next look says it anew'

-- legend: file, and reason -> the fields that are not kept for it
local OBJECTS = {
    ['cluster/worker'] = {
        ['made of the plan'] = 'kind', ['opened again'] = 'output_fd', ['of its end: the cluster keeps that'] = 'report',
        ['figures that come again'] = 'compared measured', ['of the taking over'] = 'unsent taken_over',
    },
    ['cluster/health'] = { [AGAIN] = 'acceptance asking elsewhere lacks nowhere was_given', ['the worker has one'] = 'state' },
    ['cluster/leaving'] = {},
    ['cluster/slot'] = { ['kept by its id'] = 'current incoming weary', ['of the plan'] = 'proof' },
    ['cluster/totals'] = {},
    ['cluster/cluster'] = {
        ['a restart under way is asked for again'] = 'restarting loading',
        ['counted again'] = 'process_count',
        ['who waits asks again'] = 'stop_requests',
        ['its workers have their own'] = 'stopping_at',
        ['of the last words of a boot that has failed'] = 'failed_report',
    },
    ['listen/sockets'] = { [AGAIN] = 'pace spare', ['the conversation keeps what was asked'] = 'asking',
        ["the keeper's store has what they have"] = 'hand doubts' },
    ['listen/directory'] = {
        ['what is asked for is asked again'] = 'flights', ['of the end'] = 'closed',
        ['each is kept, by the list it is in'] = 'plan by_key retired rotations',
    },
    ['listen/rotation'] = {
        ['with the lanes'] = 'users', [AGAIN] = 'steering census rescue shared helpers',
        [MOMENT] = 'asleep glances mending repaired_at unused_at',
    },
    ['listen/lane'] = {
        ['follows from its users'] = 'state weight', [AGAIN] = 'steered fd',
        [MOMENT] = [[accepted accepted_before broken busy_at clean deaf depth disturbed emptied given_up orphaned_at
            out_since probation quiet retry_at seen since spoilt stalled deferred_until]],
    },
    ['channel/conversation'] = {
        ['counted again'] = 'count', ['with its sockets'] = 'by_name',
        ['given back or taken by then, and nobody asks'] = 'newconns',
        ['what was asked is asked again'] = 'unanswered held owed',
    },
    ['launch/launcher'] = {
        [AGAIN] = 'hooks lane', ['of a load'] = 'loads is_loading', ['another master says it again'] = 'missed',
    },
    ['launch/releases'] = {},
    ['control/claim'] = {},
    ['control/server'] = {
        [AGAIN] = 'timer looking', ['who waits asks again, by its key'] = [[waiting held over is_promise
            handled]], ['by the list of servers'] = 'kept servers',
        ['names of what its own end closes'] = 'outliving',
    },
    ['keeper/upgrade'] = { ['who waits asks again'] = 'waiting', [AGAIN] = 'timer' },
}

-- Whatever is written to self, and what it begins with.
local function fields_of(text)
    local set = {}
    for line in text:gmatch '[^\n]+' do
        if not line:find '^%s*%-%-' then
            local left = line:match '^(.-)%f[=]=[^=]' or ''
            for name in left:gmatch 'self%.([%a_]+)%f[%s,]' do
                set[name] = left:find('self%.' .. name .. '%s*$') ~= nil or left:find('self%.' .. name .. ',') ~= nil
                    or set[name]
            end
        end
    end
    local made = text:match '\nfunction [%a_]+%.new%(.-\nend' or ''
    for name in (made:match 'setmetatable%(({.-\n    }), ' or ''):gmatch '\n        ([%a_]+) = ' do
        set[name] = true
    end
    return set
end

-- What the functions that keep it speak of.
local function kept_of(text)
    local set, parts = {}, {}
    parts[#parts + 1] = text:match '\nlocal KEPT = {.-}'
    for body in text:gmatch '\n[%a ]*function [%w_:.]*keep[%w_]*%(.-\nend' do
        parts[#parts + 1] = body
    end
    if not parts[1] then -- what it shows is what it keeps
        parts[#parts + 1] = text:match ':snapshot%(%)(.-)\nend'
    end
    for name in table.concat(parts, '\n'):gmatch '[%a_]+' do
        set[name] = true
    end
    return set
end

describe('for another master', function()
    for name, reasons in pairs(OBJECTS) do
        it('each field of ' .. name .. ' is kept, or said not to be', function()
            local text = read('lua/dutch-master/' .. name .. '.lua')
            local fields, kept, named = fields_of(text), kept_of(text), {}
            assert.truthy(next(kept), 'it keeps nothing')
            for _, list in pairs(reasons) do
                for field in list:gmatch '[%a_]+' do
                    named[field] = true
                end
            end
            local forgotten, needless = {}, {}
            for field, is_field in pairs(fields) do
                if is_field and not kept[field] and not named[field] and not GIVEN[field] then
                    forgotten[#forgotten + 1] = field
                end
            end
            for field in pairs(named) do
                if not fields[field] then
                    needless[#needless + 1] = field
                end
            end
            table.sort(forgotten)
            table.sort(needless)
            assert.same({}, forgotten)
            assert.same({}, needless)
        end)
    end
end)
