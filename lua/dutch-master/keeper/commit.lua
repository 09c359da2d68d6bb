--- commit.lua: what goes out only when the state that it speaks of is kept: records of the log, answers to clients,
-- hooks of the script. A master that dies before that has said nothing of it, and the next one, which goes on from an
-- older state, does it and says it. So nothing is said twice, and nothing that the next one does not know.

local Commit = {}
Commit.__index = Commit

--- @param options {touch = function(): a snapshot is to be written soon; nil: nobody keeps anything, and what is added
--   goes out at once, on_error = function(traceback), or nil}
function Commit.new(options)
    return setmetatable({ touch = options.touch, on_error = options.on_error or error, waiting = {} }, Commit)
end

--- Calls fn when the next snapshot is written, behind all that was added before.
function Commit:add(fn)
    if not self.touch then
        return fn()
    end
    self.waiting[#self.waiting + 1] = fn
    self.touch()
end

--- Calls fn behind what waits, and what is going out. If nothing is, at once.
function Commit:follow(fn)
    if self.waiting[1] then
        self:add(fn)
    elseif self.going then
        table.insert(self.going, fn)
    else
        fn()
    end
end

--- What is kept has changed.
function Commit:note()
    if self.touch then
        self.touch()
    end
end

--- A snapshot is written. What is added meanwhile waits for the next one.
function Commit:written()
    self.going, self.waiting = self.waiting, {}
    for _, fn in ipairs(self.going) do -- it may grow
        local ok, traceback = xpcall(fn, debug.traceback)
        if not ok then
            self.on_error(traceback)
        end
    end
    self.going = nil
end

--- Nobody would go on from a snapshot any more: nothing waits for one.
function Commit:alone()
    self.touch = nil
    self:written()
end

return Commit
