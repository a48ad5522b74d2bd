# Man pages and bash completion, made from the tables of commands and options by a program of the build, and installed.
# Made only where the build can run what it compiles. Result: the target manuals, part of all.
if(NOT CMAKE_CROSSCOMPILING)
  set(MDP_MANUALS ${CMAKE_CURRENT_BINARY_DIR}/manuals)
  file(MAKE_DIRECTORY ${MDP_MANUALS})
  add_executable(mdp-manual src/manual.c)
  target_include_directories(mdp-manual PRIVATE ${CMAKE_CURRENT_SOURCE_DIR}/src)
  target_link_libraries(mdp-manual PRIVATE mdp mdp_flags)
  # The stamp is a page: its name is known before the commands are.
  add_custom_command(OUTPUT ${MDP_MANUALS}/moe-dist-prune.1 COMMAND mdp-manual ${MDP_MANUALS} DEPENDS mdp-manual VERBATIM)
  add_custom_target(manuals ALL DEPENDS ${MDP_MANUALS}/moe-dist-prune.1)
  install(DIRECTORY ${MDP_MANUALS}/ DESTINATION ${CMAKE_INSTALL_MANDIR}/man1 FILES_MATCHING PATTERN "*.1")
  install(FILES ${MDP_MANUALS}/moe-dist-prune DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions)
endif()
