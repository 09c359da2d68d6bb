local Platform = require 'spec.support.fake_platform'
local machine = require 'dutch-master.machine'

local function agenda(platform, log)
    return machine.agenda {
        timer = platform.timer,
        on_error = function(message)
            table.insert(log, 'error: ' .. message:match('^[^\n]*'))
        end,
        on_bug = function(object, event)
            table.insert(log, 'bug: ' .. object.state .. ' ' .. event)
        end,
    }
end

describe('machine', function()
    it('refuses a table in which a state does not say what to do on an event', function()
        assert.has_error(function()
            machine.define { name = 'm', initial = 'a', events = { 'x', 'y' }, states = { a = { x = machine.ignore } } }
        end, 'machine m: state a does not say what to do on y')
    end)

    it('refuses an event that is not in the list, and a cell that is no action', function()
        assert.has_error(function()
            machine.define { name = 'm', initial = 'a', events = { 'x' },
                states = { a = { x = machine.ignore, z = machine.bug } } }
        end, 'machine m: state a mentions the unknown event z')
        assert.has_error(function()
            machine.define { name = 'm', initial = 'a', events = { 'x' }, states = { a = { x = 'ignored' } } }
        end, 'machine m: state a, event x: a cell is a function, ignore or bug')
    end)

    it('runs events to completion, in the order they were raised', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        local definition, first, second
        definition = machine.define {
            name = 'm', initial = 'a', events = { 'go', 'told' },
            states = { a = {
                go = function(self)
                    queue:post(second, 'told')
                    queue:post(self, 'told')
                    table.insert(log, 'go done')
                end,
                told = function(self)
                    table.insert(log, self.name)
                end,
            } },
        }
        first = queue:start({ name = 'first' }, definition)
        second = queue:start({ name = 'second' }, definition)
        queue:post(first, 'go')
        assert.same({ 'go done', 'second', 'first' }, log)
    end)

    it('has one deadline, which ends with the state it belongs to', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        local object = queue:start({}, machine.define {
            name = 'm', initial = 'waiting', events = { 'go', 'deadline' },
            deadline = { waiting = function()
                return 100
            end },
            states = {
                waiting = { go = function()
                    return 'gone'
                end, deadline = function()
                    table.insert(log, 'late')
                    return 'waiting'
                end },
                gone = { go = machine.ignore, deadline = machine.bug },
            },
        })
        platform:advance(250)
        assert.same({ 'late', 'late' }, log)
        queue:post(object, 'go')
        platform:advance(1000)
        assert.same({ 'late', 'late' }, log)
        assert.equal(0, platform:armed())
    end)

    it('survives an action that throws, and reports what cannot happen', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        local object = queue:start({}, machine.define {
            name = 'm', initial = 'a', events = { 'throw', 'odd', 'fine' },
            states = { a = {
                throw = function()
                    error('oh', 0)
                end,
                odd = machine.bug,
                fine = function()
                    table.insert(log, 'fine')
                end,
            } },
        })
        queue:post(object, 'throw')
        queue:post(object, 'odd')
        queue:post(object, 'fine')
        assert.same({ 'error: oh', 'bug: a odd', 'fine' }, log)
        queue:finish(object)
        queue:post(object, 'fine')
        assert.equal(3, #log)
    end)

    it('has the deadline of its state again when an action throws', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        local patience, fails = 5000, true
        local object = queue:start({}, machine.define {
            name = 'm', initial = 'a', events = { 'go', 'deadline' },
            deadline = {
                a = function()
                    return patience
                end,
                b = function()
                    error('no time', 0)
                end,
            },
            states = {
                a = { go = function() return 'b' end, deadline = function()
                    if fails then
                        error('late', 0)
                    end
                    return 'a'
                end },
                b = { go = machine.bug, deadline = function() return 'c' end },
                c = { ignores = 'go deadline' },
            },
        })
        queue:post(object, 'deadline')
        platform:advance(4999)
        assert.same({ 'error: late' }, log) -- the one it had stays
        platform:advance(1)
        assert.same({ 'error: late', 'error: late' }, log)
        patience = 10
        platform:advance(5000)
        assert.equal(3, #log)
        platform:advance(2500)
        assert.equal(5, #log) -- no sooner than after a second
        fails = false
        platform:advance(1000)
        assert.equal(5, #log)
        queue:post(object, 'go')
        assert.same({ 'b', 'error: no time' }, { object.state, log[6] })
        platform:advance(1000)
        assert.equal('c', object.state)
        assert.equal(0, platform:armed())
    end)

    it('goes on when the report of an error fails', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        function queue.on_error()
            error 'the log is gone too'
        end
        local object = queue:start({}, machine.define {
            name = 'm', initial = 'a', events = { 'throw', 'fine' },
            states = { a = {
                throw = function()
                    error('oh', 0)
                end,
                fine = function()
                    table.insert(log, 'fine')
                end,
            } },
        })
        pcall(queue.post, queue, object, 'throw')
        queue:post(object, 'fine')
        assert.same({ 'fine' }, log)
    end)

    it('says once when all is done that something has changed', function()
        local platform, settled = Platform.new(), 0
        local queue = machine.agenda { timer = platform.timer, on_settled = function()
            settled = settled + 1
        end }
        local function define(news)
            return machine.define { name = 'm', news = news, initial = 'a', events = { 'go', 'stay' }, states = {
                a = { go = function(self)
                    queue:post(self, 'stay')
                    return 'b'
                end, ignores = 'stay' },
                b = { stay = function()
                    return 'b'
                end, go = machine.bug },
            } }
        end
        local loud, quiet = queue:start({}, define(true)), queue:start({}, define(nil))
        queue:post(loud, 'stay')
        assert.equal(0, settled)
        queue:post(loud, 'go')
        assert.equal(1, settled)
        queue:post(quiet, 'go')
        assert.equal(1, settled)
        queue:hold(function()
            queue:note_news()
            queue:post(quiet, 'stay')
        end)
        assert.equal(2, settled)
    end)

    it('takes what a state ignores from one list, which mentions nothing twice and nothing unknown', function()
        local function define(row)
            return function()
                machine.define { name = 'm', initial = 'a', events = { 'x', 'y' }, states = { a = row } }
            end
        end
        assert.has_no.errors(define { ignores = 'x y' })
        assert.has_no.errors(define { ignores = 'x', bugs = 'y' })
        assert.has_error(define { ignores = 'x y', bugs = 'y' }, 'machine m: state a mentions y twice')
        assert.has_error(define { ignores = 'x', x = machine.bug }, 'machine m: state a mentions x twice')
        assert.has_error(define { ignores = 'x y z' }, 'machine m: state a mentions the unknown event z')
        assert.has_error(define { ignores = 'x' }, 'machine m: state a does not say what to do on y')
    end)

    it('lets events wait until what is held is done, also when it throws', function()
        local platform, log = Platform.new(), {}
        local queue = agenda(platform, log)
        local object = queue:start({}, machine.define {
            name = 'm', initial = 'a', events = { 'go' },
            states = { a = { go = function(_, what)
                table.insert(log, what)
            end } },
        })
        queue:hold(function()
            queue:post(object, 'go', 'later')
            table.insert(log, 'first')
            error('oh', 0)
        end)
        assert.same({ 'first', 'error: oh', 'later' }, log)
    end)
end)
