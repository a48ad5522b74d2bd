# Everything that libmdp links: MPI, parallel HDF5, CBLAS, LAPACK, ScaLAPACK, jansson, xxHash, OpenMP, POSIX threads.
# Result: the interface target mdp_dependencies.
find_package(PkgConfig REQUIRED)
find_package(MPI REQUIRED COMPONENTS C)
find_package(Threads REQUIRED)
find_package(OpenMP REQUIRED COMPONENTS C)

# Debian keeps HDF5 and ScaLAPACK of every MPI library beside each other, with its name; others have one, of the MPI library
# that they were built with.
include(CheckSymbolExists)
set(CMAKE_REQUIRED_LIBRARIES MPI::MPI_C)
check_symbol_exists(OPEN_MPI mpi.h MDP_MPI_IS_OPEN_MPI)
check_symbol_exists(MPICH_VERSION mpi.h MDP_MPI_IS_MPICH)
unset(CMAKE_REQUIRED_LIBRARIES)
set(MDP_MPI_NAME)
if(MDP_MPI_IS_OPEN_MPI)
  set(MDP_MPI_NAME openmpi)
elseif(MDP_MPI_IS_MPICH)
  set(MDP_MPI_NAME mpich)
endif()

set(HDF5_PREFER_PARALLEL ON)
if(MDP_MPI_NAME AND NOT HDF5_ROOT AND NOT DEFINED ENV{HDF5_ROOT})
  find_program(HDF5_C_COMPILER_EXECUTABLE NAMES h5pcc.${MDP_MPI_NAME} h5pcc)
endif()
find_package(HDF5 REQUIRED COMPONENTS C)
if(NOT HDF5_IS_PARALLEL)
  message(FATAL_ERROR
    "The HDF5 found (${HDF5_C_INCLUDE_DIRS}) is serial; moe-dist-prune needs parallel HDF5. "
    "Debian/Ubuntu: apt install libhdf5-openmpi-dev (or libhdf5-mpich-dev). Fedora/RHEL: dnf install hdf5-openmpi-devel. "
    "Spack: spack install hdf5+mpi. Then configure with -DHDF5_ROOT=<prefix> if it is not found by itself.")
endif()

# The CBLAS interface may be in the BLAS library itself (OpenBLAS, MKL) or beside it (netlib).
find_package(BLAS REQUIRED)
find_package(LAPACK REQUIRED)
include(CheckFunctionExists)
set(CMAKE_REQUIRED_LIBRARIES ${BLAS_LIBRARIES})
check_function_exists(cblas_sgemm MDP_BLAS_HAS_CBLAS)
unset(CMAKE_REQUIRED_LIBRARIES)
if(NOT MDP_BLAS_HAS_CBLAS)
  find_library(MDP_CBLAS_LIBRARY NAMES cblas REQUIRED)
endif()
find_path(MDP_CBLAS_INCLUDE_DIR NAMES cblas.h
  PATH_SUFFIXES openblas openblas-pthread openblas-openmp openblas-serial ${CMAKE_LIBRARY_ARCHITECTURE} REQUIRED)

# Debian's own CMake package for ScaLAPACK names a file that is not there: pkg-config first, then the library by name.
if(MDP_MPI_NAME)
  list(APPEND MDP_SCALAPACK_NAMES scalapack-${MDP_MPI_NAME})
endif()
list(APPEND MDP_SCALAPACK_NAMES scalapack)
pkg_search_module(SCALAPACK IMPORTED_TARGET ${MDP_SCALAPACK_NAMES})
if(SCALAPACK_FOUND)
  set(MDP_SCALAPACK PkgConfig::SCALAPACK)
else()
  find_library(MDP_SCALAPACK NAMES ${MDP_SCALAPACK_NAMES} mkl_scalapack_lp64 REQUIRED)
endif()

# A second library for matrix products (--gemm onednn, --compute bf16), where it is found. By name: its own package file asks
# for OpenCL, which nothing here uses.
option(MDP_ONEDNN "Use oneDNN 2 or 3 where it is found" ON)
if(MDP_ONEDNN)
  find_library(MDP_ONEDNN_LIBRARY NAMES dnnl)
  find_path(MDP_ONEDNN_INCLUDE_DIR NAMES oneapi/dnnl/dnnl_version.h)
  if(MDP_ONEDNN_LIBRARY AND MDP_ONEDNN_INCLUDE_DIR)
    file(STRINGS ${MDP_ONEDNN_INCLUDE_DIR}/oneapi/dnnl/dnnl_version.h MDP_ONEDNN_MAJOR REGEX "define DNNL_VERSION_MAJOR [23]$")
    string(REGEX REPLACE ".* " "" MDP_ONEDNN_MAJOR "${MDP_ONEDNN_MAJOR}")
  endif()
  if(MDP_ONEDNN_MAJOR)
    set(MDP_HAVE_ONEDNN ON)
    message(STATUS "Found oneDNN ${MDP_ONEDNN_MAJOR}: ${MDP_ONEDNN_LIBRARY}")
  else()
    message(STATUS "oneDNN 2 or 3 is not here: built without --gemm onednn and --compute bf16 (Debian: libdnnl-dev)")
  endif()
endif()

pkg_check_modules(JANSSON REQUIRED IMPORTED_TARGET jansson>=2.11)
pkg_check_modules(XXHASH REQUIRED IMPORTED_TARGET libxxhash>=0.8.0)

add_library(mdp_dependencies INTERFACE)
target_link_libraries(mdp_dependencies INTERFACE
  MPI::MPI_C ${HDF5_C_LIBRARIES} ${MDP_SCALAPACK} ${LAPACK_LIBRARIES} ${BLAS_LIBRARIES} ${MDP_CBLAS_LIBRARY}
  PkgConfig::JANSSON PkgConfig::XXHASH OpenMP::OpenMP_C Threads::Threads m)
if(MDP_HAVE_ONEDNN)
  target_link_libraries(mdp_dependencies INTERFACE ${MDP_ONEDNN_LIBRARY})
  target_include_directories(mdp_dependencies SYSTEM INTERFACE $<BUILD_INTERFACE:${MDP_ONEDNN_INCLUDE_DIR}>)
endif()
target_include_directories(mdp_dependencies SYSTEM INTERFACE
  $<BUILD_INTERFACE:${HDF5_C_INCLUDE_DIRS}> $<BUILD_INTERFACE:${MDP_CBLAS_INCLUDE_DIR}>)
