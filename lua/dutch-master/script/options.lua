-- options.lua: the table of all options of `start { ... }`. Checking, defaults, the README's table and the man page
-- all come from here.
--
-- name: as the user writes it; inside: its name in the plan (snake_case, milliseconds); type: see schema.lua,
-- option_types.lua; default: the value inside; default_text: how the documents show it; doc: one line;
-- unit; since: first version; hook: the option is (or may be) a function of the script, which stays in the
-- script's process; answer: what it has to return, where that is what the option is otherwise.

local schema = require 'dutch-master.script.schema'
local types = require 'dutch-master.script.option_types'

local M = { LEVELS = types.LEVELS, MAX_WORKERS = types.MAX_WORKERS }

local CHDIR = { "the directory of a worker: beforeFork = function() dutch.chdir '/srv/app/current' end" }

--- What options of other programs (PM2, puma, gunicorn, systemd) are called here.
M.other_names = {
    script = 'worker', command = 'worker', cmd = 'worker', exec = 'worker', app = 'worker', ExecStart = 'worker',
    instances = 'numWorkers', workers = 'numWorkers', processes = 'numWorkers', threads = 'numWorkers',
    env = 'workerEnvironment', environment = 'workerEnvironment', Environment = 'workerEnvironment',
    port = 'listen', bind = 'listen', address = 'listen', host = 'listen', socket = 'listen', ListenStream = 'listen',
    cwd = CHDIR, directory = CHDIR, chdir = CHDIR, WorkingDirectory = CHDIR,
    onExit = 'onWorkerExit', onStart = 'onWorkerReady', on_worker_boot = 'onWorkerReady', before_fork = 'beforeFork',
    log = 'logger', name = { 'logger = dutch.logger { name = ... }' },
    out_file = 'workerOutput', error_file = 'workerOutput', output = 'workerOutput',
    StandardOutput = 'workerOutput',
    max_memory_restart = 'maxMemory', MemoryMax = 'maxMemory',
    node_args = 'interpreter', interpreter_args = 'interpreter',
    listen_timeout = 'readyTimeout', wait_ready = 'ready', TimeoutStartSec = 'readyTimeout',
    timeout = 'stopTimeout', graceful_timeout = 'stopTimeout', TimeoutStopSec = 'stopTimeout',
    KillSignal = 'stopSignal',
    WatchdogSec = 'watchdog', worker_timeout = 'watchdog', pid = 'pidFile', PIDFile = 'pidFile',
    LimitNOFILE = { 'limits = { nofile = ... }' }, RestartSec = 'backoff', exp_backoff_restart_delay = 'backoff',
    min_uptime = { 'backoff = { reset = seconds }' }, max_restarts = 'restartAttempts', cron_restart = 'maxLifetime',
}

