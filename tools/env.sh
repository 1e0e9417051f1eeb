# Where the scripts and tests keep what does not belong in the tree. Sourced, not run.
: "${HOME:=$(getent passwd "$(id -u)" | cut -d: -f6)}"
export HOME
NIBBLE_CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/nibble
export NIBBLE_VENV=${NIBBLE_VENV:-$NIBBLE_CACHE/venv}
export NIBBLE_MODEL=${NIBBLE_MODEL:-$NIBBLE_CACHE/models/SmolLM2-135M-Instruct.Q4_1.gguf}
export NIBBLE_MINILM=${NIBBLE_MINILM:-$NIBBLE_CACHE/models/all-MiniLM-L6-v2}
export NIBBLE_TEXT=${NIBBLE_TEXT:-$NIBBLE_CACHE/text}
export NIBBLE_TEMPLATES=${NIBBLE_TEMPLATES:-$NIBBLE_CACHE/templates}

say() { printf '%s\n' "$*"; }
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
