#!/usr/bin/env bash
# Install the Debian packages that the named purposes need and that are missing: system.sh [demo] [test] [kafka]
set -euo pipefail

missing=()
need() { # need PACKAGE FILE-OR-COMMAND
    if [[ $2 == /* ]]; then [ -e "$2" ] || missing+=("$1"); else command -v "$2" >/dev/null || missing+=("$1"); fi
}
PATH=$PATH:/usr/sbin:/sbin
for purpose in "$@"; do
    case $purpose in
    demo)
        need orthanc Orthanc
        need orthanc-python /usr/share/orthanc/plugins/libOrthancPython.so
        need orthanc-dicomweb /usr/share/orthanc/plugins/libOrthancDicomWeb.so
        ;;
    test)
        need dcmtk storescu
        need dicom3tools dciodvfy
        need libpixelmed-java /usr/share/java/pixelmed.jar
        need chromium chromium
        need openjdk-17-jre-headless java
        ;;
    kafka)
        need openjdk-17-jre-headless java
        [ -n "${KAFKA_HOME:-}" ] || need maven mvn
        ;;
    esac
done
[ ${#missing[@]} -gt 0 ] || exit 0

mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
command="apt-get install -y --no-install-recommends ${missing[*]}"
sudo=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "Missing: ${missing[*]}. As root, run:  $command" >&2
        exit 1
    fi
    sudo=(sudo)
fi
if ! command -v apt-get >/dev/null; then
    echo "Missing: ${missing[*]}, and this is not Debian. Install their counterparts and run again." >&2
    exit 1
fi
echo "Installing Debian packages: ${missing[*]}"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive $command >/dev/null || {
    echo "Installing failed. Run it by hand to see why:  $command" >&2
    exit 1
}
