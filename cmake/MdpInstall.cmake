# Install rules: program, library, headers, job scripts, licence, and a CMake package so that others can link libmdp.
include(CMakePackageConfigHelpers)
set(MDP_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/moe-dist-prune)

install(TARGETS moe-dist-prune RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS mdp mdp_dependencies mdp_flags EXPORT moe-dist-prune-targets
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/mdp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY jobs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/moe-dist-prune/jobs USE_SOURCE_PERMISSIONS)
install(FILES LICENSE README.md CHANGELOG.md doc/plan.schema.json DESTINATION ${CMAKE_INSTALL_DOCDIR})

install(EXPORT moe-dist-prune-targets NAMESPACE mdp:: DESTINATION ${MDP_PACKAGE_DIR})
configure_package_config_file(cmake/moe-dist-prune-config.cmake.in
  ${CMAKE_CURRENT_BINARY_DIR}/moe-dist-prune-config.cmake INSTALL_DESTINATION ${MDP_PACKAGE_DIR})
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/moe-dist-prune-config-version.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/moe-dist-prune-config.cmake
  ${CMAKE_CURRENT_BINARY_DIR}/moe-dist-prune-config-version.cmake DESTINATION ${MDP_PACKAGE_DIR})
