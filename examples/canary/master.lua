-- A restart begins with one worker of the new release. It gets a quarter of the new connections for ten seconds, and
-- the restart goes on only if it did as well as the old ones. The workers themselves count what they do.
local dutch = require 'dutch-master'

local function judge(new, old)
    if new.requests < 20 then
        return false, ('it was asked only %d times, that proves nothing'):format(new.requests)
    end
    local errors = new.errors / new.requests
    local before = old.requests > 0 and old.errors / old.requests or 0
    if errors > before + 0.01 then
        return false, ('%.1f %% of its answers are errors, before %.1f %%'):format(100 * errors, 100 * before)
    end
    if old.p95 and new.p95 > 2 * old.p95 + 0.02 then
        return false, ('95 %% of its answers come within %.0f ms, before %.0f ms'):format(1000 * new.p95,
            1000 * old.p95)
    end
    return true
end

dutch.start {
    worker = 'app.lua',
    numWorkers = 4,
    metrics = true,
    restartConcurrency = { canary = { weight = 0.25, soak = tonumber(dutch.environ 'SOAK') or 10, judge = judge } },
}
