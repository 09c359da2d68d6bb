--- backoff.lua: how long a slot waits before it forks again after a failure.
--
-- The first failure after good service costs no wait; then first_ms, doubled each time, up to max_ms, with jitter so
-- that slots that failed together do not fork together. Good service of reset_ms forgets the failures: a worker that is
-- ready and then crashes cannot spin.

local M = {}

--- The wait before the fork that follows the n-th failure in a row.
-- @param failures how many in a row, 1 or more
-- @param rule {first_ms, max_ms}
-- @param random function() -> [0, 1)
-- @return ms
function M.delay(failures, rule, random)
    if failures <= 1 then
        return 0
    end
    -- 2^40 ms is 35 years: the exponent is bounded so that the power is a number whatever failures is.
    local base = math.min(rule.first_ms * 2 ^ math.min(failures - 2, 40), rule.max_ms)
    return math.floor(base * (0.75 + 0.5 * random()))
end

return M
