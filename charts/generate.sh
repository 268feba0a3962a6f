#!/usr/bin/env bash
# Writes what is made from other files: generate.sh [TARGET_DIR]
#   charts/chatgateway-crds/templates/chatgateways.yaml   from crds/chatgateways.yaml
#   deploy/kustomize/crds.yaml, deploy/kustomize/operator.yaml   from the charts
#   deploy/argocd/argocd-cm.yaml                          from deploy/argocd/health.lua
set -euo pipefail
cd "$(dirname "$0")/.."
target=${1:-.}
helm=$(tests/charts/build.sh)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$target/charts/chatgateway-crds/templates" "$target/deploy/kustomize" "$target/deploy/argocd"

# The definition with the release's labels, and kept when it is uninstalled. Nothing else in it is a template.
if grep -q '{{' crds/chatgateways.yaml; then
  echo 'generate: crds/chatgateways.yaml has a {{, which a chart takes for its own' >&2
  exit 1
fi
awk '
  /^#/ { next }
  { print }
  /^  name: chatgateways.chatgateway.dev$/ {
    print "  labels:"
    print "    {{- include \"chatgateway-crds.labels\" . | nindent 4 }}"
    print "  {{- if .Values.keep }}"
    print "  annotations:"
    print "    helm.sh/resource-policy: keep"
    print "  {{- end }}"
  }
' crds/chatgateways.yaml > "$work/chatgateways.yaml"
{ echo '# Written by `make charts` from crds/. Edit operator/api instead.'; cat "$work/chatgateways.yaml"; } \
  > "$target/charts/chatgateway-crds/templates/chatgateways.yaml"

# What the charts make by their defaults, without what only Helm needs.
cp -r charts "$work/charts"
cp "$target/charts/chatgateway-crds/templates/chatgateways.yaml" "$work/charts/chatgateway-crds/templates/"
rm -rf "$work"/charts/*/charts
"$helm" dependency build "$work/charts/chatgateway-operator" > /dev/null 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
plain() {
  echo '# Written by `make charts`. Edit charts/ instead.'
  "$helm" template chatgateway-operator "$@" --namespace chatgateway-system | awk '
    /^# Source:/ || /helm.sh\/chart:/ || /app.kubernetes.io\/managed-by: Helm/ { next }
    /helm.sh\/resource-policy:/ { next }
    { print }
  '
}
plain "$work/charts/chatgateway-crds" --set keep=false > "$target/deploy/kustomize/crds.yaml"
plain "$work/charts/chatgateway-operator" --set crds.enabled=false > "$target/deploy/kustomize/operator.yaml"

{
  echo '# Written by `make charts` from health.lua. Merge it into the ConfigMap of that name.'
  echo 'apiVersion: v1'
  echo 'kind: ConfigMap'
  echo 'metadata:'
  echo '  name: argocd-cm'
  echo '  namespace: argocd'
  echo '  labels:'
  echo '    app.kubernetes.io/name: argocd-cm'
  echo '    app.kubernetes.io/part-of: argocd'
  echo 'data:'
  echo '  resource.customizations.health.chatgateway.dev_ChatGateway: |'
  sed 's/^\(.\)/    \1/' deploy/argocd/health.lua
} > "$target/deploy/argocd/argocd-cm.yaml"
