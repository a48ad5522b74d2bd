# Install rules: program, library, headers, job scripts, CMake package.
include(CMakePackageConfigHelpers)
install(TARGETS moe-dist-prune RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(TARGETS mdp
  ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(DIRECTORY include/mdp DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY jobs/ DESTINATION ${CMAKE_INSTALL_DATADIR}/moe-dist-prune/jobs USE_SOURCE_PERMISSIONS)
