# shellcheck shell=bash
# Sourced by the scripts beside it: `make_environment EXTRA` puts a Python with defectseg[EXTRA] first on PATH.
# The environment is .venv in the clone. It is created once, and updated when pyproject.toml changes.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

# The first Python on PATH that is new enough. Each is tried, since version managers put names on PATH that do not run.
find_python() {
    local name
    for name in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$name"
            return
        fi
    done
    echo "error: no Python 3.11 or newer on PATH. Install one, or uv, which brings its own." >&2
    return 1
}

is_current() { cmp -s "$root/pyproject.toml" "$venv/.installed-$1"; }

# create_environment FOLDER PYTHON: a new environment, with a Python such as 3.12 or '>=3.11'.
create_environment() {
    local folder=$1 version=$2 python=python$2
    rm -rf "$folder"
    if command -v uv >/dev/null; then
        uv venv --python "$version" "$folder"
    else
        [ "$version" != '>=3.11' ] || python=$(find_python)
        "$python" -m venv --clear "$folder"
    fi
}

# install FOLDER WHAT...: installs into an environment; WHAT is as for pip install.
install() {
    local folder=$1
    shift
    if command -v uv >/dev/null; then
        (cd "$root" && uv pip install --python "$folder/bin/python" "$@")
    else
        (cd "$root" && "$folder/bin/python" -m pip install --disable-pip-version-check "$@")
    fi
}

make_environment() {
    local extra=$1
    # A stamp is a copy of pyproject.toml, written after a complete installation. The extra dev includes train.
    if ! is_current "$extra" && ! is_current dev; then
        echo "setting up $venv with defectseg[$extra]; the first time this takes minutes and several GB" >&2
        if command -v uv >/dev/null; then
            [ -x "$venv/bin/python" ] || create_environment "$venv" '>=3.11'
        else
            "$venv/bin/python" -m pip --version >/dev/null 2>&1 || create_environment "$venv" '>=3.11'
        fi
        install "$venv" --editable ".[$extra]"
        cp "$root/pyproject.toml" "$venv/.installed-$extra"
    fi
    export PATH="$venv/bin:$PATH"
}
