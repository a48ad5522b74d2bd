"""What `cmake --install` puts into a prefix: the program runs from there, another project links libmdp by CMake and by
pkg-config, man pages and completion say what the program says."""
import os
import re
import shutil
import subprocess

import pytest
from safetensors import safe_open

import mdp

BUILD = mdp.PROGRAM.parent
COMMANDS = ["run", "observe", "plan", "merge", "refit", "recover", "apply", "eval", "frontier", "export", "inspect", "verify", "info"]


def call(*words, **how):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=300, check=False, **how)
    assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    if not (BUILD / "CMakeCache.txt").is_file():
        pytest.skip("the program under test does not lie in its build folder")
    folder = tmp_path_factory.mktemp("install") / "prefix"
    call("cmake", "--install", BUILD, "--prefix", folder)
    return folder


@pytest.fixture(scope="module")
def cache():
    return dict(re.findall(r"^(\w+):\w+=(.*)$", (BUILD / "CMakeCache.txt").read_text(), re.M))


def find(prefix, pattern):
    found = list(prefix.rglob(pattern))
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]


def test_installed_program_runs(prefix):
    assert call(prefix / "bin" / "moe-dist-prune", "--version", env={**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1",
                                                                     "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}).startswith("moe-dist-prune ")
    assert (prefix / "share" / "moe-dist-prune" / "jobs" / "slurm.sbatch").is_file()


def test_a_build_without_cmocka_is_one_without_tests(cache, tmp_path):
    pkg_config = tmp_path / "pkg-config"
    pkg_config.write_text(f'#!/bin/sh\ncase "$*" in *cmocka*) exit 1 ;; esac\nexec {cache["PKG_CONFIG_EXECUTABLE"]} "$@"\n')
    pkg_config.chmod(0o755)
    said = call("cmake", "-S", mdp.ROOT, "-B", tmp_path / "build", f"-DPKG_CONFIG_EXECUTABLE={pkg_config}")
    assert re.findall("^-- cmocka is not here: built without tests", said, re.M)
    assert "Total Tests: 0" in call("ctest", "--test-dir", tmp_path / "build", "-N")


def test_installed_headers_are_those_of_every_build(prefix):
    for header in (prefix / "include" / "mdp").iterdir():
        assert "MDP_DEBUG_HOOKS" not in header.read_text(encoding="utf-8"), header


def check_example(program, demo_run):
    """What the example says of the demo is what safetensors counts and what the plan calls it."""
    with safe_open(mdp.DEMO / "model.safetensors", "np") as file:
        want = f"{len(file.keys())} tensors, fingerprint {mdp.read_json(demo_run / 'plan.json')['model']['fingerprint']}\n"
    for ranks in (1, 3):
        assert call(mdp.TESTS / "mpiexec", ranks, program, mdp.DEMO) == want
    done = subprocess.run([str(mdp.TESTS / "mpiexec"), "2", str(program), str(mdp.DEMO)], capture_output=True, text=True, timeout=300,
                          check=False, env={**os.environ, "MDP_RANKS_PER_NODE": "few"})
    assert done.returncode == 2 and len(re.findall("^use_mdp: .*MDP_RANKS_PER_NODE", done.stderr, re.M)) == 1, done.stderr


def test_another_project_links_by_cmake(prefix, cache, demo_run, tmp_path):
    extra = ["-DCMAKE_C_FLAGS=-fsanitize=address,undefined"] if cache.get("MDP_SANITIZE") == "ON" else []
    call("cmake", "-S", mdp.TESTS / "install", "-B", tmp_path, f"-DCMAKE_PREFIX_PATH={prefix}", *extra)
    call("cmake", "--build", tmp_path)
    check_example(tmp_path / "use_mdp", demo_run)


def test_another_program_links_by_pkg_config(prefix, cache, demo_run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(prefix, moved, symlinks=True)
    environment = {**os.environ, "PKG_CONFIG_PATH": str(find(moved, "moe-dist-prune.pc").parent)}
    words = call("pkg-config", "--cflags", "--libs", "moe-dist-prune", env=environment).split()
    sanitize = ["-fsanitize=address,undefined"] if cache.get("MDP_SANITIZE") == "ON" else []
    assert str(prefix) not in " ".join(words)
    call(cache["CMAKE_C_COMPILER"], "-std=c11", mdp.TESTS / "install" / "use_mdp.c", "-o", tmp_path / "use_mdp", *sanitize, *words,
         f"-Wl,-rpath,{find(moved, 'moe-dist-prune.pc').parent.parent}")
    check_example(tmp_path / "use_mdp", demo_run)


# ---- man pages and completion


def options_of_help(command):
    """{option: choices} as --help lists them, without those of debug builds."""
    found, last = {}, None
    for line in mdp.succeed(1, command, "--help").stdout.splitlines():
        if option := re.match(r"  --([a-z0-9-]+)", line):
            last = found.setdefault(option[1], [])
        elif choices := re.match(r"      one of (\S+)$", line):
            last += choices[1].split("|")
        elif (choice := re.match(r"      ([a-z0-9-]+) +\S", line)) and last is not None:
            last.append(choice[1])
    return {name: choices for name, choices in found.items() if not name.startswith("fault-") and name != "stop-at"}


def test_help_lists_the_commands_tested_here():
    listed = re.search(r"tells more\):\n((?:  \w+ .*\n)+)", mdp.succeed(1, "--help").stdout)[1]
    assert re.findall(r"^  (\w+)", listed, re.M) == COMMANDS


@pytest.mark.skipif(shutil.which("groff") is None, reason="no groff on this system (tools/check installs it where apt-get is)")
@pytest.mark.parametrize("command", COMMANDS)
def test_man_page_says_what_help_says(prefix, command):
    page = prefix / "share" / "man" / "man1" / f"moe-dist-prune-{command}.1"
    done = subprocess.run(["groff", "-man", "-ww", "-Tascii", "-P-cbou", str(page)], capture_output=True, text=True, check=True, timeout=60)
    assert done.stderr == ""
    options = options_of_help(command)
    assert set(re.findall(r"^ +--([a-z0-9-]+)", done.stdout, re.M)) == set(options)
    words = set(re.findall(r"[a-z0-9-]+", done.stdout))
    assert {choice for choices in options.values() for choice in choices} <= words
    assert re.search(rf"^ +moe-dist-prune-{command} - ", done.stdout, re.M)


def complete(prefix, *words):
    """What bash offers for the last of the words."""
    script = find(prefix, "completions/moe-dist-prune")
    return call("bash", "-c", f'source "{script}"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _moe_dist_prune; printf "%s\\n" "${{COMPREPLY[@]}}"',
                "bash", "moe-dist-prune", *words, cwd=prefix).split()


def test_completion_offers_commands_options_choices_and_files(prefix):
    assert complete(prefix, "") == COMMANDS
    assert complete(prefix, "ex") == ["export"]
    for command in COMMANDS:
        assert set(complete(prefix, command, "--")) == {"--help", *(f"--{name}" for name in options_of_help(command))}
    assert complete(prefix, "apply", "--format", "") == options_of_help("apply")["format"]
    assert complete(prefix, "--method", "rea") == ["reap", "ream"]
    assert complete(prefix, "apply", "--model", "b") == ["bin"]
    assert complete(prefix, "plan", "--keep", "") == []
