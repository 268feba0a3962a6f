# A control plane for the charts' tests, and operators on it. Sourced after lib.sh.

say() { echo "  $1 ..." >&2; }

# start_plane: sets kubectl, $api_server_port, and $audit_log where it can be read.
start_plane() {
  if [ -z "${BIN_DIR:-}" ]; then
    cargo build --quiet --workspace --bins --examples
    BIN_DIR=$PWD/target/debug
  fi
  kubectl_program=kubectl
  if [ -z "${KUBECONFIG:-}" ]; then
    kubectl_program=$(tests/control-plane/build.sh)/kubectl
    audit_log=$work/audit.log
    "$BIN_DIR/examples/up" --audit "$audit_log" > "$work/plane.log" 2>&1 &
    started_pids+=("$!")
    up_or_ended() { grep -q '^export KUBECONFIG=' "$work/plane.log" || ! kill -0 "${started_pids[-1]}"; }
    until_so 300 'a control plane' up_or_ended
    grep -q '^export KUBECONFIG=' "$work/plane.log" || fail "no control plane: $(cat "$work/plane.log")"
    KUBECONFIG=$(sed -n 's/^export KUBECONFIG=//p' "$work/plane.log")
    export KUBECONFIG
  fi
  # Helm looks for it, too.
  api_server_port=$(kubectl config view --minify -o jsonpath='{.clusters[0].cluster.server}' | sed -n 's/.*:\([0-9]*\)$/\1/p')
  api_server_port=${api_server_port:-443}
}

kubectl() { "$kubectl_program" "$@"; }

# The definitions of others, as their modules have them: MODULE@VERSION FILE
definitions=(
  'github.com/prometheus-operator/prometheus-operator@v0.85.0 example/prometheus-operator-crd/monitoring.coreos.com_podmonitors.yaml'
  'github.com/cert-manager/cert-manager@v1.21.2 deploy/crds/cert-manager.io_certificates.yaml'
  'github.com/argoproj/argo-cd/v3@v3.5.7 manifests/crds/application-crd.yaml'
  'sigs.k8s.io/gateway-api@v1.6.0 config/crd/standard/gateway.networking.k8s.io_'{gateways,httproutes,grpcroutes}.yaml
)

# install_definitions: what the examples use of other projects.
install_definitions() {
  local line module file folder
  for line in "${definitions[@]}"; do
    read -r module file <<< "$line"
    (cd "$work" && go mod download -json "$module") > "$work/module.json" 2>&1 || fail "$(cat "$work/module.json")"
    folder=$(sed -n 's/^\t"Dir": "\(.*\)",\{0,1\}$/\1/p' "$work/module.json")
    kubectl apply --server-side -f "$folder/$file" > /dev/null
  done
  kubectl create namespace argocd > /dev/null
}

# try_out FILE WHAT: the API server says what it would make of each object, with nothing that it does not know, and no warning.
try_out() {
  if ! kubectl apply --server-side --dry-run=server --force-conflicts --validate=strict --field-manager=tests -f "$1" > /dev/null 2> "$work/said"; then
    fail "$2: $(cat "$work/said")"
  fi
  [ ! -s "$work/said" ] || fail "$2: $(cat "$work/said")"
}

# start_operator NAMESPACE ACCOUNT NAME: one as a process of this machine, with the rights of a service account. It is ready when
# this returns.
start_operator() {
  local token config=$work/$3.kubeconfig
  token=$(kubectl -n "$1" create token "$2" --duration 1h)
  kubectl config view --raw --minify > "$config"
  kubectl --kubeconfig "$config" config unset users > /dev/null
  kubectl --kubeconfig "$config" config set-credentials operator --token "$token" > /dev/null
  kubectl --kubeconfig "$config" config set-context --current --user operator > /dev/null
  KUBECONFIG=$config RUST_LOG=info "$BIN_DIR/chatgateway-operator" run --listen 127.0.0.1:0 --lease-namespace "$1" > "$work/operator-$3.log" 2>&1 &
  operator_pids[$3]=$!
  started_pids+=("$!")
  until_so 60 "operator $3 acts" grep -q 'this operator acts' "$work/operator-$3.log"
}
declare -A operator_pids

stop_operator() {
  kill -TERM "${operator_pids[$1]}"
  wait "${operator_pids[$1]}" || fail "operator $1 ended badly: $(tail -3 "$work/operator-$1.log")"
}

# older_charts DIR: these charts as an earlier release may have had them: another version, and a definition that lacks something.
older_charts() {
  cp -r charts "$1"
  rm -rf "$1"/*/charts
  sed -i -E 's/^((app)?[vV]ersion|    version): .*/\1: 0.0.9/' "$1"/*/Chart.yaml
  rm "$1/chatgateway-operator/Chart.lock"
  sed -i '/jsonPath: .status.configHash/,/type: string/d' "$1/chatgateway-crds/templates/chatgateways.yaml"
  helm dependency update "$1/chatgateway-operator" > "$work/dependency.log" 2>&1 || fail "$(cat "$work/dependency.log")"
}
