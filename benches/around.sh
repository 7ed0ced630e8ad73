# Shared by echo.sh, relay.sh and rooms.sh, which source it: builds what they need, gives them a folder of their own in
# $dir, and ends what they started.
#   SERVER_CPU=0   LOAD_CPU=1       where servers and load run
#   PORTWAY=target/release/portway  the gateway to measure, if not the one built here
# shellcheck shell=bash
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck disable=SC2034 # used by those who source this
bin=benches/peers/target/release on_server="taskset -c ${SERVER_CPU:-0}" on_load="taskset -c ${LOAD_CPU:-1}"
ulimit -n "$(ulimit -Hn)"
dir=$(mktemp -d)
started=()
finish() {
    for pid in "${started[@]}"; do kill "$pid" 2>/dev/null || true; done
    rm -rf "$dir"
}
trap finish EXIT
trap 'exit 1' INT TERM

[ -n "${PORTWAY:-}" ] || cargo build --quiet --release --locked
cargo build --quiet --release --locked --manifest-path benches/peers/Cargo.toml
# shellcheck disable=SC2034
gateway=${PORTWAY:-target/release/portway}

# The configuration of a gateway with one arbiter that says nothing and ends at once. What it serves comes from stdin.
configure() {
    {
        cat <<'TOML'
version = 1
[runtime]
arbiters = 1
drain = "0s"
[log]
level = "warn"
TOML
        cat
    } > "$dir/portway.toml"
}
