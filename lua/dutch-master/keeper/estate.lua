--- estate.lua: what of a master outlives it: plain values in a snapshot, and the names of descriptors in the keeper's
-- store (src/keeper/keeper.h). Who has something to keep says it by `keep(book)`, and is made again from that by its
-- `resume`. A snapshot never names a descriptor that is not in the store by then, and one leaves the store only when no
-- snapshot names it any more.

local cjson = require 'cjson.safe'

-- What each version of a state has that the one before has not is made by the function of the former one.
local M = { VERSION = 2, READS = { 1, 2 } }

local json = cjson.new()
json.decode_max_depth(64)
json.encode_max_depth(64)
json.encode_sparse_array(true)
json.encode_invalid_numbers(true)
json.decode_invalid_numbers(true)

-- ---------------------------------------------------------------------------------------------------------------------
-- Writing

local Book = {}
Book.__index = Book

--- Notes a descriptor of ours under a name that nothing else ever has. @return the name, nil if there is none
-- @param pid whose pidfd it is, or nil
function Book:fd(name, fd, pid)
    if fd then
        self.fds[name] = { fd = fd, pid = pid }
        return name
    end
end

-- What was shared before: it is never changed.
local texts = setmetatable({}, { __mode = 'k' })

--- Notes a table of plain values, which nobody changes, once, however many have its like. @return its number
function Book:share(value)
    local text = texts[value] or json.encode(value) or ''
    texts[value] = text
    local number = self.numbers[text]
    if not number then
        number = #self.shared + 1
        self.shared[number], self.numbers[text] = value, number
    end
    return number
end

local Writer = {}
Writer.__index = Writer

--- @param options {platform, log, collect = function(book) -> the state, a table of plain values; nil: not yet}
function M.writer(options)
    return setmetatable({ platform = options.platform, log = options.log, collect = options.collect, kept = {} },
        Writer)
end

-- What the store holds is what the newest snapshot names.
local function put(self, fds)
    for name, held in pairs(fds) do
        if self.kept[name] ~= held.fd then
            local ok, message = self.platform.keep_fd(name, held.fd, held.pid)
            if not ok then
                return nil, message
            end
            self.kept[name] = held.fd
        end
    end
    return true
end

local function drop(self, fds)
    for name in pairs(self.kept) do
        if not fds[name] then
            self.platform.drop_fd(name)
            self.kept[name] = nil
        end
    end
end

local function complain(self, message)
    if self.complaint ~= message then
        self.complaint = message
        self.log():error({ reason = message }, 'State could not be kept, the keeper has an older one')
    end
    return nil, message
end

--- Writes a snapshot, if anything is different. @return true, or nil, message
function Writer:write()
    local book = setmetatable({ fds = {}, shared = {}, numbers = {} }, Book)
    local state = self.collect(book)
    if not state then
        return nil, 'there is nothing to go on from yet'
    end
    state.version, state.shared = M.VERSION, book.shared
    local text, message = json.encode(state)
    if not text then
        return complain(self, message)
    end
    local ok
    ok, message = put(self, book.fds)
    if ok and text ~= self.text then
        ok, message = self.platform.keep(text)
    end
    if not ok then
        return complain(self, message)
    end
    self.text, self.complaint = text, nil
    drop(self, book.fds)
    return true
end

--- The keeper has died: all of it once more, for another one. @return as write
function Writer:again()
    self.kept, self.text = {}, nil
    return self:write()
end

--- These are in the store already.
function Writer:know(fds)
    for name, fd in pairs(fds) do
        self.kept[name] = fd
    end
end

-- ---------------------------------------------------------------------------------------------------------------------
-- Reading

local Former = {}
Former.__index = Former

-- The state of a version -> the same as one of the next version.
local NEXT = {}

-- Of a worker that leaves it was not kept how long it might take, and what it was allowed was its plan's time; nothing
-- of what it said, but when. (Nor what it had asked and was not answered: then there is none.)
NEXT[1] = function(state)
    for _, one in ipairs(state.cluster.workers) do
        local going, plan = one.leaving, state.shared[one.plan]
        one.health = { alive_at = one.alive_at, said = {} }
        if going and going.until_ms then
            going.allowed_ms = plan.stop_timeout_ms
            going.since_ms = going.until_ms - going.allowed_ms
        end
    end
end

local function to_this_version(state)
    while state.version < M.VERSION do
        NEXT[state.version](state)
        state.version = state.version + 1
    end
end

--- What a former master has left.
-- @param kept see platform.kept
-- @return the state, a table with `take` and `close_rest`; or nil, message
function M.read(kept, platform)
    local state, message = json.decode(kept.state)
    if type(state) ~= 'table' then
        return nil, message or 'it is no table'
    elseif state.version ~= M.VERSION and not NEXT[state.version] then
        return nil, ('it is of version %s, this program reads versions %s'):format(tostring(state.version),
            table.concat(M.READS, ', '))
    end
    local ok, why = pcall(to_this_version, state)
    if not ok then
        return nil, ('it is not as one of its version: %s'):format(why)
    end
    return M.former(state, kept, platform)
end

--- The same, where the state is known otherwise: see salvage.lua.
function M.former(state, kept, platform)
    return setmetatable({ state = state, store = kept.store, taken = {}, platform = platform }, Former)
end

--- The descriptor of that name, to be used; nil if it is not there.
function Former:take(name)
    local fd = name and self.store[name]
    if fd then
        self.taken[name] = fd
    end
    return fd
end

--- A value that was noted by book:share.
function Former:shared(number)
    return self.state.shared[number]
end

-- Whether a child of the keeper's was in the middle of its fork: no snapshot knows it. And which worker it was to be,
-- if it knows that already.
local function is_half_made(self, pid, fresh)
    local platform = self.platform
    local environ = platform.read_file(('/proc/%d/environ'):format(pid), 1048576) or ''
    local id = tonumber(('\0' .. environ):match '%zDUTCH_MASTER_WORKER=(%d+)')
    local master = tonumber(('\0' .. environ):match '%zDUTCH_MASTER_PID=(%d+)')
    if id and master == platform.pid() then
        return fresh(id), id
    end
    -- Not yet what it is to be, or a process of the script: nobody talks to it any more. The one that kills workers
    -- with their master (dieWithMaster) is at work.
    local comm = platform.read_file(('/proc/%d/comm'):format(pid), 64) or ''
    return comm == 'dutch-master\n' -- before its exec, of another version too
        or platform.realpath(('/proc/%d/exe'):format(pid)) == platform.realpath '/proc/self/exe'
        and not comm:find '^dutch%-watcher'
end

--- Ends what the former master had begun to fork, and its processes of the script.
-- @param known set of the pids of workers, fresh = function(worker id) -> whether that never had a process by then
-- @return of the workers among them {pid, id}
function Former:end_strangers(known, fresh)
    local platform, ended = self.platform, {}
    local keeper, own = platform.pid(), platform.master_pid()
    local text = platform.read_file(('/proc/%d/task/%d/children'):format(keeper, keeper), 1048576) or ''
    for word in text:gmatch '%d+' do
        local pid = tonumber(word)
        local half_made, id
        if pid ~= own and not known[pid] then
            half_made, id = is_half_made(self, pid, fresh)
        end
        if half_made then
            platform.kill_stranger(pid)
            ended[#ended + 1] = id and { pid = pid, id = id }
        end
    end
    return ended
end

--- What nobody has taken.
function Former:close_rest()
    for name, fd in pairs(self.store) do
        if not self.taken[name] then
            self.platform.close_fd(fd)
            self.platform.drop_fd(name)
        end
    end
end

return M
