# Language level, warnings, sanitizers. Results never depend on -march, so it is left to the user's CFLAGS; what must not
# be reordered or contracted is fixed here. Result: the interface target mdp_flags (private to our own code).
set(CMAKE_C_STANDARD 11)
set(CMAKE_C_STANDARD_REQUIRED ON)
set(CMAKE_C_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_INSTALL_RPATH_USE_LINK_PATH ON)

add_library(mdp_flags INTERFACE)
target_compile_definitions(mdp_flags INTERFACE _GNU_SOURCE H5_USE_110_API
  $<$<BOOL:${MDP_DEBUG_HOOKS}>:MDP_DEBUG_HOOKS=1> $<$<BOOL:${MDP_HAVE_ONEDNN}>:MDP_HAVE_ONEDNN=1>)
target_compile_options(mdp_flags INTERFACE
  -Wall -Wextra -Wshadow -Wstrict-prototypes -Wmissing-prototypes -Wvla -Wpointer-arith -Wcast-align
  -Werror=implicit-function-declaration -Werror=incompatible-pointer-types
  -fno-fast-math -ffp-contract=off -fno-math-errno -fno-trapping-math
  $<$<BOOL:${MDP_WARNINGS_AS_ERRORS}>:-Werror>)
if(MDP_DEBUG_HOOKS)
  target_compile_options(mdp_flags INTERFACE "$<BUILD_INTERFACE:SHELL:-include ${PROJECT_SOURCE_DIR}/src/comm/noted.h>")
  target_include_directories(mdp_flags INTERFACE $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>)
endif()
if(MDP_SANITIZE)
  target_compile_options(mdp_flags INTERFACE -fsanitize=address,undefined -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
  target_link_options(mdp_flags INTERFACE -fsanitize=address,undefined)
endif()
if(MDP_FUZZ)
  if(NOT CMAKE_C_COMPILER_ID MATCHES Clang)
    message(FATAL_ERROR "MDP_FUZZ needs clang: cmake --preset fuzz, or -DCMAKE_C_COMPILER=clang")
  endif()
  target_compile_options(mdp_flags INTERFACE -fsanitize=fuzzer-no-link)
endif()
