#!/bin/sh
# Builds the Go program of clients/interop.md as FOLDER/client: build.sh FOLDER
#
# Exits with 77 and the reason where Debian's packages for it are not installed.
set -eu
cd "$(dirname "$0")"
for needed in go protoc protoc-gen-go; do
  if ! command -v "$needed" >/dev/null || [ ! -d /usr/share/gocode/src/google.golang.org/grpc ]; then
    echo "$needed or Go's gRPC is not here (Debian: apt-get install golang-go" \
      "golang-google-grpc-dev golang-goprotobuf-dev protobuf-compiler)" >&2
    exit 77
  fi
done

mkdir -p "$1/protos" "$1/src/interop"
folder=$(cd "$1" && pwd)
cp -R ../../../protos/headrace "$folder/protos"
# This generator is older than `optional`. On the wire the field is the same without it.
sed -i 's/  optional /  /' "$folder/protos/headrace/stream/v1/stream.proto"
inference=headrace/inference/v2
maps=M$inference/grpc_service.proto=$inference,M$inference/model_config.proto=$inference
# One import path at a time: this generator takes no more.
for path in "$inference/*.proto" "headrace/stream/v1/stream.proto"; do
  # shellcheck disable=SC2086 # the pattern is meant
  (cd "$folder/protos" && protoc -I. --go_out="plugins=grpc,$maps:$folder/src" $path)
done
cp main.go "$folder/src/interop"
GO111MODULE=off GOPATH="$folder:/usr/share/gocode" GOCACHE="$folder/cache" \
  go build -o "$folder/client" interop
