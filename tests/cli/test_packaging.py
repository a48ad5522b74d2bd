"""Recipes for Spack, EasyBuild, Lmod, Apptainer and other containers: they parse, agree with the project's version and dependencies, and name
what an installation has. That they build on a cluster is not shown here (packaging/README.md says what was never run)."""
import pathlib
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
    stub.CMakePackage = type("CMakePackage", (), {"define": staticmethod(lambda name, value: f"-D{name}={value}")})
    recipe = {"__name__": "package"}
    saved = {name: sys.modules.get(name) for name in ("spack", "spack.package")}
    sys.modules.update({"spack": types.ModuleType("spack"), "spack.package": stub})
    try:
        path = PACKAGING / "spack" / "moe-dist-prune" / "package.py"
        exec(compile(path.read_text(), str(path), "exec"), recipe)
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
    package = recipe["MoeDistPrune"]()
    package.spec = {name: types.SimpleNamespace(prefix=types.SimpleNamespace(include=f"/{name}/include"),
                                                libs=types.SimpleNamespace(joined=lambda between, name=name: f"/{name}.so")) for name in names}
    told = dict(argument.removeprefix("-D").split("=", 1) for argument in package.cmake_args())
    assert told["BLAS_LIBRARIES"] == "/blas.so" and told["LAPACK_LIBRARIES"] == "/lapack.so" and told["BUILD_TESTING"] == "False"
    known = "".join(path.read_text() for path in [*(mdp.ROOT / "cmake").glob("*.cmake"), mdp.ROOT / "CMakeLists.txt"])
    for name in told:
        assert name in known or name == "HDF5_ROOT", name  # which find_package(HDF5) looks at


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


def apptainer():
    """Sections of the definition, in order."""
    text = (PACKAGING / "apptainer" / "moe-dist-prune.def").read_text()
    return re.findall(r"^%(\w+)[^\n]*\n(.*?)(?=^%|^Bootstrap|\Z)", text, re.M | re.S)


def dockerfile():
    """[[instruction, rest], ...] with lines joined."""
    text = (PACKAGING / "container" / "Dockerfile").read_text().replace("\\\n", " ")
    return [line.split(maxsplit=1) for line in text.splitlines() if line and not line.startswith("#")]


def copied_by_apptainer():
    copied = [line.split() for line in apptainer()[0][1].splitlines() if line.strip()]
    return {name: folder + name for name, folder in copied}


def copied_by_dockerfile():
    copied = [rest.split() for word, rest in dockerfile() if word == "COPY" and not rest.startswith("--from")]
    return {name: to + name if to.endswith("/") else to for *names, to in copied for name in names}


def installed_by(script):
    return set(re.search(r"--no-install-recommends +(.*?)(?:\n    cmake|&&|$)", script.replace("\\\n", " "), re.S)[1].split())


@pytest.mark.parametrize("copied", [copied_by_apptainer, copied_by_dockerfile])
def test_containers_copy_what_the_build_and_the_installation_need(copied, tmp_path):
    """The project is configured from what is copied alone; every file that it would install has to be among it."""
    source, build = tmp_path / "src", tmp_path / "build"
    source.mkdir()
    for name, to in copied().items():
        assert to == f"/src/{name}"
        (source / name).symlink_to(mdp.ROOT / name)
    done = subprocess.run(["cmake", "-S", source, "-B", build, "-DBUILD_TESTING=OFF"], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    wanted = re.findall(rf'"({re.escape(str(source))}/[^"]+)"', (build / "cmake_install.cmake").read_text())
    assert len(wanted) > 5
    for path in wanted:
        assert pathlib.Path(path).exists(), path


def test_apptainer_definition_parses_and_installs_what_the_build_needs(tmp_path):
    sections = apptainer()
    assert [name for name, _ in sections] == ["files", "post", "files", "post", "test", "runscript", "labels"]
    for name, body in sections:
        if name in ("post", "test", "runscript"):
            (tmp_path / "part.sh").write_text(body)
            subprocess.run(["sh", "-n", tmp_path / "part.sh"], check=True, timeout=30)
    assert installed_by(sections[1][1]) == debian_packages() | {"libdnnl-dev"}
    assert f"version {VERSION}" in sections[-1][1]


def test_dockerfile_builds_in_a_stage_of_its_own_and_runs_as_nobody_special(tmp_path):
    steps = dockerfile()
    scripts = [rest for word, rest in steps if word == "RUN"]
    for script in scripts:
        (tmp_path / "part.sh").write_text(script)
        subprocess.run(["sh", "-n", tmp_path / "part.sh"], check=True, timeout=30)
    words = [word for word, _ in steps]
    assert words.count("FROM") == 2 and words.index("USER") > max(i for i, word in enumerate(words) if word in ("RUN", "COPY"))
    assert installed_by(scripts[0]) == debian_packages() | {"libdnnl-dev"}
    assert not any("-dev" in name or name == "gcc" for name in installed_by(scripts[2]))
