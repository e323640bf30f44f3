#!/usr/bin/env bash
# Installs, as root on Debian, programs that tests run and that neither pip nor npm brings: those that
# are not there. `.ci/run` calls it; a person's tests are skipped, with the reason, where one is missing.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

missing=()
# A program or a file, and Debian's packages that bring it.
want() {
  command -v "$1" >/dev/null || [ -e "$1" ] || missing+=("${@:2}")
}
want cc gcc libc6-dev
want c++ g++
want go golang-go
want /usr/share/gocode/src/google.golang.org/grpc golang-google-grpc-dev
want protoc-gen-go golang-goprotobuf-dev
want protoc protobuf-compiler
want javac default-jdk-headless
want /usr/share/java/grpc-netty.jar libgrpc-java libnetty-java libperfmark-java
want /usr/share/java/protobuf.jar libprotobuf-java
want grpc_java_plugin protobuf-compiler-grpc-java-plugin
want haproxy haproxy
want node nodejs
want npm npm
want promtool prometheus
want systemd-analyze systemd
want unshare util-linux
want useradd passwd

if [ "${#missing[@]}" -eq 0 ]; then
  exit
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "to be installed for the tests: ${missing[*]} (as Debian calls them)" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install --yes --no-install-recommends "${missing[@]}"