M.list = {
    { name = 'worker', type = types.worker, required = true, default_text = 'required',
        doc = 'what to run: a path, a list with a command and its arguments, or a preset' },
    { name = 'kind', type = schema.one_of { 'node', 'lua', 'exec' }, default_text = 'by the ending of `worker`',
        doc = 'how to run it: `node` (.js .mjs .cjs .ts), `lua` (.lua), `exec` (anything else)' },
    { name = 'args', type = types.arguments, default = {}, default_text = 'none', doc = 'arguments for the worker' },
    { name = 'interpreter', type = types.interpreter, default_text = '`node` from PATH for kind node',
        doc = 'program that runs `worker`, with its own arguments' },
    { name = 'numWorkers', inside = 'num_workers', hook = true, default = 2, default_text = '2',
        type = schema.by_type(types.worker_count.expects .. ', or a function that returns one', {
            number = types.worker_count, ['function'] = types.hook }), answer = types.worker_count,
        doc = 'number of workers, or a function; counts at boot, at the start of a restart and on reload' },
    { name = 'beforeFork', inside = 'before_fork', hook = true, type = types.hook, default_text = 'none',
        doc = 'called before each fork; may `dutch.chdir`, or `return false, reason` to veto' },
    { name = 'hookTimeout', inside = 'hook_timeout_ms', type = types.hook_timeout, default = 5000, default_text = '5',
        unit = 's',
        doc = 'how long a function of the script may take; then an error is raised in it, or its process killed' },
    { name = 'workerEnvironment', inside = 'environment', hook = true, default = {}, default_text = '{}',
        type = schema.by_type('a table of strings, or a function that returns one', {
            table = types.environment, ['function'] = types.hook }), answer = types.environment,
        doc = 'variables for the workers: a table or a function(worker); false takes one away' },
    { name = 'logger', type = types.logger, default = types.LOGGER_DEFAULT,
        default_text = 'JSON on stdout, readable lines on a terminal and in the journal',
        doc = '`dutch.logger { name, level, path, fields, format }`, or a table with bunyan\'s methods' },
    { name = 'listen', type = types.listen, default = {}, default_text = 'none',
        doc = 'addresses that the master binds for workers of kind exec: one, a list, or a table by name' },
    { name = 'balance', type = schema.one_of { 'steered', 'queue', 'sticky', 'shared' },
        default_text = '"queue" for kind exec, else "steered"',
        doc = 'who gets a new connection: a lane for each worker (`steered`, `sticky` by client), one queue for all of '
            .. 'a generation (`queue`), or one for everybody (`shared`)' },
    { name = 'nonBlocking', inside = 'non_blocking', type = schema.boolean,
        default_text = 'false; nginx, haproxy: true', doc = 'workers of kind exec get their sockets non-blocking' },
    { name = 'backlog', type = schema.integer(1, 65535), default = 511, default_text = '511', unit = 'connections',
        doc = 'connections that may wait in one queue' },
    { name = 'stallTimeout', inside = 'stall_timeout_ms', type = schema.seconds(0.05), default = 1000,
        default_text = '1', unit = 's',
        doc = 'no new connections for a worker whose queue has not moved for this long' },
    { name = 'ready', type = types.ready, default = { type = 'auto' }, default_text = 'by kind',
        doc = 'what makes a worker ready: "listening", "message", "notify", { alive = s }, { port = n }, '
            .. '{ path = p }, { message = "text" }, { http = "/path", port, host, interval, timeout }, '
            .. '{ tls = true, port, interval, timeout }' },
    { name = 'readyTimeout', inside = 'ready_timeout_ms', type = schema.seconds(0.01), default = 60000,
        default_text = '60', unit = 's',
        doc = 'a worker that is not ready within this time is killed and counts as failed' },
    { name = 'stopSignal', inside = 'stop_signal', type = types.stop_signal, default_text = 'by kind',
        doc = 'the signal that asks a worker of kind exec to leave' },
    { name = 'stopTimeout', inside = 'stop_timeout_ms', type = schema.seconds(0), default = 30000,
        default_text = '30', unit = 's',
        doc = 'a worker still alive this long after it was asked to leave is killed' },
    { name = 'killTimeout', inside = 'kill_timeout_ms', type = schema.seconds(0), default = 5000,
        default_text = '5', unit = 's',
        doc = 'how long before `stopTimeout` expires SIGTERM is sent; it is sent at once when the worker '
            .. 'closes its channel' },
    { name = 'leftoverTimeout', inside = 'leftover_timeout_ms', default = 30000, default_text = '30', unit = 's',
        type = types.leftover_timeout,
        doc = 'how long processes that a worker left behind in sessions of their own may live after its end. Then they '
            .. 'get SIGTERM, and `killTimeout` later SIGKILL; false: they stay until the master stops' },
    { name = 'restartSignal', inside = 'restart_signal', type = types.restart_signal, default = 'SIGUSR2',
        default_text = '"SIGUSR2"', doc = 'signal to the master that starts a rolling restart' },
    { name = 'restartConcurrency', inside = 'restart_concurrency', type = types.concurrency,
        default_text = 'all at once',
        doc = 'workers replaced at a time: a number, a fraction, "canary", or '
            .. '{ canary = { weight, soak, judge, timeout }, after }' },
    { name = 'restartSoak', inside = 'restart_soak_ms', type = schema.seconds(0), default = 1000, default_text = '1',
        unit = 's', doc = 'how long a replacement must serve before its predecessor is asked to leave' },
    { name = 'restartAttempts', inside = 'restart_attempts', type = schema.integer(1, 1000), default = 3,
        default_text = '3', doc = 'failed replacements of one slot that abort a restart' },
    { name = 'backoff', type = types.backoff, default = { first_ms = 100, max_ms = 30000, reset_ms = 10000 },
        default_text = '{ first = 0.1, max = 30, reset = 10 }', unit = 's',
        doc = 'pause before a crashed worker is replaced: doubles from `first` to `max`, forgotten after '
            .. '`reset` seconds of service' },
    { name = 'listenFds', inside = 'listen_fds', type = schema.boolean, default = false, default_text = 'false',
        doc = 'kind node: the sockets that the master was started with (LISTEN_FDS) are passed on to the worker' },
    { name = 'drain', type = schema.boolean, default = true, default_text = 'true',
        doc = 'kind node: keep-alive connections are told to leave while a worker drains' },
    { name = 'metrics', type = schema.boolean, default = false, default_text = 'false',
        doc = 'kinds node and lua: workers count requests, errors, latency, event-loop lag and heap, for `metrics`, '
            .. '`web` and judge' },
    { name = 'pinRelease', inside = 'pin_release', type = schema.boolean, default = false, default_text = 'false',
        doc = 'replaces a crashed worker from the directory its generation ran in' },
    { name = 'maxMemory', inside = 'max_memory', type = schema.size(1024 * 1024), default_text = 'off',
        unit = 'bytes',
        doc = 'replaces a worker that grows beyond this size, such as "512M"' },
    { name = 'maxLifetime', inside = 'max_lifetime_ms', type = schema.seconds(1), default_text = 'off', unit = 's',
        doc = 'replaces a worker that is older than this' },
    { name = 'watchdog', inside = 'watchdog_ms', type = schema.seconds(0.1), default_text = 'off', unit = 's',
        doc = 'replaces a worker that has given no sign of life for this long: WATCHDOG=1 by sd_notify (kind exec), or '
            .. 'an answer to { http } of `ready`' },
    { name = 'user', type = types.user, default_text = 'inherited',
        doc = 'user the workers run as' },
    { name = 'group', type = types.group, default_text = 'of `user`',
        doc = 'group the workers run as' },
    { name = 'umask', type = types.umask, default_text = 'inherited',
        doc = 'file mode creation mask of the workers, in octal digits' },
    { name = 'limits', type = types.limits, default = {}, default_text = 'inherited',
        doc = 'resource limits: { nofile = 65536, core = 0, as = "2G", nproc = { soft = 100, hard = 200 } }' },
    { name = 'nice', type = schema.integer(-20, 19), default_text = 'inherited', doc = 'scheduling priority' },
    { name = 'cpus', type = types.cpus, default_text = 'inherited',
        doc = 'CPUs the workers may use: { 0, 1 } or "0-3,8"' },
    { name = 'dieWithMaster', inside = 'die_with_master', type = schema.boolean, default = false,
        default_text = 'false',
        doc = 'SIGKILL for the workers, and for all that they started in their process groups, when the master dies'
            .. ' without stopping them' },
    { name = 'workerOutput', inside = 'worker_output', type = types.output, default = 'inherit',
        default_text = '"inherit"',
        doc = 'where the workers\' stdout and stderr go: "inherit", "null" or a file' },
    { name = 'keepOutput', inside = 'keep_output', type = schema.size(0), default_text = '256K of stderr',
        unit = 'bytes',
        doc = 'how much of what workers wrote the master keeps for `logs`. A size given here keeps stdout too, which '
            .. 'then goes through the master; 0 keeps nothing' },
    { name = 'stampOutput', inside = 'stamp_output', type = schema.boolean, default = false, default_text = 'false',
        doc = 'each line in the file of `workerOutput` begins with its time and worker, and is whole; `logs` then has '
            .. 'the past from this file' },
    { name = 'pidFile', inside = 'pid_file', type = schema.absolute_path, default_text = 'none',
        doc = 'file that holds the master\'s process id' },
    { name = 'controlSocket', inside = 'control_socket', type = types.socket_path,
        default_text = 'by the script\'s path',
        doc = 'unix socket for the verbs (`status`, `restart`, ...)' },
    { name = 'onReady', inside = 'on_ready', hook = true, type = types.hook, default_text = 'none',
        doc = 'called once, when the cluster is ready' },
    { name = 'onWorkerReady', inside = 'on_worker_ready', hook = true, type = types.hook, default_text = 'none',
        doc = 'called with each worker that became ready' },
    { name = 'onWorkerExit', inside = 'on_worker_exit', hook = true, type = types.hook, default_text = 'none',
        doc = 'called with each worker that exited: its code or signal, age, and last lines of stderr' },
    { name = 'onMessage', inside = 'on_message', hook = true, type = types.hook, default_text = 'none',
        doc = 'called with (worker, message) for each message of a worker' },
    { name = 'onRestart', inside = 'on_restart', hook = true, type = types.hook, default_text = 'none',
        doc = 'called with the verdict of each restart' },
    { name = 'onUpgrade', inside = 'on_upgrade', hook = true, type = types.hook, default_text = 'none',
        doc = 'called with the verdict of each upgrade of the program: result (done, failed), from, to, message' },
    { name = 'every', hook = true, type = types.every, default_text = 'none',
        doc = 'called regularly: { seconds, function }, or a list of these; `timeout` in one instead of hookTimeout' },
}

M.by_name, M.names = {}, {}
for i, option in ipairs(M.list) do
    option.inside = option.inside or option.name
    option.since = option.since or '0.1'
    M.by_name[option.name] = option
    M.names[i] = option.name
end

return M
