"""How torch's threads wait: chosen before torch is loaded, and never against the user's own setting."""

import os
import subprocess
import sys

import pytest

LOADED = "import sys; from personavec.cli.main import main; main(['--version']); "
CODE = LOADED + "assert 'torch' not in sys.modules; import {}"


def run(then: str, **env: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", CODE.format(then)], capture_output=True, text=True, env=kept | env)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_torch_reads_it() -> None:
    """libgomp prints what it took, as it is loaded."""
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run("torch", OMP_DISPLAY_ENV="true")


@pytest.mark.parametrize("env", [{"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "1000"}])
def test_a_users_own_setting_stands(env: dict[str, str]) -> None:
    wanted = str(env.get("OMP_WAIT_POLICY"))
    assert wanted in run("os; print(os.environ.get('OMP_WAIT_POLICY'))", **env)
