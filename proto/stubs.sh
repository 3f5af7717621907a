#!/bin/sh
# Makes the gRPC stubs in client/artifactcache/v1; with --check, compares them with what is there instead.
set -eu
cd "$(dirname "$0")/.."
out=client
if [ "${1:-}" = --check ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
"${PYTHON:-python3}" -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
    proto/artifactcache/v1/cache.proto
[ "$out" = client ] && exit 0
for stub in "$out"/artifactcache/v1/*; do
    cmp "$stub" "client/artifactcache/v1/$(basename "$stub")" || {
        echo "The stubs are not those of $(ls proto/artifactcache/v1): run 'make stubs'." >&2
        exit 1
    }
done
echo "stubs: as the contract says"
