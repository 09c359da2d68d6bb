# Rolls the workers of each server once `current` points to the new release, one server after the other, and fails the
# deploy unless the new release serves. Where it does not, the old workers go on serving, and `current` is put back on
# the servers that were not rolled, so that a worker that is replaced later does not start in the broken release.

require 'json'

namespace :load do
  task :defaults do
    set :dutch_master, 'dutch-master'
    set :dutch_master_script, -> { current_path.join('master.lua') }
    set :dutch_master_timeout, 120
    set :dutch_master_roles, :app
    set :dutch_master_start, nil
    set :dutch_master_user, nil
  end
end

namespace :dutch_master do
  former = {} # host => the release that was current
  rolled = {} # host => true

  def dutch_master_command(verb, *options)
    user = fetch(:dutch_master_user)
    [*(['sudo', '-u', user] if user), fetch(:dutch_master), verb, *options, fetch(:dutch_master_script)]
  end

  # What became of a start: the command may return before the workers serve, or have found a master that this user may
  # not ask, and which runs the old release.
  def dutch_master_started(host)
    began = Time.now
    state = nil
    loop do
      said = capture(*dutch_master_command('status', '--json'), raise_on_non_zero_exit: false)
      status = JSON.parse(said) rescue {}
      state = status['state']
      return if state == 'steady'
      # The command that starts it may put it into the background: it answers within seconds, and boots in its own time.
      break unless [nil, 'booting'].include?(state)
      break if Time.now - began > (state ? fetch(:dutch_master_timeout) : 5)

      sleep 0.5
    end
    raise "#{host}: started, but #{state ? "it is #{state}" : 'no master answers'}: see `dutch-master status` there. " \
          'If it runs as another user than the one that deploys, set :dutch_master_user.'
  end

  task :remember do
    on roles(fetch(:dutch_master_roles)) do |host|
      former[host] = capture(:readlink, current_path) if test("[ -L #{current_path} ]")
    end
  end

  desc 'Replace all workers gracefully, and fail unless the new release serves'
  task :restart do
    on roles(fetch(:dutch_master_roles)), in: :sequence do |host|
      # Exit code 3: not running, which is so before the first deploy. Not permitted is 77, and no reason to start one.
      if test(:sh, '-c', "'#{dutch_master_command('status').join(' ')} > /dev/null 2>&1; [ $? -ne 3 ]'")
        execute(*dutch_master_command('restart', '--wait', '--timeout', fetch(:dutch_master_timeout)))
      elsif fetch(:dutch_master_start)
        execute fetch(:dutch_master_start)
        dutch_master_started(host)
      else
        raise "#{host}: no dutch-master runs #{fetch(:dutch_master_script)}, and :dutch_master_start is not set"
      end
      rolled[host] = true
    end
  end

  # After a deploy that failed between publishing and the end.
  task :restore do
    on roles(fetch(:dutch_master_roles)) do |host|
      next if rolled[host] || former[host].nil?

      execute :ln, '-sfn', former[host], "#{current_path}.former"
      execute :mv, '-fT', "#{current_path}.former", current_path
    end
  end

  %i[status why events].each do |verb|
    desc "dutch-master #{verb} on each server"
    task verb do
      on roles(fetch(:dutch_master_roles)), in: :sequence do |host|
        info "#{host}:\n#{capture(*dutch_master_command(verb), raise_on_non_zero_exit: false)}"
      end
    end
  end
end

before 'deploy:publishing', 'dutch_master:remember'
after 'deploy:published', 'dutch_master:restart'
after 'deploy:failed', 'dutch_master:restore'
