#!/usr/bin/env bash
# Install TensorRT into a virtual environment from Maven Central and PyPI, without NVIDIA's index: tensorrt.sh FOLDER
set -euo pipefail
environment=$1
cd "$(dirname "$0")/../.."
python=$environment/bin/python
installed() { "$python" -c 'import tensorrt_bindings as t; print(f"TensorRT {t.__version__}, libraries found")' 2>/dev/null; }

if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "This is $(uname -s) on $(uname -m); the libraries on Maven Central are for Linux on x86_64 only." >&2
    exit 1
fi
if [ ! -x "$python" ]; then
    echo "There is no Python environment in $environment. Make it:  make serve-environment" >&2
    exit 1
fi
if installed; then exit 0; fi
if ! command -v mvn >/dev/null; then
    echo "Maven is missing. Install it:  apt-get install -y --no-install-recommends maven openjdk-17-jre-headless" >&2
    exit 1
fi

packages=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
scratch=$(mktemp -d "$packages/.tensorrt-XXXXXX") # on the same disk, so that the last step is a rename
trap 'rm -rf "$scratch"' EXIT
if [ "$(df --output=avail -k "$scratch" | tail -1)" -lt 2000000 ]; then
    echo "Less than 2 GB are free in $packages; TensorRT needs 1 GB and its download half of that." >&2
    exit 1
fi

echo "TensorRT libraries (Maven Central, 534 MB) ..."
mvn -B -l "$scratch/maven.log" -f deploy/tensorrt/pom.xml dependency:copy-dependencies -DoutputDirectory="$scratch/jars" >/dev/null || {
    grep '^\[ERROR\]' "$scratch/maven.log" >&2
    exit 1
}
(cd "$scratch/jars" && sha256sum --check --strict --quiet) <deploy/tensorrt/SHA256SUMS || {
    echo "The downloaded file is not the one of deploy/tensorrt/SHA256SUMS. Remove it and run again:" >&2
    echo "  rm -r ~/.m2/repository/org/bytedeco/tensorrt" >&2
    exit 1
}
mkdir "$scratch/tensorrt_libs"
"$python" - "$scratch" <<'UNPACK'
import pathlib, shutil, sys, zipfile

scratch = pathlib.Path(sys.argv[1])
(jar,) = (scratch / "jars").glob("*.jar")
with zipfile.ZipFile(jar) as archive:
    for name in archive.namelist():
        if ".so" in pathlib.PurePosixPath(name).suffixes:
            with archive.open(name) as source, (scratch / "tensorrt_libs" / pathlib.PurePosixPath(name).name).open("wb") as target:
                shutil.copyfileobj(source, target)
UNPACK
cp deploy/tensorrt/tensorrt_libs.py "$scratch/tensorrt_libs/__init__.py"
rm -rf "$packages/tensorrt_libs"
mv "$scratch/tensorrt_libs" "$packages/tensorrt_libs"

echo "TensorRT bindings (PyPI) ..."
"$python" -m pip install -qq --no-deps --require-hashes --requirement deploy/tensorrt/requirements.txt
"$python" -m pip install -qq --editable ".[serve,cuda]"
installed || {
    echo "TensorRT is installed and cannot be imported:" >&2
    "$python" -c 'import tensorrt_bindings'
}
