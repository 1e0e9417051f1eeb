"""llama-cpp-python with its Vulkan backend, in an environment of its own beside the oracles' (tools/setup peers).

Debian 12's shader compiler lacks extensions that llama.cpp would use (integer dot products,
cooperative matrices); Mesa's CPU driver has no use for them.
"""
import os
import pathlib
import subprocess
import sys

SETUP = pathlib.Path(__file__).resolve().parents[3] / "tools" / "setup"
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "nibble"
VENV = pathlib.Path(os.environ.get("NIBBLE_VENV") or CACHE / "venv").with_name("venv-vulkan")


def enter():
    """Goes on as the same program in that environment, where Mesa's CPU driver is the only one."""
    if pathlib.Path(sys.prefix) == VENV:
        return
    if subprocess.run([SETUP, "peers"], stdout=sys.stderr).returncode:
        sys.exit(1)
    drivers = list(pathlib.Path("/usr/share/vulkan/icd.d").glob("lvp_icd*.json"))
    # llama.cpp takes no device that a CPU plays unless it is named.
    chosen = {"VK_DRIVER_FILES": str(drivers[0]), "VK_ICD_FILENAMES": str(drivers[0]), "GGML_VK_VISIBLE_DEVICES": "0"}
    python = VENV / "bin" / "python"
    os.execve(python, [python, *sys.argv], {**os.environ, **chosen})
