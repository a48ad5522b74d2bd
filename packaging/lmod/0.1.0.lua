-- Lmod module file of an installation by hand: cmake --install BUILD --prefix PREFIX.
-- Put it into MODULEPATH as moe-dist-prune/0.1.0.lua and set the prefix and the modules that it was built with.
local prefix = os.getenv("MOE_DIST_PRUNE_PREFIX") or "/opt/moe-dist-prune/0.1.0"
local lib = isDir(pathJoin(prefix, "lib64")) and "lib64" or "lib"

help([[moe-dist-prune prunes Mixture-of-Experts checkpoints on CPU clusters.
Begin with: man moe-dist-prune]])
whatis("Name: moe-dist-prune")
whatis("Version: 0.1.0")
whatis("Description: prunes Mixture-of-Experts checkpoints on CPU clusters")

-- depends_on("openmpi", "hdf5", "openblas", "scalapack")

conflict("moe-dist-prune")
prepend_path("PATH", pathJoin(prefix, "bin"))
prepend_path("MANPATH", pathJoin(prefix, "share/man"))
prepend_path("LIBRARY_PATH", pathJoin(prefix, lib))
prepend_path("LD_LIBRARY_PATH", pathJoin(prefix, lib))
prepend_path("CPATH", pathJoin(prefix, "include"))
prepend_path("PKG_CONFIG_PATH", pathJoin(prefix, lib, "pkgconfig"))
prepend_path("CMAKE_PREFIX_PATH", prefix)
prepend_path("XDG_DATA_DIRS", pathJoin(prefix, "share"))
setenv("MOE_DIST_PRUNE_ROOT", prefix)
