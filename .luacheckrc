std = 'luajit'
max_line_length = 120
codes = true
files['spec'] = { std = 'luajit+busted' }
exclude_files = { 'build*', 'node_modules', 'spec/.cache', 'examples/*/node_modules' }
