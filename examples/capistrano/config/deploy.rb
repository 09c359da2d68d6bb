lock '~> 3.17'

set :application, 'my-app'
set :repo_url, 'git@example.com:my-app.git'
set :deploy_to, '/deploys/my-app'
set :keep_releases, 5

# What lib/capistrano/tasks/dutch_master.rake uses; these are its defaults.
# set :dutch_master, 'dutch-master'                                # the program
# set :dutch_master_script, -> { current_path.join('master.lua') } # the script of the running master
# set :dutch_master_timeout, 120                                   # seconds, of one server
# set :dutch_master_roles, :app
# set :dutch_master_start, nil                                     # a command, for the first deploy:
set :dutch_master_start, 'sudo systemctl start dutch-master@my-app'

# The control socket of a master that systemd started (examples/systemd) is in a directory of the unit. The deploy user
# is the one the unit runs as, or root.
set :default_env, { 'DUTCH_MASTER_RUNTIME_DIR' => '/run/dutch-master-my-app' }
