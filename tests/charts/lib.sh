# What the charts' tests share. Sourced by each of them, in the repository's root.
set -Eeuo pipefail
trap 'echo "$(basename "$0" .sh): line $LINENO failed: $BASH_COMMAND" >&2' ERR
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

work=$(mktemp -d)
started_pids=()
cleanup() {
  local pid
  for pid in "${started_pids[@]}"; do kill -INT "$pid" 2> /dev/null || true; done
  for pid in "${started_pids[@]}"; do wait "$pid" 2> /dev/null || true; done
  rm -rf "$work"
}
trap cleanup EXIT

# fail WORDS...: says what is wrong and ends the test.
fail() {
  echo "$(basename "$0" .sh): $*" >&2
  exit 1
}

# until_so SECONDS WHAT COMMAND...: waits until the command succeeds.
until_so() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || fail "not in time: $what"
    sleep 0.2
  done
}

helm_program=$(tests/charts/build.sh)
# Nobody's own settings, repositories or plugins.
helm() {
  env HELM_CONFIG_HOME="$work/helm/config" HELM_CACHE_HOME="$work/helm/cache" HELM_DATA_HOME="$work/helm/data" "$helm_program" "$@"
}

# copy_charts DIR: the charts, with what they depend on in them, as a package has it.
copy_charts() {
  cp -r charts "$1"
  rm -rf "$1"/*/charts
  helm dependency build "$1/chatgateway-operator" > "$work/dependency.log" 2>&1 || fail "$(cat "$work/dependency.log")"
}
