local stdlib = require 'posix.stdlib'
local logs = require 'dutch-master.cli.logs'

describe('logs --since', function()
    it('takes a time for one of this place, in summer and in winter, unless it ends in Z', function()
        local before = os.getenv 'TZ'
        stdlib.setenv('TZ', 'CET-1CEST,M3.5.0,M10.5.0/3')
        finally(function() stdlib.setenv('TZ', before) end)
        for text, wanted in pairs {
            ['2026-07-01T12:00:00'] = '2026-07-01T10:00:00', ['2026-07-01T12:00:00Z'] = '2026-07-01T12:00:00',
            ['2026-01-01T12:00:00'] = '2026-01-01T11:00:00', ['2026-01-01T12:00:00Z'] = '2026-01-01T12:00:00',
            ['2026-07-01'] = '2026-06-30T22:00:00', ['2026-07-01 12:30'] = '2026-07-01T10:30:00',
        } do
            assert.equal(wanted, os.date('!%Y-%m-%dT%H:%M:%S', logs.moment(text, os.time())), text)
        end
    end)
end)
