# Packages: `cpack -G DEB` in a build tree; src/package/npm/pack for npm.

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME dutch-master)
set(CPACK_PACKAGE_VERSION ${DM_VERSION})
set(CPACK_PACKAGE_CONTACT "dutch-master authors <dutch-master@users.noreply.github.com>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "process supervisor that replaces workers without losing a request")
set(CPACK_PACKAGE_DESCRIPTION "dutch-master keeps a pool of worker processes serving: Node or Lua apps, or any
server that takes a listening socket. It replaces them without losing a
connection, gives every restart a verdict, and is configured by a short
script in Lua.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_PRIORITY optional)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS lua-http)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "nodejs, prometheus")
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
# What Debian wants in another place than others do.
set(CPACK_PRE_BUILD_SCRIPTS ${CMAKE_CURRENT_LIST_DIR}/debian/stage.cmake)
file(WRITE ${PROJECT_BINARY_DIR}/package/conffiles "/etc/logrotate.d/dutch-master\n")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${PROJECT_BINARY_DIR}/package/conffiles
  ${CMAKE_CURRENT_LIST_DIR}/debian/postinst)
include(CPack)
