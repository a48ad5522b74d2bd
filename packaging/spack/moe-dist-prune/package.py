"""Spack recipe. From a checkout: spack dev-build --source-path . moe-dist-prune@0.1.0, with this folder in a repository of yours."""
import os

from spack.package import *


class MoeDistPrune(CMakePackage):
    """Prunes Mixture-of-Experts checkpoints on CPU clusters: MPI, parallel HDF5, BLAS, ScaLAPACK."""

    # The archive is made from a checkout: git archive --prefix=moe-dist-prune-0.1.0/ -o moe-dist-prune-0.1.0.tar.gz HEAD
    url = f"file://{os.getcwd()}/moe-dist-prune-0.1.0.tar.gz"
    manual_download = True

    license("Apache-2.0")

    version("0.1.0")

    depends_on("c", type="build")
    depends_on("cmake@3.20:", type="build")
    depends_on("pkgconfig", type="build")
    depends_on("mpi@3.1:")
    depends_on("hdf5@1.10:+mpi")
    depends_on("blas")
    depends_on("lapack")
    depends_on("scalapack")
    depends_on("jansson@2.11:")
    depends_on("xxhash@0.8:")

    def cmake_args(self):
        return [
            self.define("BUILD_TESTING", False),
            self.define("BLAS_LIBRARIES", self.spec["blas"].libs.joined(";")),
            self.define("LAPACK_LIBRARIES", self.spec["lapack"].libs.joined(";")),
            self.define("MDP_CBLAS_INCLUDE_DIR", self.spec["blas"].prefix.include),
            self.define("HDF5_ROOT", self.spec["hdf5"].prefix),
        ]
