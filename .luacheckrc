std = 'luajit'
max_line_length = 120
codes = true
-- Scripts and tables of cases in specs are read better on one line.
files['spec'] = { std = 'luajit+busted', max_line_length = 140 }
exclude_files = { 'build*', 'node_modules', 'spec/.cache', 'examples/*/node_modules' }
-- Lines of CSS and JavaScript.
files['lua/dutch-master/web/page.lua'] = { max_line_length = 150 }
