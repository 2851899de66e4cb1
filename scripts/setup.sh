#!/bin/sh
# Makes the virtual environment $1 and installs mlxforge with the extras $2 (such as "[dev]") into it.
# uv where it is, else venv and pip. On Linux also OpenBLAS, without which MLX computes 30 times slower on a CPU.
set -eu
venv=$1
extras=$2

has_openblas() {
    ldconfig -p 2>/dev/null | grep -q 'libopenblas\.so' || ls /usr/lib/*/libopenblas.so* >/dev/null 2>&1
}

install_openblas() {
    if ! command -v apt-get >/dev/null 2>&1; then return 1; fi
    if [ "$(id -u)" = 0 ]; then root=""; elif sudo -n true 2>/dev/null; then root="sudo -n"; else return 1; fi
    echo "installing OpenBLAS"
    $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libopenblas0-pthread >/dev/null 2>&1 ||
        { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq libopenblas0-pthread; } >/dev/null 2>&1
}

fits() {
    "$1" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1
}

find_python() {
    for name in python3 python3.13 python3.12 python3.11 python3.10 python; do
        if fits "$name"; then echo "$name"; return; fi
    done
    echo "error: no Python 3.10 to 3.13 found: install one, or uv (https://docs.astral.sh/uv)" >&2
    exit 2
}

if [ "$(uname -s)" = Linux ] && ! has_openblas; then
    install_openblas || echo "hint: training is 30 times faster with OpenBLAS: sudo apt-get install libopenblas0-pthread"
fi

echo "installing mlxforge$extras into $venv"
if command -v uv >/dev/null 2>&1; then
    [ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.10,<3.14' "$venv"
    uv pip install --quiet --python "$venv/bin/python" -e ".$extras"
else
    if [ ! -x "$venv/bin/python" ]; then
        python=$(find_python)
        "$python" -m venv "$venv"
    fi
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null  # made by uv
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e ".$extras"
fi
