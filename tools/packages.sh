# packages.sh - sourced by quickstart and check: what has to be installed, and installing it where apt-get can.
# shellcheck shell=bash disable=SC2034

# Debian and Ubuntu names of what the program is built from, and of what its tests need beside that.
MDP_BUILD_PACKAGES=(gcc cmake make pkg-config openmpi-bin libopenmpi-dev libhdf5-openmpi-dev libopenblas-dev libscalapack-openmpi-dev
  libjansson-dev libxxhash-dev)
# A second MPI library with its HDF5 and ScaLAPACK is among the latter.
MDP_TEST_PACKAGES=(libcmocka-dev libdnnl-dev python3-venv chromium fonts-dejavu-core groff-base lua5.4 mpich libmpich-dev libhdf5-mpich-dev
  libscalapack-mpich-dev iproute2)
# Campaigns on nodes of this machine (tests/campaigns/nodes, node-faults, slurm-jobs, network); not for nodes of a real Slurm.
MDP_CLUSTER_PACKAGES=(iproute2 slurmctld slurmd slurm-client munge libfaketime)
MDP_LINT_PACKAGES=(clang-format-14 clang-tidy-14 libomp-14-dev cppcheck shellcheck codespell)

# Install the packages named that are missing; says which. Fails, with the commands for other systems, where it cannot.
mdp_install_packages() {
  local missing=() package
  if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
    mdp_have_build_tools && return 0
    mdp_explain_packages
    return 1
  fi
  for package in "$@"; do
    dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return 0
  local sudo=()
  if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null || ! sudo -v; then
      echo "Missing packages: ${missing[*]}"
      mdp_explain_packages
      return 1
    fi
    sudo=(sudo)
  fi
  echo "Installing with apt-get: ${missing[*]}"
  "${sudo[@]}" apt-get update -qq || echo "apt-get update failed; going on with the package lists that are here" >&2
  "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null || {
    echo "apt-get could not install: ${missing[*]}" >&2
    return 1
  }
}

# Whether a compiler for MPI programs and parallel HDF5 seem to be here already (modules, Spack, dnf): CMake looks closer.
mdp_have_build_tools() {
  command -v mpicc >/dev/null && command -v cmake >/dev/null && command -v pkg-config >/dev/null
}

mdp_explain_packages() {
  cat <<'EOF'
This system's packages are not installed by this script. Have an administrator, or Spack, install them:
  Debian/Ubuntu  apt-get install gcc cmake make pkg-config openmpi-bin libopenmpi-dev libhdf5-openmpi-dev libopenblas-dev \
                 libscalapack-openmpi-dev libjansson-dev libxxhash-dev
  Fedora/RHEL    dnf install gcc cmake make pkgconf openmpi-devel hdf5-openmpi-devel openblas-devel scalapack-openmpi-devel \
                 jansson-devel xxhash-devel && module load mpi/openmpi-x86_64
  Spack          spack install openmpi hdf5+mpi openblas netlib-scalapack jansson xxhash cmake && spack load openmpi \
                 hdf5+mpi openblas netlib-scalapack jansson xxhash cmake
Then run this script again.
EOF
}

# Open MPI starts as root only when told twice; nobody else is told anything.
mdp_allow_root() {
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
}
