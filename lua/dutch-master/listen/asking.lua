--- asking.lua: what workers ask for, in the order in which each of them asks. What is bound or put back with a worker's
-- own rights takes as long as that worker's file system likes: the worker waits for that, with all that it asks for
-- afterwards; nobody else does.

local Asking = {}
Asking.__index = Asking

--- @param open = function(worker_id, request, later) -> an answer, or nothing but false: then later(the answer) follows
function Asking.new(open)
    return setmetatable({
        open = open,
        queues = {}, -- worker id -> {first, last, [n] = {request, done}, busy}; as long as one waits
    }, Asking)
end

local function take_turns(self, id, queue)
    while self.queues[id] == queue and not queue.busy do
        local entry = queue[queue.first]
        if not entry then
            self.queues[id] = nil
            return
        end
        queue[queue.first], queue.first = nil, queue.first + 1
        queue.busy = true
        local function answer(...)
            if self.queues[id] == queue then -- else it has gone
                queue.busy = false
                entry.done(...)
            end
        end
        local result, message, code = self.open(id, entry.request, function(...)
            answer(...)
            take_turns(self, id, queue)
        end)
        if result ~= false then
            answer(result, message, code)
        end
    end
end

--- done(the answer), now or later, once; never if the worker has gone.
function Asking:ask(id, request, done)
    local queue = self.queues[id] or { first = 1, last = 0 }
    queue.last = queue.last + 1
    queue[queue.last] = { request = request, done = done }
    self.queues[id] = queue
    take_turns(self, id, queue)
end

--- The worker has gone.
function Asking:drop(id)
    self.queues[id] = nil
end

return Asking
