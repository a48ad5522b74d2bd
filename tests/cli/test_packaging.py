"""Recipes for Spack, EasyBuild, Lmod and Apptainer: they parse, agree with the project's version and dependencies, and name
what an installation has. That they build on a cluster is not shown here (packaging/README.md says what was never run)."""
import re
import shutil
import subprocess
import sys
import types

import pytest

import mdp

PACKAGING = mdp.ROOT / "packaging"
VERSION = re.search(r"project\(moe-dist-prune VERSION (\S+)", (mdp.ROOT / "CMakeLists.txt").read_text())[1]


def debian_packages():
    text = (mdp.ROOT / "tools" / "packages.sh").read_text()
    return set(re.search(r"MDP_BUILD_PACKAGES=\(([^)]*)\)", text)[1].split())


def test_spack_recipe_names_version_and_every_library():
    found = {"version": [], "depends_on": [], "license": []}
    stub = types.ModuleType("spack.package")
    for name, values in found.items():
        setattr(stub, name, lambda value, values=values, **_: values.append(value))
    stub.CMakePackage = object
    saved = {name: sys.modules.get(name) for name in ("spack", "spack.package")}
    sys.modules.update({"spack": types.ModuleType("spack"), "spack.package": stub})
    try:
        path = PACKAGING / "spack" / "moe-dist-prune" / "package.py"
        exec(compile(path.read_text(), str(path), "exec"), {"__name__": "package"})
    finally:
        for name, module in saved.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    assert found["version"] == [VERSION] and found["license"] == ["Apache-2.0"]
    names = {re.match(r"[a-z0-9-]+", spec)[0] for spec in found["depends_on"]}
    assert names == {"c", "cmake", "pkgconfig", "mpi", "hdf5", "blas", "lapack", "scalapack", "jansson", "xxhash"}
    assert any(spec.startswith("hdf5") and "+mpi" in spec for spec in found["depends_on"])


def test_easyconfig_is_named_by_what_it_says():
    path, = (PACKAGING / "easybuild").glob("*.eb")
    config = {"SOURCE_TAR_GZ": "%(name)s-%(version)s.tar.gz"}
    exec(compile(path.read_text(), str(path), "exec"), config)
    toolchain = config["toolchain"]
    assert path.name == f"{config['name']}-{config['version']}-{toolchain['name']}-{toolchain['version']}.eb"
    assert config["version"] == VERSION
    assert {name for name, _ in config["dependencies"]} == {"HDF5", "Jansson", "xxHash"}
    assert (mdp.ROOT / config["sanity_check_paths"]["files"][1]).is_file()


@pytest.mark.skipif(shutil.which("lua5.4") is None, reason="no Lua 5.4 on this system (tools/check installs it where apt-get is)")
def test_lmod_file_names_folders_of_an_installation(tmp_path):
    """Lmod's functions are replaced by ones that print what they are asked for."""
    module = PACKAGING / "lmod" / f"{VERSION}.lua"
    (tmp_path / "lmod.lua").write_text('''
function pathJoin(...) return table.concat({...}, "/") end
function isDir(path) return false end
for _, name in ipairs({"help", "whatis", "conflict", "prepend_path", "setenv"}) do
  _G[name] = function(...) print(name, ...) end
end
dofile(arg[1])
''')
    done = subprocess.run(["lua5.4", tmp_path / "lmod.lua", module], capture_output=True, text=True, check=True, timeout=30,
                          env={"MOE_DIST_PRUNE_PREFIX": "/PREFIX", "PATH": ""}, executable=shutil.which("lua5.4"))
    asked = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert ["whatis", f"Version: {VERSION}"] in asked
    paths = {words[1]: words[2] for words in asked if words[0] == "prepend_path"}
    assert paths == {"PATH": "/PREFIX/bin", "MANPATH": "/PREFIX/share/man", "LIBRARY_PATH": "/PREFIX/lib", "LD_LIBRARY_PATH": "/PREFIX/lib",
                     "CPATH": "/PREFIX/include", "PKG_CONFIG_PATH": "/PREFIX/lib/pkgconfig", "CMAKE_PREFIX_PATH": "/PREFIX",
                     "XDG_DATA_DIRS": "/PREFIX/share"}


def test_apptainer_definition_copies_what_is_there_and_installs_what_the_build_needs(tmp_path):
    text = (PACKAGING / "apptainer" / "moe-dist-prune.def").read_text()
    sections = re.findall(r"^%(\w+)[^\n]*\n(.*?)(?=^%|^Bootstrap|\Z)", text, re.M | re.S)
    assert [name for name, _ in sections] == ["files", "post", "files", "post", "test", "runscript", "labels"]
    copied = [line.split() for line in sections[0][1].splitlines() if line.strip()]
    for name, folder in copied:
        assert (mdp.ROOT / name).exists() and folder == "/src/"
    for name, body in sections:
        if name in ("post", "test", "runscript"):
            (tmp_path / "part.sh").write_text(body)
            subprocess.run(["sh", "-n", tmp_path / "part.sh"], check=True, timeout=30)
    installed = set(re.search(r"--no-install-recommends (.*?)\n    cmake", sections[1][1].replace("\\\n", " "), re.S)[1].split())
    assert installed == debian_packages()
    assert f"version {VERSION}" in sections[-1][1]
