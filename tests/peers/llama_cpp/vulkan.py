"""llama-cpp-python with its Vulkan backend, in an environment of its own beside the oracles'.

Needs Debian's glslc, libvulkan-dev and spirv-headers (tools/setup). Debian 12's headers lack one
extension that llama.cpp names: layer_settings.hpp has it. Its shader compiler lacks others
(integer dot products, cooperative matrices), which Mesa's CPU driver has no use for.
"""
import hashlib
import os
import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
REQUIREMENTS = HERE.parent.parent / "oracle" / "requirements.txt"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble"
VENV = CACHE / "venv-vulkan"
DRIVER = next(pathlib.Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"), None)


def key():
    """Changes with whatever the build depends on."""
    flags = next(l for l in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if l.startswith("flags"))
    parts = [REQUIREMENTS.read_text(), (HERE / "layer_settings.hpp").read_text(), sys.version, flags]
    return hashlib.sha256("".join(parts).encode()).hexdigest()


def make():
    log = VENV.with_suffix(".log")
    environment = {**os.environ, "CMAKE_ARGS": "-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DGGML_VULKAN=ON",
                   "CPATH": str(HERE), "CXXFLAGS": "-include layer_settings.hpp"}
    environment.setdefault("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count()))
    print(f"building llama.cpp with its Vulkan backend: {VENV} (10 minutes and more; log: {log})",
          file=sys.stderr)
    with open(log, "w") as out:
        for command in (["/usr/bin/python3", "-m", "venv", "--clear", VENV],
                        [VENV / "bin" / "pip", "install", "-v", "--no-cache-dir", "--no-binary",
                         "llama-cpp-python", "-r", REQUIREMENTS]):
            if subprocess.run(command, env=environment, stdout=out, stderr=out).returncode:
                sys.exit(f"cannot build llama.cpp with its Vulkan backend; see {log}. It needs PyPI and: "
                         "apt-get install g++ cmake python3-venv glslc libvulkan-dev spirv-headers")
    (VENV / "nibble-key").write_text(key())


def enter():
    """Goes on as the same program in that environment, where Mesa's CPU driver is the only one."""
    if pathlib.Path(sys.prefix) == VENV:
        return
    if DRIVER is None:
        sys.exit("no software Vulkan driver here: install mesa-vulkan-drivers")
    made = VENV / "nibble-key"
    if not made.exists() or made.read_text() != key():
        make()
    # llama.cpp takes no device that a CPU plays unless it is named.
    chosen = {"VK_DRIVER_FILES": str(DRIVER), "VK_ICD_FILENAMES": str(DRIVER), "GGML_VK_VISIBLE_DEVICES": "0"}
    python = VENV / "bin" / "python"
    os.execve(python, [python, *sys.argv], {**os.environ, **chosen})
