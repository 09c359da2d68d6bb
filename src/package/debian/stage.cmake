# Run by cpack over what was installed into its staging directory, before it is packed: what policy wants of a Debian
# package, and times that do not tell when it was made.
set(root ${CPACK_TEMPORARY_INSTALL_DIRECTORY})
set(from ${CMAKE_CURRENT_LIST_DIR})
set(doc ${root}/usr/share/doc/dutch-master)

function(put name to)
  execute_process(COMMAND install -D -m 644 ${from}/${name} ${root}${to} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
put(copyright /usr/share/doc/dutch-master/copyright)
put(changelog /usr/share/doc/dutch-master/changelog)
put(logrotate /etc/logrotate.d/dutch-master)
put(sysctl.conf /usr/lib/sysctl.d/60-dutch-master.conf)
file(MAKE_DIRECTORY ${root}/usr/share/zsh/vendor-completions)
file(RENAME ${root}/usr/share/zsh/site-functions/_dutch-master ${root}/usr/share/zsh/vendor-completions/_dutch-master)
file(REMOVE_RECURSE ${root}/usr/share/zsh/site-functions)

# The unit names the program where it will be, not where it was staged.
set(unit ${root}/usr/lib/systemd/system/dutch-master@.service)
file(READ ${unit} text)
string(REPLACE "${root}/usr" "/usr" text "${text}")
file(WRITE ${unit} "${text}")

file(GLOB pages ${root}/usr/share/man/*/* ${doc}/changelog)
foreach(page ${pages})
  execute_process(COMMAND gzip -9nf ${page} COMMAND_ERROR_IS_FATAL ANY)
endforeach()
if(DEFINED ENV{SOURCE_DATE_EPOCH})
  execute_process(COMMAND find ${root} -exec touch -h -d @$ENV{SOURCE_DATE_EPOCH} {} + COMMAND_ERROR_IS_FATAL ANY)
endif()
