#!/bin/sh
# Builds the Java program of clients/interop.md as FOLDER/client: build.sh FOLDER
#
# Exits with 77 and the reason where Debian's packages for it are not installed.
set -eu
cd "$(dirname "$0")"
jars=/usr/share/java
for needed in javac protoc grpc_java_plugin; do
  if ! command -v "$needed" >/dev/null || [ ! -f $jars/grpc-netty.jar ] || [ ! -f $jars/protobuf.jar ]; then
    echo "$needed or Java's gRPC is not here (Debian: apt-get install default-jdk-headless" \
      "libgrpc-java libnetty-java libperfmark-java libprotobuf-java protobuf-compiler" \
      "protobuf-compiler-grpc-java-plugin)" >&2
    exit 77
  fi
done

mkdir -p "$1/source" "$1/classes"
folder=$(cd "$1" && pwd)
(cd ../../../protos && protoc -I. --java_out="$folder/source" \
  --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" \
  --grpc-java_out="$folder/source" $(find headrace -name '*.proto'))

classes=$folder/classes
for name in grpc-api grpc-context grpc-core grpc-netty grpc-protobuf grpc-protobuf-lite grpc-stub \
  protobuf guava failureaccess perfmark-api netty-buffer netty-codec netty-codec-http \
  netty-codec-http2 netty-common netty-handler netty-resolver netty-transport \
  geronimo-annotation-1.3-spec \
  proto-google-common-protos; do
  [ ! -f $jars/$name.jar ] || classes=$classes:$jars/$name.jar
done
javac -nowarn -encoding UTF-8 -cp "$classes" -d "$folder/classes" \
  $(find "$folder/source" -name '*.java') Client.java
printf '#!/bin/sh\nexec java -Dfile.encoding=UTF-8 -cp "%s" Client "$@"\n' "$classes" >"$folder/client"
chmod +x "$folder/client"
