#!/usr/bin/env bash
# The journeys in a kind cluster with virtual GPU nodes: make the cluster, play them, take it away.
#
#   e2e/kind/run.sh [--dry-run] [--keep] [PYTEST ARGUMENT ...]
#
# --dry-run prints every command and runs none; --keep leaves the cluster. Needs kind, Docker, kubectl and `make install`.
set -euo pipefail
cd "$(dirname "$0")/../.."

image=${KIND_NODE_IMAGE:-kindest/node:v1.34.0}
folder=$PWD/e2e/.out/kind
dry='' keep=''
while [ $# -gt 0 ]; do
    case $1 in
        --dry-run) dry=yes ;;
        --keep) keep=yes ;;
        *) break ;;
    esac
    shift
done

run() {
    printf '+ %s\n' "$*"
    [ -n "$dry" ] || "$@"
}

take_away() {
    [ -n "$keep" ] || run kind delete cluster --name gpupack
}

for program in kind docker kubectl .venv/bin/pytest; do
    [ -n "$dry" ] || command -v "$program" > /dev/null || { echo "$program is needed and not to be found" >&2; exit 2; }
done
run mkdir -p "$folder/audit"
run cp e2e/kind/audit-policy.yaml "$folder/audit/policy.yaml"
run cp e2e/kind/cluster.yaml "$folder/cluster.yaml"
run sed -i "s|AUDIT|$folder/audit|" "$folder/cluster.yaml"
trap take_away EXIT
run kind create cluster --image "$image" --config "$folder/cluster.yaml" --kubeconfig "$folder/kubeconfig" --wait 5m
# The API server writes the log as root, for nobody else to read.
run docker exec gpupack-control-plane chmod a+r /audit/audit.log
run env GPUPACK_E2E_KUBECONFIG="$folder/kubeconfig" GPUPACK_E2E_AUDIT_LOG="$folder/audit/audit.log" \
    .venv/bin/pytest e2e "$@"
